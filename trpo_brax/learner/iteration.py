"""One iteration of TRPO, from TrainState to TrainState (Schulman et al. 2015, arXiv 1502.05477, section 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trpo_brax.algorithm import (
    Accept,
    CriticFit,
    Distribution,
    PolicyBatch,
    Scale,
    StepOutcome,
    TrustRegionStep,
    anywhere,
    explained_variance,
    fit_critic,
    generalized_advantage_estimation,
    inside_the_region,
    sample_weights,
    standardize,
    successor_values,
    to_the_edge,
    trust_region_step,
    weighted_moments,
)
from trpo_brax.config import Config, TrustRegionConfig
from trpo_brax.environments import EnvironmentState, VectorizedEnvironment
from trpo_brax.learner.metrics import Metrics, experience_metrics, step_metrics
from trpo_brax.learner.rollout import Trajectory, rollout
from trpo_brax.learner.state import TrainState, critic_optimizer
from trpo_brax.policy import ActionBounds, CriticParameters, Networks
from trpo_brax.randomness import Stream, environment_keys


class Judgement(NamedTuple):
    """What the critic makes of a trajectory, [N, T] unless said otherwise; what samples of weight 0 hold is finite."""

    observations: jax.Array
    """[N, T, observation]: normalised."""
    actions: jax.Array
    """[N, T, A]: as sampled."""
    valid: jax.Array
    """bool: transitions that may be used."""
    weights: jax.Array
    """Of each sample, summing to one; 0 where not valid."""
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
    """TRPO's iteration for one configuration, task and pair of networks: its phases, and `__call__`, their sequence.

    Observation statistics stay as they were throughout, so that
    the old policy is one and the same function in rollout, gradient and line search.
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
        step = self.improve(state, judgement)
        critic, fit = self.fit(state, judgement)
        new_state = TrainState(
            iteration=state.iteration + 1,
            key=state.key,
            policy=step.parameters,
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
        used = (weights > 0)[..., None]
        observations = self._normalized(state, trajectory.observations)
        # What unused samples hold is made finite here, and nowhere else: it would reach sums as NaN x 0. Where only
        # what came after an observation was not finite, its value still ends the step before it.
        observations = jnp.where(used | jnp.isfinite(observations), observations, 0)
        actions = jnp.where(used, trajectory.actions, 0)
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
        return Judgement(
            observations, actions, transitions.valid, weights, values, raw_advantages, targets, advantages, mean, std
        )

    def improve(self, state: TrainState, judgement: Judgement) -> TrustRegionStep:
        """Take the policy's trust-region step."""
        settings, policy = self.config.trust_region, self.networks.distribution
        samples = (judgement.observations, judgement.actions, judgement.advantages, judgement.weights)
        step = policy_step(policy, state.policy, policy_batch(*samples, settings.fisher_fraction), settings)
        # Divided by an infinite deviation advantages are 0, which is no sign that no action was better than another.
        outcome = jnp.where(jnp.isfinite(judgement.advantage_std), step.taken.outcome, StepOutcome.NON_FINITE)
        return step._replace(taken=step.taken._replace(outcome=outcome))

    def fit(self, state: TrainState, judgement: Judgement) -> tuple[CriticParameters, CriticFit]:
        """Fit the critic, in units of its new targets."""
        critic = state.critic.in_units(*weighted_moments(judgement.targets, judgement.weights))
        fit = fit_critic(
            self.networks.normalized_value,
            critic_optimizer(self.config),
            critic.network,
            state.critic_optimizer,
            judgement.observations,
            (judgement.targets - critic.mean) / critic.std,
            judgement.valid,
            epochs=self.config.critic.critic_epochs,
            minibatches=self.config.critic.critic_minibatches,
        )
        return dataclasses.replace(critic, network=fit.parameters), fit

    def describe(
        self, state: TrainState, trajectory: Trajectory, judgement: Judgement, step: TrustRegionStep, fit: CriticFit
    ) -> Metrics:
        """Return the metrics of each phase of the iteration that began with `state`, merged."""
        settings, evaluation = self.config.trust_region, step.taken.evaluation
        # A_raw = std A + mean, so its surrogate needs no second pass over the batch.
        gain = judgement.advantage_std * evaluation.improvement + judgement.advantage_mean * evaluation.ratio_excess
        largest = jnp.max(jnp.abs(judgement.raw_advantages))
        entropy = self.networks.distribution(step.parameters, judgement.observations[:, 0]).entropy()
        return {
            **experience_metrics(trajectory, judgement.observations, state.statistics, self.bounds),
            **step_metrics(step, gain, largest, settings.discount),
            "explained_variance": explained_variance(judgement.values, judgement.targets, judgement.weights),
            "entropy": jnp.mean(entropy),
            "damping": jnp.float32(settings.damping),
            "critic_loss": fit.loss,
        }

    def _normalized(self, state: TrainState, observations: jax.Array) -> jax.Array:
        return state.statistics.normalize(observations, self.config.network.observation_clip)


def policy_batch(
    observations: jax.Array, actions: jax.Array, advantages: jax.Array, weights: jax.Array, fisher_fraction: float
) -> PolicyBatch:
    """Return the samples [N, T] of a policy's step; Fisher products see every k-th time step, k = 1 / fisher_fraction.

    [N, T] is merged into one axis: a weight gradient that contracts two axes costs a copy of everything it reads.
    """
    stride = min(max(round(1.0 / fisher_fraction), 1), weights.shape[1])
    fisher_weights = weights[:, ::stride]
    total = jnp.sum(fisher_weights)
    fisher = (observations[:, ::stride], fisher_weights / jnp.where(total > 0, total, 1.0))
    parts = (observations, actions, advantages, weights, *fisher)
    return PolicyBatch(*(part.reshape(-1, *part.shape[2:]) for part in parts))


def policy_step(
    policy: Callable[[Any, jax.Array], Distribution], parameters: Any, batch: PolicyBatch, settings: TrustRegionConfig
) -> TrustRegionStep:
    """Take the step that `settings` ask for."""
    scale, accept, max_trials = step_rules(settings)
    return trust_region_step(
        policy,
        parameters,
        batch,
        # No compile-time constant: folded in, it would round otherwise, and recorded fingerprints would not come again.
        damping=jax.lax.optimization_barrier(jnp.float32(settings.damping)),
        cg_iterations=settings.cg_iterations,
        cg_tolerance=settings.cg_tolerance,
        scale=scale,
        accept=accept,
        max_trials=max_trials,
        backtrack_factor=settings.backtrack_factor,
    )


def step_rules(settings: TrustRegionConfig) -> tuple[Scale, Accept, int]:
    """Return how far to go, what to keep and how often to try: TRPO's, or the natural gradient's, which tries once."""
    scale = to_the_edge(settings.max_kl)
    if settings.mode == "natural_gradient":
        return scale, anywhere, 1
    return scale, inside_the_region(settings.max_kl, settings.acceptance_ratio), settings.line_search_steps
