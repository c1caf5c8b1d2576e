"""The trust-region step (Schulman et al. 2015, arXiv 1502.05477, appendix C)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from trpo_brax.algorithm.conjugate_gradient import ConjugateGradientResult, conjugate_gradient
from trpo_brax.algorithm.fisher import fisher_product
from trpo_brax.algorithm.line_search import (
    Accept,
    FullStep,
    LineSearchResult,
    StepOutcome,
    all_finite,
    backtracking_line_search,
)
from trpo_brax.algorithm.surrogate import Batch, Parameters

Scale = Callable[[ConjugateGradientResult, jax.Array], FullStep]
"""(solution of H x = g, g [P]) -> the longest step to try."""


class TrustRegionStep(NamedTuple):
    """The parameters kept, and how they came about."""

    parameters: Parameters
    """The accepted candidate's, or bit for bit the old ones."""
    solved: ConjugateGradientResult
    taken: LineSearchResult


def trust_region_step(
    model: Callable[[Parameters, jax.Array], Any],
    parameters: Parameters,
    batch: Batch,
    *,
    damping: float | jax.Array,
    cg_iterations: int,
    cg_tolerance: float,
    scale: Scale,
    accept: Accept,
    max_trials: int,
    backtrack_factor: float,
) -> TrustRegionStep:
    """Improve the surrogate along the natural gradient, as far as `scale` proposes and `accept` allows.

    The old distribution is recomputed here, by the same function on the same inputs, so that at the old parameters the
    probability ratio is exactly 1 and every KL exactly 0. Parameters are one vector [P] throughout: conjugate
    gradient's sums over a small network's arrays cost more than the arrays' size says.

    Args:
        model: (parameters, inputs [S, ...]) -> distribution over them, of actions or of a value, by matrix products of
            the highest precision: a GPU's default (TF32) is too coarse for conjugate gradient.
        parameters: of the model; any pytree of float arrays.
        batch: the samples; what those of weight 0 hold must be finite.
        damping: lambda in H = F + lambda I.
        cg_iterations: most products with H.
        cg_tolerance: conjugate gradient stops at this residual, relative to |g|.
        scale: how far to go, `to_the_edge` for one.
        accept: which candidate to keep, `inside_the_region` for one.
        max_trials: most candidates.
        backtrack_factor: ratio of successive step lengths.
    """
    theta, as_tree = ravel_pytree(parameters)

    def at(candidate: jax.Array, inputs: jax.Array) -> Any:
        return model(as_tree(candidate), inputs)

    old = jax.lax.stop_gradient(at(theta, batch.inputs))
    evaluate = batch.against(old)
    gradient = jax.grad(lambda candidate: evaluate(at(candidate, batch.inputs)).improvement)(theta)
    product = fisher_product(
        lambda candidate: at(candidate, batch.fisher_inputs), theta, batch.fisher_weights, damping=damping
    )
    solved = conjugate_gradient(product, gradient, max_iterations=cg_iterations, tolerance=cg_tolerance)
    step = scale(solved, gradient)
    taken = backtracking_line_search(
        lambda candidate: evaluate(at(candidate, batch.inputs)),
        theta,
        step,
        accept,
        max_trials=max_trials,
        backtrack_factor=backtrack_factor,
    )
    return TrustRegionStep(as_tree(taken.parameters), solved, taken)


def to_the_edge(max_kl: float | jax.Array) -> Scale:
    """Return what scales x = H^-1 g so that the damped quadratic model of the KL, x.Hx / 2, equals `max_kl` (nats).

    beta = sqrt(2 delta / x.Hx) (appendix C), with x.Hx taken as x.(g - r) from conjugate gradient's own residual r: no
    extra product. Where that is not a positive number, the outcome says why there is no step.
    """

    def length(curvature: jax.Array) -> jax.Array:
        return jnp.sqrt(2.0 * max_kl / jnp.where(curvature > 0, curvature, 1.0))

    return lambda solved, gradient: _full_step(solved, gradient, length)


def to_the_minimum(solved: ConjugateGradientResult, gradient: jax.Array) -> FullStep:
    """Take x = H^-1 g as it is: where the objective is a square, its model's minimum (Levenberg 1944)."""
    return _full_step(solved, gradient, jnp.ones_like)


def _full_step(
    solved: ConjugateGradientResult, gradient: jax.Array, length: Callable[[jax.Array], jax.Array]
) -> FullStep:
    """Return length(x.Hx) x, or why there is no step: an x.Hx that is no positive number, or no gradient."""
    curvature = jnp.vdot(solved.solution, gradient - solved.residual, precision="highest")
    sound = jnp.isfinite(curvature) & (curvature > 0) & ~solved.breakdown
    step = length(curvature) * solved.solution
    outcome = jnp.where(sound, StepOutcome.ACCEPTED, StepOutcome.BAD_CURVATURE)
    outcome = jnp.where(jnp.vdot(gradient, gradient, precision="highest") == 0, StepOutcome.ZERO_GRADIENT, outcome)
    outcome = jnp.where(all_finite(gradient), outcome, StepOutcome.NON_FINITE)
    return FullStep(step, jnp.vdot(gradient, step, precision="highest"), outcome.astype(jnp.int32))
