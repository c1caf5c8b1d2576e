"""The cost of a Fisher product by XLA's own count of floating point operations."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from trpo_brax.benchmark.update import TimedUpdate
from trpo_brax.config import TrustRegionConfig
from trpo_brax.policy import Networks


@dataclasses.dataclass(frozen=True)
class ProductCost:
    """One Fisher product's operations, in forward passes of the policy over the same samples."""

    counted: float
    """Of the programs as they are handed to XLA: every operation of a matrix product, an activation or a sum, once."""
    compiled: float | None
    """Of the programs as XLA optimised them, work that it chose to do twice included; None where it does not say."""
    closed_form: float
    """Of the matrix products alone: the least that tangent and cotangent sweep need."""


def product_cost(networks: Networks, settings: TrustRegionConfig, samples: int) -> ProductCost:
    """Count the operations of one product.

    The compiler counts a loop's body once, so nothing counted here holds a loop: a product is the difference between
    two of them one after the other and one, which leaves out the linearisation that they share.

    Args:
        networks: whose policy.
        settings: of the step; its damping is part of a product.
        samples: S, over which both are taken.
    """
    parameters = networks.initial_policy(jax.random.PRNGKey(0))
    update = TimedUpdate(networks.distribution, parameters, settings)
    vector = jax.ShapeDtypeStruct(update.vector.shape, update.vector.dtype)
    observations = jax.ShapeDtypeStruct((samples, networks.observation_size), jnp.float32)
    weights = jax.ShapeDtypeStruct((samples,), jnp.float32)

    def products(count: int) -> Any:
        return jax.jit(update.chained(count)).lower(vector, observations, weights, vector)

    forward, one, two = jax.jit(update.policy).lower(vector, observations), products(1), products(2)
    return ProductCost(
        counted=(_flops(two) - _flops(one)) / _flops(forward),
        compiled=_ratio_compiled(forward, one, two),
        closed_form=closed_form(
            (networks.observation_size, *networks.policy.hidden_sizes, networks.policy.action_size)
        ),
    )


def closed_form(sizes: Sequence[int]) -> float:
    """Return 4 - 2 (observation h_1) / sum_l in_l out_l, in forward passes of a multilayer perceptron.

    In units of its sum of in x out, a forward pass is 1; the tangent sweep multiplies every layer's input by a change
    of its weights and, behind the first layer, a change of its input by its weights; the cotangent sweep is that,
    transposed.

    Args:
        sizes: observation, hidden layers', action.
    """
    products = [inside * outside for inside, outside in itertools.pairwise(sizes)]
    return 4.0 - 2.0 * products[0] / sum(products)


def _flops(stage: Any) -> float:
    return float(stage.cost_analysis()["flops"])


def _ratio_compiled(forward: Any, one: Any, two: Any) -> float | None:
    try:
        counts = [_flops(lowered.compile()) for lowered in (forward, one, two)]
    except (KeyError, TypeError, NotImplementedError):
        return None  # Not every backend tells.
    return (counts[2] - counts[1]) / counts[0] if counts[0] > 0 else None
