"""Products with the Fisher information matrix of a policy, without forming it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from optax.tree_utils import tree_add_scale

from trpo_brax.algorithm.surrogate import Distribution, Parameters


def fisher_product(
    distribution_of: Callable[[Parameters], Distribution],
    parameters: Parameters,
    weights: jax.Array,
    *,
    damping: float | jax.Array = 0.0,
) -> Callable[[Parameters], Parameters]:
    """Return v -> (F + damping I) v with F = sum_s w_s J_s^T M_s J_s.

    J_s is the Jacobian of the distribution parameters at state s and M_s their Fisher metric, so F is the Hessian of
    the mean KL at `parameters` (Schulman et al. 2015, arXiv 1502.05477, appendix C) in Gauss-Newton form: positive
    semi-definite by construction. The forward pass is linearised once; a product costs one tangent and one
    cotangent sweep.

    Args:
        distribution_of: parameters -> distribution over a batch of states, every leaf [..., k], or [k] if all states
            share it.
        parameters: where F is taken.
        weights: [...] weight of each state, summing to one.
        damping: lambda in F + lambda I.
    """
    distribution, tangent_of = jax.linearize(distribution_of, parameters)
    cotangent_of = jax.linear_transpose(tangent_of, parameters)

    def weighted(leaf: jax.Array) -> jax.Array:
        # A leaf without the states' axes is shared by them all, and so is its cotangent.
        return leaf * (weights[..., None] if leaf.ndim > weights.ndim else jnp.sum(weights))

    def product(vector: Parameters) -> Parameters:
        metric: Any = distribution.fisher_metric(tangent_of(vector))
        (pulled_back,) = cotangent_of(jax.tree.map(weighted, metric))
        return tree_add_scale(pulled_back, jnp.asarray(damping, weights.dtype), vector)

    return product
