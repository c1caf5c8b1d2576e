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
    """[..., A], or [A] where all states share it, natural logarithm."""

    def mode(self) -> jax.Array:
        """Return the most likely action [..., A]."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one action [..., A]."""
        return self.shifted(jax.random.normal(key, self.mean.shape, self.mean.dtype))

    def shifted(self, noise: jax.Array) -> jax.Array:
        """Return the actions [..., A] that lie `noise` [..., A] standard deviations from the mean."""
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, actions: jax.Array) -> jax.Array:
        """Return the log density [...] of actions [..., A], in nats."""
        standardized = (actions - self.mean) * jnp.exp(-self.log_std)
        return -0.5 * jnp.sum(jnp.square(standardized), axis=-1) - self._log_normalizer()

    def kl(self, new: DiagonalGaussian) -> jax.Array:
        """Return KL(self || new) [...], in nats; exactly 0 where the two are equal."""
        change = new.log_std - self.log_std
        distance = jnp.square((new.mean - self.mean) * jnp.exp(-new.log_std))
        return jnp.sum(change + 0.5 * jnp.expm1(-2.0 * change), axis=-1) + 0.5 * jnp.sum(distance, axis=-1)

    def entropy(self) -> jax.Array:
        """Return the differential entropy, in nats: [...], or [] where all states share it."""
        return self._log_normalizer() + 0.5 * self.mean.shape[-1]

    def fisher_metric(self, tangent: DiagonalGaussian) -> DiagonalGaussian:
        """Apply the Fisher metric, 1/sigma^2 on the mean and 2 on log sigma, to a tangent of the parameters."""
        return DiagonalGaussian(
            mean=tangent.mean * jnp.exp(-2.0 * self.log_std),
            log_std=2.0 * tangent.log_std,
        )

    def _log_normalizer(self) -> jax.Array:
        return jnp.sum(self.log_std, axis=-1) + 0.5 * math.log(2 * math.pi) * self.mean.shape[-1]
