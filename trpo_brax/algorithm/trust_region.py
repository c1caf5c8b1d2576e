"""One trust-region policy step: gradient, conjugate gradient, step length, line search, accept or keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from optax.tree_utils import tree_add_scale, tree_scale, tree_sub, tree_vdot, tree_where

from trpo_brax.algorithm.conjugate_gradient import conjugate_gradient
from trpo_brax.algorithm.fisher import fisher_product
from trpo_brax.algorithm.line_search import (
    LineSearchResult,
    StepOutcome,
    all_finite,
    backtracking_line_search,
)
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


class FullStep(NamedTuple):
    """The natural gradient scaled to the trust region's edge."""

    step: Parameters
    """beta x, shaped as the parameters."""
    predicted_improvement: jax.Array
    """[]: g^T beta x, the linear prediction of the surrogate's improvement."""
    cg_iterations: jax.Array
    """int32 []"""
    cg_relative_residual: jax.Array
    """[]: |r| / |g|; 0 where the gradient is 0."""
    outcome: jax.Array
    """int32 []: ACCEPTED where the step may be tried, else why not."""


class TrustRegionStep(NamedTuple):
    """The parameters kept, and how they came about."""

    parameters: Parameters
    evaluation: Evaluation
    predicted_improvement: jax.Array
    fraction: jax.Array
    trials: jax.Array
    cg_iterations: jax.Array
    cg_relative_residual: jax.Array
    outcome: jax.Array


def full_natural_step(
    product: Callable[[Parameters], Parameters],
    gradient: Parameters,
    *,
    max_kl: float,
    cg_iterations: int,
    cg_tolerance: float,
) -> FullStep:
    """Solve (F + lambda I) x = g and scale x so that the damped quadratic model of the KL equals `max_kl`.

    beta = sqrt(2 delta / x^T (F + lambda I) x) (Schulman et al. 2015, appendix C), with x^T (F + lambda I) x taken
    as x^T (g - r) from conjugate gradient's own residual r: no extra product.

    Args:
        product: v -> (F + lambda I) v.
        gradient: g.
        max_kl: delta, in nats.
        cg_iterations: most products.
        cg_tolerance: relative to |g|.
    """
    solved = conjugate_gradient(product, gradient, max_iterations=cg_iterations, tolerance=cg_tolerance)
    curvature = tree_vdot(solved.solution, tree_sub(gradient, solved.residual))
    sound = jnp.isfinite(curvature) & (curvature > 0) & ~solved.breakdown
    length = jnp.sqrt(2.0 * max_kl / jnp.where(sound, curvature, 1.0))
    step = tree_scale(length, solved.solution)
    norm = jnp.sqrt(tree_vdot(gradient, gradient))
    outcome = jnp.where(sound, StepOutcome.ACCEPTED, StepOutcome.BAD_CURVATURE)
    outcome = jnp.where(norm == 0, StepOutcome.ZERO_GRADIENT, outcome)
    outcome = jnp.where(all_finite(gradient), outcome, StepOutcome.NON_FINITE)
    return FullStep(
        step=step,
        predicted_improvement=tree_vdot(gradient, step),
        cg_iterations=solved.iterations,
        cg_relative_residual=solved.residual_norm / jnp.where(norm == 0, 1.0, norm),
        outcome=outcome.astype(jnp.int32),
    )


def trust_region_step(
    distribution_of: Callable[[Parameters, jax.Array], Distribution],
    parameters: Parameters,
    batch: PolicyBatch,
    settings: TrustRegionSettings,
) -> TrustRegionStep:
    """Maximise the surrogate within mean KL(old || new) <= max_kl (Schulman et al. 2015, equation 12).

    The old distribution is recomputed here, by the same function on the same batch, so that the probability ratio is
    exactly 1 at the old parameters. A refused step returns the parameters bit for bit. Fisher products see every
    k-th time step, k = round(1 / fisher_fraction); gradient and line search see all. Matrix products are taken at
    the highest precision: a GPU's default (TF32) is too coarse for conjugate gradient.

    Args:
        distribution_of: (parameters, observations [..., observation]) -> action distribution over them.
        parameters: of the policy; any pytree of float arrays.
        batch: the samples [N, T], environments leading.
        settings: a `TrustRegionConfig`.
    """
    batch = _without_unused(batch)
    fisher_observations, fisher_weights = (_flat(part) for part in _fisher_samples(batch, settings.fisher_fraction))
    batch = PolicyBatch(*(_flat(part) for part in batch))
    # One vector: conjugate gradient's sums over a small network's arrays would cost more than the arrays' size says.
    vector, as_tree = ravel_pytree(parameters)

    def policy(candidate: jax.Array, observations: jax.Array) -> Distribution:
        return distribution_of(as_tree(candidate), observations)

    with jax.default_matmul_precision("highest"):
        old = jax.lax.stop_gradient(policy(vector, batch.observations))
        old_log_prob = old.log_prob(batch.actions)

        def objective(candidate: jax.Array) -> jax.Array:
            return surrogate(policy(candidate, batch.observations), old_log_prob, batch)

        gradient = jax.grad(objective)(vector)
        product = fisher_product(
            lambda candidate: policy(candidate, fisher_observations),
            vector,
            fisher_weights,
            damping=settings.damping,
        )
        full = full_natural_step(
            product,
            gradient,
            max_kl=settings.max_kl,
            cg_iterations=settings.cg_iterations,
            cg_tolerance=settings.cg_tolerance,
        )
        evaluate_distribution = evaluator(old, batch)

        def evaluate(candidate: jax.Array) -> Evaluation:
            return evaluate_distribution(policy(candidate, batch.observations))

        proceed = full.outcome == StepOutcome.ACCEPTED
        if settings.mode == "natural_gradient":
            taken = _take_full_step(evaluate, vector, full, proceed)
        else:
            taken = backtracking_line_search(
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
    return TrustRegionStep(
        parameters=as_tree(taken.parameters),
        evaluation=taken.evaluation,
        predicted_improvement=jnp.where(taken.fraction > 0, taken.fraction * full.predicted_improvement, 0.0),
        fraction=taken.fraction,
        trials=taken.trials,
        cg_iterations=full.cg_iterations,
        cg_relative_residual=full.cg_relative_residual,
        outcome=jnp.where(proceed, taken.outcome, full.outcome),
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
