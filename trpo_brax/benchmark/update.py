"""The trust-region step's pieces, and loops over them long enough to time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from trpo_brax.algorithm import Distribution, PolicyBatch, fisher_product, surrogate

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
