"""The pieces of a policy's trust-region step, each callable by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from optax.tree_utils import tree_add_scale, tree_where

from trpo_brax.algorithm.fisher import fisher_product
from trpo_brax.algorithm.line_search import (
    LineSearchResult,
    StepOutcome,
    all_finite,
    backtracking_line_search,
)
from trpo_brax.algorithm.natural_step import FullStep, full_natural_step
from trpo_brax.algorithm.surrogate import (
    Distribution,
    Evaluation,
    Parameters,
    PolicyBatch,
    evaluator,
    surrogate,
)


class TrustRegionSettings(Protocol):
    """The fields of `TrustRegionConfig` that the step reads."""

    @property
    def mode(self) -> str: ...
    @property
    def max_kl(self) -> float: ...
    @property
    def damping(self) -> float: ...
    @property
    def cg_iterations(self) -> int: ...
    @property
    def cg_tolerance(self) -> float: ...
    @property
    def fisher_fraction(self) -> float: ...
    @property
    def line_search_steps(self) -> int: ...
    @property
    def backtrack_factor(self) -> float: ...
    @property
    def acceptance_ratio(self) -> float: ...


class StepSamples(NamedTuple):
    """What the pieces read: samples in one axis [N T], zeroed where unused."""

    batch: PolicyBatch
    """Of gradient and line search."""
    fisher_observations: jax.Array
    """[S, observation]: of Fisher products."""
    fisher_weights: jax.Array
    """[S]: summing to one."""


class PolicyUpdate:
    """The pieces, as functions of the parameters as one vector [P].

    One vector, because conjugate gradient's sums over a small network's arrays cost more than the arrays' size says.
    Matrix products are taken at the highest precision: a GPU's default (TF32) is too coarse for conjugate gradient.

    Args:
        distribution_of: (parameters, observations [..., observation]) -> action distribution over them.
        parameters: of the policy; any pytree of float arrays.
        settings: a `TrustRegionConfig`.
        damping: [] lambda in F + lambda I, if it is not the settings'.
    """

    def __init__(
        self,
        distribution_of: Callable[[Parameters, jax.Array], Distribution],
        parameters: Parameters,
        settings: TrustRegionSettings,
        damping: jax.Array | None = None,
    ) -> None:
        self.vector, self.as_tree = ravel_pytree(parameters)
        self._distribution_of = distribution_of
        self._settings = settings
        self._damping = settings.damping if damping is None else damping

    def samples(self, batch: PolicyBatch) -> StepSamples:
        """Return the batch [N, T] as the pieces read it; Fisher products see every k-th of its time steps."""
        clean = _without_unused(batch)
        observations, weights = _fisher_samples(clean, self._settings.fisher_fraction)
        return StepSamples(PolicyBatch(*(_flat(part) for part in clean)), _flat(observations), _flat(weights))

    def policy(self, vector: jax.Array, observations: jax.Array) -> Distribution:
        """Return the action distribution: one forward pass."""
        with jax.default_matmul_precision("highest"):
            return self._distribution_of(self.as_tree(vector), observations)

    def gradient(self, vector: jax.Array, batch: PolicyBatch) -> tuple[jax.Array, Distribution]:
        """Return the surrogate's gradient [P] at `vector`, and the old distribution: the one there.

        It is recomputed by the same function on the same batch, so that the probability ratio is exactly 1.
        """
        with jax.default_matmul_precision("highest"):
            old = jax.lax.stop_gradient(self.policy(vector, batch.observations))
            old_log_prob = old.log_prob(batch.actions)

            def objective(candidate: jax.Array) -> jax.Array:
                return surrogate(self.policy(candidate, batch.observations), old_log_prob, batch)

            return jax.grad(objective)(vector), old

    def product(
        self, vector: jax.Array, observations: jax.Array, weights: jax.Array
    ) -> Callable[[jax.Array], jax.Array]:
        """Return v [P] -> (F + damping I) v over the observations [S, observation], linearised at `vector`."""
        return fisher_product(
            lambda candidate: self.policy(candidate, observations), vector, weights, damping=self._damping
        )

    def solve(self, vector: jax.Array, gradient: jax.Array, samples: StepSamples) -> FullStep:
        """Linearise, solve by conjugate gradient and scale to the trust region's edge."""
        settings = self._settings
        with jax.default_matmul_precision("highest"):
            return full_natural_step(
                self.product(vector, samples.fisher_observations, samples.fisher_weights),
                gradient,
                max_kl=settings.max_kl,
                cg_iterations=settings.cg_iterations,
                cg_tolerance=settings.cg_tolerance,
            )

    def search(self, vector: jax.Array, full: FullStep, old: Distribution, batch: PolicyBatch) -> LineSearchResult:
        """Search the line, or take the full step where the mode says so."""
        settings = self._settings
        with jax.default_matmul_precision("highest"):
            evaluate_distribution = evaluator(old, batch)

            def evaluate(candidate: jax.Array) -> Evaluation:
                return evaluate_distribution(self.policy(candidate, batch.observations))

            proceed = full.outcome == StepOutcome.ACCEPTED
            if settings.mode == "natural_gradient":
                return _take_full_step(evaluate, vector, full, proceed)
            return backtracking_line_search(
                evaluate,
                vector,
                full.step,
                full.predicted_improvement,
                proceed=proceed,
                max_kl=settings.max_kl,
                max_trials=settings.line_search_steps,
                backtrack_factor=settings.backtrack_factor,
                acceptance_ratio=settings.acceptance_ratio,
            )


def _without_unused(batch: PolicyBatch) -> PolicyBatch:
    """Zero what samples of weight 0 hold: NaN there would reach gradients and products as NaN x 0."""
    used = batch.weights > 0

    def cleaned(array: jax.Array) -> jax.Array:
        return jnp.where(used.reshape(used.shape + (1,) * (array.ndim - used.ndim)), array, 0)

    return batch._replace(
        observations=cleaned(batch.observations),
        actions=cleaned(batch.actions),
        advantages=cleaned(batch.advantages),
    )


def _fisher_samples(batch: PolicyBatch, fraction: float) -> tuple[jax.Array, jax.Array]:
    """Return every k-th time step's observations [N, T / k, observation] and weights, summing to one."""
    stride = min(max(round(1.0 / fraction), 1), batch.weights.shape[1])
    weights = batch.weights[:, ::stride]
    total = jnp.sum(weights)
    return batch.observations[:, ::stride], weights / jnp.where(total > 0, total, 1.0)


def _flat(array: jax.Array) -> jax.Array:
    """Merge [N, T] into one axis: a weight gradient that contracts two axes costs a copy of everything it reads."""
    return array.reshape(-1, *array.shape[2:])


def _take_full_step(
    evaluate: Callable[[Parameters], Evaluation], parameters: Parameters, full: FullStep, proceed: jax.Array
) -> LineSearchResult:
    """Natural gradient (Kakade 2001): the full step, refused only where it is not finite."""
    candidate = tree_add_scale(parameters, 1.0, full.step)
    evaluation = evaluate(candidate)
    taken = proceed & all_finite(candidate) & all_finite(evaluation)
    zero, trials = jnp.zeros_like(evaluation.improvement), jnp.zeros((), jnp.int32)
    accepted = LineSearchResult(candidate, evaluation, zero + 1.0, trials, jnp.int32(StepOutcome.ACCEPTED))
    nothing = Evaluation(zero, zero, zero, zero)
    refused = LineSearchResult(parameters, nothing, zero, trials, jnp.int32(StepOutcome.NON_FINITE))
    kept: LineSearchResult = tree_where(taken, accepted, refused)
    return kept
