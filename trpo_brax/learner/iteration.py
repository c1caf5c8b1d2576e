"""One iteration of TRPO, from TrainState to TrainState (Schulman et al. 2015, arXiv 1502.05477, section 6)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from trpo_brax.algorithm import (
    CriticFit,
    PolicyBatch,
    TrustRegionStep,
    explained_variance,
    fit_critic,
    generalized_advantage_estimation,
    sample_weights,
    standardize,
    successor_values,
    trust_region_step,
    weighted_moments,
)
from trpo_brax.config import Config
from trpo_brax.environments import EnvironmentState, VectorizedEnvironment
from trpo_brax.learner.metrics import Metrics, iteration_metrics
from trpo_brax.learner.rollout import Trajectory, rollout
from trpo_brax.learner.state import TrainState, critic_optimizer
from trpo_brax.policy import ActionBounds, CriticParameters, Networks
from trpo_brax.randomness import Stream, environment_keys


class Judgement(NamedTuple):
    """What the critic makes of a trajectory; leaves are [N, T] unless said otherwise."""

    observations: jax.Array
    """[N, T, observation]: normalised."""
    weights: jax.Array
    """Of each sample, summing to one."""
    values: jax.Array
    raw_advantages: jax.Array
    """In units of return."""
    targets: jax.Array
    """Value targets, in units of return."""
    advantages: jax.Array
    """Centred and scaled."""
    advantage_mean: jax.Array
    """[]"""
    advantage_std: jax.Array
    """[]"""


@dataclasses.dataclass(frozen=True)
class Iteration:
    """TRPO's iteration for one configuration, task and pair of networks: its parts, and `__call__`, their sequence.

    Observation statistics stay as they were throughout, so that the old policy is one and the same function in
    rollout, gradient and line search.
    """

    config: Config
    environment: VectorizedEnvironment
    networks: Networks
    bounds: ActionBounds

    def __call__(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Return the next state and what the iteration says about itself."""
        return self.with_batch(state)[:2]

    def with_batch(self, state: TrainState) -> tuple[TrainState, Metrics, Trajectory]:
        """Gather experience, step the policy within its trust region, fit the critic, fold in the observations."""
        environments, trajectory = self.gather(state)
        judgement = self.judge(state, trajectory)
        step = self.improve(state, trajectory, judgement)
        critic, fit = self.fit(state, trajectory, judgement)
        new_state = TrainState(
            iteration=state.iteration + 1,
            key=state.key,
            policy=step.parameters,
            damping=state.damping.after(step.outcome, self.config.trust_region),
            critic=critic,
            critic_optimizer=fit.optimizer_state,
            statistics=state.statistics.updated(trajectory.observations, trajectory.transitions.valid),
            environments=environments,
        )
        return new_state, self.describe(state, trajectory, judgement, step, fit), trajectory

    def gather(self, state: TrainState) -> tuple[EnvironmentState, Trajectory]:
        """Step every environment `unroll_length` times with actions sampled from the policy."""

        num_envs = self.config.rollout.num_envs
        return rollout(
            self.environment,
            lambda observations, keys: self.act(state, observations, keys),
            state.environments,
            self.config.rollout.unroll_length,
            pool_keys=environment_keys(state.key, Stream.STARTING_POOL, num_envs, state.iteration),
            action_keys=environment_keys(state.key, Stream.ACTION, num_envs, state.iteration),
        )

    def act(self, state: TrainState, observations: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sample actions: raw ones [N, A], and as the environments take them.

        Args:
            state: whose policy and statistics act.
            observations: [N, observation].
            keys: uint32 [N, 2].
        """
        distribution = self.networks.distribution(state.policy, self._normalized(state, observations))
        noise = jax.vmap(lambda key: jax.random.normal(key, distribution.mean.shape[1:]))(keys)
        raw = distribution.shifted(noise)
        return raw, self.bounds.to_environment(raw)

    def judge(self, state: TrainState, trajectory: Trajectory) -> Judgement:
        """Estimate values, advantages and value targets."""
        transitions, settings = trajectory.transitions, self.config.trust_region
        weights = sample_weights(transitions.valid)
        observations = self._normalized(state, trajectory.observations)
        values = self.networks.value(state.critic, observations)
        next_values = successor_values(
            lambda ended: self.networks.value(state.critic, self._normalized(state, ended)),
            values,
            transitions.next_observation,
            transitions.done,
        )
        raw_advantages, targets = (
            estimate.T
            for estimate in generalized_advantage_estimation(
                transitions.reward.T,
                values.T,
                next_values.T,
                transitions.termination.T,
                transitions.done.T,
                discount=settings.discount,
                trace_decay=settings.trace_decay,
                valid=transitions.valid.T,
            )
        )
        advantages, mean, std = standardize(raw_advantages, weights)
        return Judgement(observations, weights, values, raw_advantages, targets, advantages, mean, std)

    def improve(self, state: TrainState, trajectory: Trajectory, judgement: Judgement) -> TrustRegionStep:
        """Take the policy's trust-region step."""
        batch = PolicyBatch(judgement.observations, trajectory.actions, judgement.advantages, judgement.weights)
        settings = self.config.trust_region
        damping = state.damping.value(settings)
        return trust_region_step(self.networks.distribution, state.policy, batch, settings, damping)

    def fit(
        self, state: TrainState, trajectory: Trajectory, judgement: Judgement
    ) -> tuple[CriticParameters, CriticFit]:
        """Fit the critic, in units of its new targets."""
        critic = state.critic.in_units(*weighted_moments(judgement.targets, judgement.weights))
        fit = fit_critic(
            self.networks.normalized_value,
            critic_optimizer(self.config),
            critic.network,
            state.critic_optimizer,
            judgement.observations,
            (judgement.targets - critic.mean) / critic.std,
            trajectory.transitions.valid,
            epochs=self.config.critic.critic_epochs,
            minibatches=self.config.critic.critic_minibatches,
        )
        return dataclasses.replace(critic, network=fit.parameters), fit

    def describe(
        self, state: TrainState, trajectory: Trajectory, judgement: Judgement, step: TrustRegionStep, fit: CriticFit
    ) -> Metrics:
        """Return the metrics of the iteration that began with `state`."""
        evaluation = step.evaluation
        return iteration_metrics(
            self.config,
            trajectory,
            step,
            state.statistics,
            judgement.observations,
            damping=state.damping.value(self.config.trust_region),
            entropy=jnp.mean(self.networks.distribution(step.parameters, judgement.observations[:, 0]).entropy()),
            critic_loss=fit.loss,
            explained=explained_variance(judgement.values, judgement.targets, judgement.weights),
            advantage_max_abs=jnp.max(jnp.abs(judgement.raw_advantages)),
            # A_raw = std A + mean, so its surrogate needs no second pass over the batch.
            surrogate_gain=judgement.advantage_std * evaluation.improvement
            + judgement.advantage_mean * evaluation.ratio_excess,
            saturation=jnp.mean(self.bounds.saturated(trajectory.actions).astype(jnp.float32)),
        )

    def _normalized(self, state: TrainState, observations: jax.Array) -> jax.Array:
        return state.statistics.normalize(observations, self.config.network.observation_clip)
