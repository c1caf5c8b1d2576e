"""The trust-region step's pieces, and loops over them long enough to time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from trpo_brax.algorithm import (
    ConjugateGradientResult,
    Distribution,
    FullStep,
    LineSearchResult,
    PolicyBatch,
    backtracking_line_search,
    conjugate_gradient,
    evaluator,
    fisher_product,
    surrogate,
)
from trpo_brax.config import TrustRegionConfig
from trpo_brax.learner.steps import step_rules

VectorPolicy = Callable[[jax.Array, jax.Array], Distribution]
"""(parameters as one vector [P], inputs [S, ...]) -> action distribution."""


def of_vector(policy: Callable[[Any, jax.Array], Distribution], parameters: Any) -> tuple[jax.Array, VectorPolicy]:
    """Return the parameters as one vector [P], and the policy as a function of that."""
    theta, as_tree = ravel_pytree(parameters)
    return theta, lambda vector, inputs: policy(as_tree(vector), inputs)


def surrogate_gradient(policy: VectorPolicy, theta: jax.Array, batch: PolicyBatch) -> jax.Array:
    """Return the surrogate's gradient [P] at the old parameters."""
    old = jax.lax.stop_gradient(policy(theta, batch.inputs))
    return jax.grad(lambda candidate: surrogate(policy(candidate, batch.inputs), old, batch))(theta)


def damped_product(
    policy: VectorPolicy, theta: jax.Array, inputs: jax.Array, weights: jax.Array, damping: float
) -> Callable[[jax.Array], jax.Array]:
    """Return v [P] -> (F + damping I) v over the inputs [S, ...], linearised at `theta`."""
    return fisher_product(lambda candidate: policy(candidate, inputs), theta, weights, damping=damping)


def full_step(
    policy: VectorPolicy, settings: TrustRegionConfig, theta: jax.Array, batch: PolicyBatch, gradient: jax.Array
) -> tuple[FullStep, ConjugateGradientResult]:
    """Linearise, solve by conjugate gradient and scale: the longest step to try, and how it was solved for."""
    product = damped_product(policy, theta, batch.fisher_inputs, batch.fisher_weights, settings.damping)
    solved = conjugate_gradient(
        product, gradient, max_iterations=settings.cg_iterations, tolerance=settings.cg_tolerance
    )
    return step_rules(settings, settings.max_kl)[0](solved, gradient), solved


def line_search(
    policy: VectorPolicy, settings: TrustRegionConfig, theta: jax.Array, batch: PolicyBatch, full: FullStep
) -> LineSearchResult:
    """Search the line from the old parameters."""
    _, accept, max_trials = step_rules(settings, settings.max_kl)
    evaluate = evaluator(policy(theta, batch.inputs), batch)
    return backtracking_line_search(
        lambda candidate: evaluate(policy(candidate, batch.inputs)),
        theta,
        full,
        accept,
        max_trials=max_trials,
        backtrack_factor=settings.backtrack_factor,
    )


def chained_products(
    policy: VectorPolicy, damping: float, count: int
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
    """Return `count` products one after the other, without a loop, to be counted.

    (theta [P], inputs [S, ...], weights [S], direction [P]) -> [P]; two less one is a product without its
    linearisation.
    """

    def products(theta: jax.Array, inputs: jax.Array, weights: jax.Array, direction: jax.Array) -> jax.Array:
        product = damped_product(policy, theta, inputs, weights, damping)
        for _ in range(count):
            direction = product(direction)
        return direction

    return products


def repeated_products(
    policy: VectorPolicy, theta: jax.Array, batch: PolicyBatch, damping: float, count: int
) -> jax.Array:
    """Linearise once and take `count` products one after the other, as conjugate gradient does."""
    product = damped_product(policy, theta, batch.fisher_inputs, batch.fisher_weights, damping)

    def advance(_: int, direction: jax.Array) -> jax.Array:
        result = product(direction)
        return result / jnp.linalg.norm(result)

    return jax.lax.fori_loop(0, count, advance, jnp.ones_like(theta))
