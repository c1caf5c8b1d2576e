"""The cost of a Fisher product by XLA's own count of floating point operations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from trpo_brax.benchmark.update import chained_products, of_vector
from trpo_brax.config import TrustRegionConfig
from trpo_brax.errors import UserError
from trpo_brax.policy import Networks


def counting_device() -> jax.Device:
    """Return a CPU: only its client counts the operations of what is not compiled.

    Raises:
        UserError: JAX was told to start no client for the CPU.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        settings: Any = jax.config
        platforms = settings.jax_platforms
        raise UserError(f"operations are counted on a CPU, and JAX_PLATFORMS={platforms} has none: add cpu.") from error


def product_forward_passes(networks: Networks, settings: TrustRegionConfig, samples: int) -> float:
    """Return the operations of one Fisher product, in forward passes of the policy over the same samples.

    Of the programs as they are handed to XLA: every operation of a matrix product, an activation or a sum, once. The
    compiler counts a loop's body once, so nothing counted here holds a loop: a product is the difference between two of
    them one after the other and one, which leaves out the linearisation that they share.

    Args:
        networks: whose policy.
        settings: of the step; its damping is part of a product.
        samples: S, over which both are taken.
    """
    theta, policy = of_vector(networks.distribution, networks.initial_policy(jax.random.PRNGKey(0)))
    vector = jax.ShapeDtypeStruct(theta.shape, theta.dtype)
    observations = jax.ShapeDtypeStruct((samples, networks.observation_size), jnp.float32)
    weights = jax.ShapeDtypeStruct((samples,), jnp.float32)

    def flops(function: Any, *arguments: Any) -> float:
        with jax.default_device(counting_device()):
            lowered: Any = jax.jit(function).lower(*arguments)
        return float(lowered.cost_analysis()["flops"])

    products = [chained_products(policy, settings.damping, count) for count in (1, 2)]
    one, two = (flops(chain, vector, observations, weights, vector) for chain in products)
    return (two - one) / flops(policy, vector, observations)
