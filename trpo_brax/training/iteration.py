"""One iteration of TRPO, from TrainState to TrainState (Schulman et al. 2015, arXiv 1502.05477, section 6)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from trpo_brax.algorithm import (
    PolicyBatch,
    explained_variance,
    fit_critic,
    generalized_advantage_estimation,
    sample_weights,
    standardize,
    trust_region_step,
    weighted_moments,
)
from trpo_brax.config import Config
from trpo_brax.environments import VectorizedEnvironment
from trpo_brax.policy import ActionBounds, Networks
from trpo_brax.training.metrics import Metrics, iteration_metrics
from trpo_brax.training.rollout import rollout
from trpo_brax.training.state import TrainState, critic_optimizer
from trpo_brax.training.streams import Stream, environment_keys


def iterate(
    config: Config, environment: VectorizedEnvironment, networks: Networks, bounds: ActionBounds, state: TrainState
) -> tuple[TrainState, Metrics]:
    """Gather experience, step the policy within its trust region, fit the critic, fold in the observations.

    Observation statistics stay as they were throughout, so that the old policy is one and the same function in
    rollout, gradient and line search.
    """
    settings = config.trust_region
    num_envs = config.rollout.num_envs

    def normalized(observations: jax.Array) -> jax.Array:
        return state.statistics.normalize(observations, config.network.observation_clip)

    def act(observations: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        distribution = networks.distribution(state.policy, normalized(observations))
        raw = jax.vmap(lambda one, key: one.sample(key))(distribution, keys)
        return raw, bounds.to_environment(raw)

    environments, trajectory = rollout(
        environment,
        act,
        state.environments,
        config.rollout.unroll_length,
        pool_keys=environment_keys(state.key, Stream.STARTING_POOL, num_envs, state.iteration),
        action_keys=environment_keys(state.key, Stream.ACTION, num_envs, state.iteration),
    )
    transitions = trajectory.transitions
    weights = sample_weights(transitions.valid)

    observations = normalized(trajectory.observations)
    values = networks.value(state.critic, observations)
    next_values = networks.value(state.critic, normalized(transitions.next_observation))
    raw_advantages, targets = generalized_advantage_estimation(
        transitions.reward,
        values,
        next_values,
        transitions.termination,
        transitions.done,
        discount=settings.discount,
        trace_decay=settings.trace_decay,
        valid=transitions.valid,
    )
    advantages, advantage_mean, advantage_std = standardize(raw_advantages, weights)

    batch = PolicyBatch(observations, trajectory.actions, advantages, weights)
    step = trust_region_step(networks.distribution, state.policy, batch, settings)

    critic = state.critic.in_units(*weighted_moments(targets, weights))
    fit = fit_critic(
        networks.normalized_value,
        critic_optimizer(config),
        critic.network,
        state.critic_optimizer,
        observations,
        (targets - critic.mean) / critic.std,
        transitions.valid,
        epochs=config.critic.critic_epochs,
        minibatches=config.critic.critic_minibatches,
    )

    new_state = TrainState(
        iteration=state.iteration + 1,
        key=state.key,
        policy=step.parameters,
        critic=dataclasses.replace(critic, network=fit.parameters),
        critic_optimizer=fit.optimizer_state,
        statistics=state.statistics.updated(trajectory.observations, transitions.valid),
        environments=environments,
    )
    metrics = iteration_metrics(
        config,
        trajectory,
        step,
        entropy=jnp.mean(networks.distribution(step.parameters, observations[0]).entropy()),
        critic_loss=fit.loss,
        explained=explained_variance(values, targets, weights),
        advantage_max_abs=jnp.max(jnp.abs(raw_advantages)),
        # A_raw = std A + mean, so its surrogate needs no second pass over the batch.
        surrogate_gain=advantage_std * step.evaluation.improvement + advantage_mean * step.evaluation.ratio_excess,
        saturation=jnp.mean(bounds.saturated(trajectory.actions).astype(jnp.float32)),
    )
    return new_state, metrics
