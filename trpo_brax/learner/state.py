"""One pytree that is a whole run: save it and the run is saved.

A run of several seeds is the same pytree with a leading axis [K] on every leaf.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from trpo_brax.config import Config
from trpo_brax.environments import EnvironmentState, VectorizedEnvironment
from trpo_brax.policy import CriticParameters, Networks, ObservationStatistics
from trpo_brax.randomness import Stream, environment_keys, stream_key


@struct.dataclass
class TrainState:
    """Everything the next iteration depends on."""

    iteration: jax.Array
    """int32 []: iterations done."""
    key: jax.Array
    """uint32 [2]: the run's root key; never changes."""
    policy: Any
    """Policy parameters."""
    critic: CriticParameters
    critic_optimizer: Any
    """State of the critic's optimiser; () where it has none."""
    statistics: ObservationStatistics
    environments: EnvironmentState
    """Leaves lead with [N]; sharded over devices. Everything else is replicated."""


def critic_optimizer(config: Config) -> optax.GradientTransformation:
    """Return the critic's optimiser; its state holds the parameters as one vector. Gauss-Newton steps need none."""
    if config.critic.critic == "gauss_newton":
        return optax.identity()
    return optax.flatten(optax.adam(config.critic.critic_learning_rate))


def initial_state(config: Config, environment: VectorizedEnvironment, networks: Networks, key: jax.Array) -> TrainState:
    """Return the state of a run that has not begun.

    Args:
        config: of the run.
        environment: to train in.
        networks: to train.
        key: uint32 [2], the run's root key: `jax.random.PRNGKey(seed)`.
    """
    num_envs = config.rollout.num_envs
    spread = environment_keys(key, Stream.SPREAD, num_envs) if config.rollout.spread_initial_steps else None
    critic = networks.initial_critic(stream_key(key, Stream.CRITIC_INITIALIZATION))
    return TrainState(
        iteration=jnp.zeros((), jnp.int32),
        key=key,
        policy=networks.initial_policy(stream_key(key, Stream.POLICY_INITIALIZATION)),
        critic=critic,
        critic_optimizer=critic_optimizer(config).init(critic.network),
        statistics=ObservationStatistics.empty(networks.observation_size),
        environments=environment.reset(environment_keys(key, Stream.FIRST_RESET, num_envs), spread),
    )
