"""Conjugate gradient for symmetric positive definite systems, matrix-free, in one `lax.while_loop`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax.tree_utils import tree_add_scale, tree_vdot, tree_where, tree_zeros_like

Vector = Any
"""An array or a pytree of arrays, read as one vector."""


class ConjugateGradientResult(NamedTuple):
    """What the solver found, and how well."""

    solution: Vector
    """x, shaped as the right-hand side."""
    iterations: jax.Array
    """int32 []: products taken."""
    residual: Vector
    """The recursively updated residual r = b - A x."""
    residual_norm: jax.Array
    """[]: |r|."""
    relative_residual: jax.Array
    """[]: |r| / |b|; 0 where b is 0."""
    breakdown: jax.Array
    """bool []: some p^T A p was not a positive finite number; the solution is the iterate before that direction."""


class _State(NamedTuple):
    solution: Vector
    residual: Vector
    direction: Vector
    residual_squared: jax.Array
    iterations: jax.Array
    breakdown: jax.Array


def conjugate_gradient(
    matvec: Callable[[Vector], Vector],
    b: Vector,
    *,
    max_iterations: int = 10,
    tolerance: float = 1e-5,
) -> ConjugateGradientResult:
    """Solve A x = b from x = 0 (Hestenes & Stiefel 1952; Nocedal & Wright 2006, algorithm 5.2).

    Stops when |r| <= tolerance |b|, after `max_iterations`, or at a breakdown. A non-finite
    `b` stops at once: no comparison with NaN holds.

    Args:
        matvec: v -> A v, with A symmetric positive definite.
        b: right-hand side.
        max_iterations: most products.
        tolerance: relative to |b|.
    """
    squared = tree_vdot(b, b)
    precision = jnp.finfo(squared.dtype)
    # Below this the products of a residual underflow, and the recursion would wander off the solution it has found.
    underflow = jnp.sqrt(precision.tiny / precision.eps)
    limit = jnp.maximum(tolerance * jnp.sqrt(squared), underflow)

    def unfinished(state: _State) -> jax.Array:
        above = jnp.isfinite(state.residual_squared) & (jnp.sqrt(state.residual_squared) > limit)
        return above & (state.iterations < max_iterations) & ~state.breakdown

    def advance(state: _State) -> _State:
        product = matvec(state.direction)
        curvature = tree_vdot(state.direction, product)
        sound = jnp.isfinite(curvature) & (curvature > 0)
        step = state.residual_squared / jnp.where(sound, curvature, 1.0)
        solution = tree_add_scale(state.solution, step, state.direction)
        residual = tree_add_scale(state.residual, -step, product)
        residual_squared = tree_vdot(residual, residual)
        direction = tree_add_scale(residual, residual_squared / state.residual_squared, state.direction)
        advanced = _State(solution, residual, direction, residual_squared, state.iterations + 1, ~sound)
        stopped = state._replace(iterations=state.iterations + 1, breakdown=~sound)
        kept: _State = tree_where(sound, advanced, stopped)
        return kept

    zero = jnp.zeros((), jnp.int32)
    start = _State(tree_zeros_like(b), b, b, squared, zero, jnp.zeros((), bool))
    end = jax.lax.while_loop(unfinished, advance, start)
    norm, residual_norm = jnp.sqrt(squared), jnp.sqrt(end.residual_squared)
    return ConjugateGradientResult(
        solution=end.solution,
        iterations=end.iterations,
        residual=end.residual,
        residual_norm=residual_norm,
        relative_residual=residual_norm / jnp.where(norm == 0, 1.0, norm),
        breakdown=end.breakdown,
    )
