"""The natural gradient, scaled to the edge of the trust region."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from optax.tree_utils import tree_scale, tree_sub, tree_vdot

from trpo_brax.algorithm.conjugate_gradient import conjugate_gradient
from trpo_brax.algorithm.line_search import StepOutcome, all_finite
from trpo_brax.algorithm.surrogate import Parameters


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
