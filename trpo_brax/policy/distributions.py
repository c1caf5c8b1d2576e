"""Action distributions: each owns its sampling, densities, divergence and Fisher metric."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class DiagonalGaussian:
    """Independent normal distributions over the components of an action, before any clipping to bounds."""

    mean: jax.Array
    """[..., A]"""
    log_std: jax.Array
    """[..., A], or [A] where all states share it, natural logarithm."""

    def mean_within(self, bounded: Sequence[bool]) -> jax.Array:
        """Return the mean action [..., A] once what is `bounded` [A] has been clipped to [-1, 1].

        E clip(a, -1, 1) = -1 + sigma (G((mean + 1) / sigma) - G((mean - 1) / sigma)), G(z) = z Phi(z) + phi(z): what
        an environment that clips receives on average. The mean itself acts harder near a bound than the samples that
        were rewarded.
        """
        std = jnp.maximum(jnp.exp(self.log_std), 1e-6)  # of next to none it is the clipped mean, and 0 would divide

        def rectified(z: jax.Array) -> jax.Array:
            """Return G, the mean of a standard normal that is moved by z and clipped at 0 from below."""
            density = jnp.exp(-0.5 * jnp.square(z)) / math.sqrt(2 * math.pi)
            return 0.5 * z * (1.0 + jax.lax.erf(z / math.sqrt(2))) + density

        clipped = std * (rectified((self.mean + 1) / std) - rectified((self.mean - 1) / std)) - 1
        return jnp.where(np.array(bounded), clipped, self.mean)

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
