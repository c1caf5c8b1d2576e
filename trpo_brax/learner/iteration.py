"""One iteration of TRPO, from TrainState to TrainState (Schulman et al. 2015, arXiv 1502.05477, section 6)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax.tree_utils import tree_where

from trpo_brax.algorithm import (
    CriticFit,
    StepOutcome,
    TrustRegionStep,
    explained_variance,
    fit_by_gauss_newton,
    fit_by_minibatches,
    generalized_advantage_estimation,
    sample_weights,
    standardize,
    successor_values,
    weighted_mean,
    weighted_moments,
)
from trpo_brax.config import Config
from trpo_brax.environments import EnvironmentState, VectorizedEnvironment
from trpo_brax.learner.metrics import Metrics, experience_metrics, fingerprint, step_metrics
from trpo_brax.learner.rollout import Trajectory, rollout
from trpo_brax.learner.state import TrainState, critic_optimizer
from trpo_brax.learner.steps import every_kth, policy_batch, policy_step, value_batch
from trpo_brax.policy import ActionBounds, CriticParameters, Networks, ObservationStatistics
from trpo_brax.randomness import Stream, environment_keys

_UNITS_RATE = 0.1
"""Share of a batch in the moving average of the value targets' moments."""


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
    returns: jax.Array
    """Discounted rewards up to the end of the episode, or of the batch and V from there, in units of return."""
    advantages: jax.Array
    """Centred and scaled."""
    advantage_mean: jax.Array
    """[]"""
    advantage_std: jax.Array
    """[]"""


