"""Running whole episodes of a policy, one per environment, all in parallel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trpo_brax.environments import Task, VectorizedEnvironment
from trpo_brax.policy import Policy


@dataclasses.dataclass(frozen=True)
class Episodes:
    """What happened in E episodes."""

    returns: np.ndarray
    """float32 [E]: undiscounted sum of rewards; of those before it went non-finite, where it did."""
    lengths: np.ndarray
    """int32 [E]: control steps."""
    terminated: np.ndarray
    """bool [E]: ended by the task, not by the time limit."""
    nonfinite: np.ndarray
    """bool [E]: ended by a non-finite state."""


class _Carry(NamedTuple):
    time: jax.Array
    state: Any
    running: jax.Array
    episodes: tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def run_episodes(
    task: Task,
    policy: Policy,
    *,
    episodes: int,
    episode_length: int,
    action_repeat: int = 1,
    key: jax.Array,
    stochastic: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Episodes:
    """Run the first episode of each of `episodes` environments and stop when all have ended.

    Args:
        task: the environment.
        policy: what acts.
        episodes: how many, all in parallel.
        episode_length: time limit in control steps.
        action_repeat: simulator steps per control step.
        key: uint32 [2]; episode i depends on it and on i alone.
        stochastic: sample actions instead of taking the mode.
        devices: to spread the episodes over; their number must divide `episodes`. Default: one.
    """
    environment = VectorizedEnvironment(task, episode_length=episode_length, action_repeat=action_repeat)

    def simulate(acting: tuple[Any, Any], keys: jax.Array) -> tuple[jax.Array, ...]:
        actor = dataclasses.replace(policy, parameters=acting[0], statistics=acting[1])
        reset_keys, action_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        start = environment.reset(reset_keys)
        zeros = jnp.zeros(keys.shape[0])
        nothing = (zeros, zeros.astype(jnp.int32), zeros.astype(bool), ~start.healthy)

        def running(carry: _Carry) -> jax.Array:
            return (carry.time < episode_length) & jnp.any(carry.running)

        def advance(carry: _Carry) -> _Carry:
            returns, lengths, terminated, nonfinite = carry.episodes
            if stochastic:
                step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(action_keys, carry.time)
                actions = jax.vmap(actor)(carry.state.obs, step_keys)
            else:
                actions = actor(carry.state.obs)
            outcome = jax.vmap(environment.simulate)(carry.state, actions)
            sound = carry.running & outcome.finite
            ended = outcome.termination | outcome.truncation
            counted = (
                returns + jnp.where(sound, outcome.reward, 0.0),
                lengths + carry.running,
                terminated | (sound & outcome.termination),
                nonfinite | (carry.running & ~outcome.finite),
            )
            return _Carry(carry.time + 1, outcome.state, sound & ~ended, counted)

        zero = jnp.zeros((), jnp.int32)
        return jax.lax.while_loop(running, advance, _Carry(zero, start.state, start.healthy, nothing)).episodes

    mesh = Mesh(np.asarray(devices if devices is not None else jax.devices()[:1]), ("episodes",))
    each, same = NamedSharding(mesh, PartitionSpec("episodes")), NamedSharding(mesh, PartitionSpec())
    program = jax.jit(simulate, in_shardings=(same, each), out_shardings=each)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(episodes))
    acting = jax.device_put((policy.parameters, policy.statistics), same)
    returns, lengths, terminated, nonfinite = jax.device_get(program(acting, jax.device_put(keys, each)))
    return Episodes(returns, lengths, terminated, nonfinite)
