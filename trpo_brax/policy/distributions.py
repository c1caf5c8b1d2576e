"""Action distributions: each owns its sampling, densities, divergence and Fisher metric."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class DiagonalGaussian:
    """Independent normal distributions over the components of an action, before any clipping to bounds."""

    mean: jax.Array
    """[..., A]"""
    log_std: jax.Array
    """[..., A], natural logarithm."""

    def mode(self) -> jax.Array:
        """Return the most likely action [..., A]."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one action [..., A]."""
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def log_prob(self, actions: jax.Array) -> jax.Array:
        """Return the log density [...] of actions [..., A], in nats."""
        standardized = (actions - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * jnp.square(standardized) - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def kl(self, new: DiagonalGaussian) -> jax.Array:
        """Return KL(self || new) [...], in nats; exactly 0 where the two are equal."""
        change = new.log_std - self.log_std
        distance = jnp.square((new.mean - self.mean) * jnp.exp(-new.log_std))
        return jnp.sum(change + 0.5 * jnp.expm1(-2.0 * change) + 0.5 * distance, axis=-1)

    def entropy(self) -> jax.Array:
        """Return the differential entropy [...], in nats."""
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def fisher_metric(self, tangent: DiagonalGaussian) -> DiagonalGaussian:
        """Apply the Fisher metric, 1/sigma^2 on the mean and 2 on log sigma, to a tangent of the parameters."""
        return DiagonalGaussian(
            mean=tangent.mean * jnp.exp(-2.0 * self.log_std),
            log_std=2.0 * tangent.log_std,
        )