class Folded(NamedTuple):
    """What acts and judges in the next iteration."""

    policy: Any
    critic: CriticParameters
    statistics: ObservationStatistics


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
        """Gather experience, step the policy within its trust region, fit the critic, fold in the observations.

        Before observations have statistics only those are gathered: raw ones are of any size, so that a step on them
        is of no use for normalised ones.
        """
        environments, trajectory = self.gather(state)
        judgement = self.judge(state, trajectory)
        step = self.improve(state, judgement)
        critic, fit = self.fit(state, judgement)
        folded = self.fold(state, trajectory, step, critic)
        new_state = TrainState(
            iteration=state.iteration + 1,
            key=state.key,
            policy=folded.policy,
            critic=folded.critic,
            critic_optimizer=fit.optimizer_state,
            statistics=folded.statistics,
            environments=environments,
        )
        return new_state, self.describe(state, trajectory, judgement, step, fit, folded), trajectory

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
        used = transitions.valid[..., None]
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

        def estimated(trace_decay: float) -> tuple[jax.Array, jax.Array]:
            advantages, targets = generalized_advantage_estimation(
                transitions.reward.T,
                values.T,
                next_values.T,
                transitions.termination.T,
                transitions.done.T,
                discount=self.discount(state),
                trace_decay=trace_decay,
                valid=transitions.valid.T,
            )
            return advantages.T, targets.T

        raw_advantages, targets = estimated(settings.trace_decay)
        advantages, mean, std = standardize(raw_advantages, weights)
        return Judgement(
            observations=observations,
            actions=actions,
            valid=transitions.valid,
            weights=weights,
            values=values,
            raw_advantages=raw_advantages,
            targets=targets,
            returns=estimated(1.0)[1],
            advantages=advantages,
            advantage_mean=mean,
            advantage_std=std,
        )

    def improve(self, state: TrainState, judgement: Judgement) -> TrustRegionStep:
        """Take the policy's trust-region step."""
        settings, policy = self.config.trust_region, self.networks.distribution
        samples = (judgement.observations, judgement.actions, judgement.advantages, judgement.weights)
        batch = policy_batch(*samples, settings.fisher_fraction)
        step = policy_step(
            policy, state.policy, batch, settings, max_kl=self.max_kl(state), ready=state.statistics.ready
        )
        # Divided by an infinite deviation advantages are 0, which is no sign that no action was better than another.
        outcome = jnp.where(jnp.isfinite(judgement.advantage_std), step.taken.outcome, StepOutcome.NON_FINITE)
        step = step._replace(taken=step.taken._replace(outcome=outcome))
        if self.config.network.final_log_std is None:
            return step
        return step._replace(parameters=self.networks.with_log_std(step.parameters, self.log_std(state.iteration + 1)))

    def max_kl(self, state: TrainState) -> jax.Array:
        """Return the trust region [] of the iteration that begins with `state`, in nats."""
        settings = self.config.trust_region
        return self._led(settings.max_kl, settings.final_max_kl, state.iteration)

    def discount(self, state: TrainState) -> float | jax.Array:
        """Return gamma [] of the iteration that begins with `state`."""
        first, last = self.config.trust_region.discount, self.config.trust_region.final_discount
        if last is None:
            return first  # a float: float32's 1 - gamma is off by 3e-5, and the bound with it
        return 1.0 - jnp.exp(self._led(math.log(1.0 - first), math.log(1.0 - last), state.iteration))

    def log_std(self, iteration: jax.Array) -> jax.Array:
        """Return the log standard deviation [] of the policy that acts in `iteration` [], where it is not learned."""
        settings = self.config.network
        return self._led(settings.initial_log_std, settings.final_log_std, iteration)

    def _led(self, first: float, last: float | None, iteration: jax.Array) -> jax.Array:
        """Return what lies between, linearly over `anneal_steps`."""
        if last is None or self.config.anneal_steps is None:
            return jnp.float32(first)
        done = iteration * (self.config.steps_per_iteration / self.config.anneal_steps)
        return first + jnp.minimum(done, 1.0) * (last - first)

    def fit(self, state: TrainState, judgement: Judgement) -> tuple[CriticParameters, CriticFit]:
        """Fit the critic, in units that follow its targets."""
        settings, network = self.config.critic, self.networks.normalized_value
        # The mean of the first targets, then a moving average: a batch alone would change them by what it happened on.
        rate = jnp.maximum(_UNITS_RATE, 1.0 / jnp.maximum(state.iteration, 1))
        critic = state.critic.tracking(*weighted_moments(judgement.targets, judgement.weights), rate)
        targets = (judgement.targets - critic.mean) / critic.std
        if settings.critic == "adam":
            fit = fit_by_minibatches(
                network,
                critic_optimizer(self.config),
                critic.network,
                state.critic_optimizer,
                judgement.observations,
                targets,
                judgement.valid,
                epochs=settings.critic_epochs,
                minibatches=settings.critic_minibatches,
            )
        else:
            fit = fit_by_gauss_newton(
                network,
                critic.network,
                value_batch(judgement.observations, targets, judgement.weights, settings.critic_fraction),
                steps=settings.critic_steps,
                damping=settings.critic_damping,
                cg_iterations=settings.critic_cg_iterations,
                cg_tolerance=self.config.trust_region.cg_tolerance,
            )
        fitted = dataclasses.replace(critic, network=fit.parameters), fit.optimizer_state
        before = state.critic, state.critic_optimizer
        kept, optimizer_state = tree_where(state.statistics.ready, fitted, before)
        return kept, fit._replace(optimizer_state=optimizer_state)

    def fold(
        self, state: TrainState, trajectory: Trajectory, step: TrustRegionStep, critic: CriticParameters
    ) -> Folded:
        """Fold the observations into their statistics, which policy and critic follow."""
        statistics = state.statistics.updated(trajectory.observations, trajectory.transitions.valid)
        return Folded(*self.networks.following(step.parameters, critic, state.statistics, statistics), statistics)

    def describe(
        self,
        state: TrainState,
        trajectory: Trajectory,
        judgement: Judgement,
        step: TrustRegionStep,
        fit: CriticFit,
        folded: Folded,
    ) -> Metrics:
        """Return the metrics of each phase of the iteration that began with `state`, merged."""
        settings, evaluation = self.config.trust_region, step.taken.evaluation
        # A_raw = std A + mean, so its surrogate needs no second pass over the batch.
        gain = judgement.advantage_std * evaluation.improvement + judgement.advantage_mean * evaluation.ratio_excess
        largest = jnp.max(jnp.abs(judgement.raw_advantages))
        entropy = self.networks.distribution(step.parameters, judgement.observations[:, 0]).entropy()
        return {
            **experience_metrics(trajectory, judgement.observations, state.statistics, self.bounds),
            **step_metrics(step, gain, largest, self.discount(state)),
            "explained_variance": explained_variance(judgement.values, judgement.targets, judgement.weights),
            # Targets contain V, which flatters it.
            "explained_variance_of_returns": explained_variance(judgement.values, judgement.returns, judgement.weights),
            "entropy": jnp.mean(entropy),
            "parameter_fingerprint": fingerprint(folded.policy),
            "max_kl": self.max_kl(state),
            "discount": jnp.float32(self.discount(state)),
            "damping": jnp.float32(settings.damping),
            "critic_loss": fit.loss,
            "normalisation_kl": self._normalisation_kl(
                trajectory, (step.parameters, state.statistics), (folded.policy, folded.statistics)
            ),
        }

    def _normalisation_kl(self, trajectory: Trajectory, *policies: tuple[Any, ObservationStatistics]) -> jax.Array:
        """Return the mean KL [], in nats, of the second policy from the first, each under its own statistics."""
        weights = sample_weights(trajectory.transitions.valid)
        observations, weights = every_kth(trajectory.observations, weights, self.config.trust_region.fisher_fraction)
        clip = self.config.network.observation_clip
        before, after = (
            self.networks.distribution(policy, statistics.normalize(observations, clip))
            for policy, statistics in policies
        )
        return weighted_mean(before.kl(after), weights)

    def _normalized(self, state: TrainState, observations: jax.Array) -> jax.Array:
        return state.statistics.normalize(observations, self.config.network.observation_clip)
