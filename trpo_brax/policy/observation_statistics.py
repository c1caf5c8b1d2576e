"""Running mean and variance of observations (Chan, Golub & LeVeque 1979), and the normalisation made of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class ObservationStatistics:
    """Moments of every observation used so far."""

    count: jax.Array
    """float32 []: observations seen."""
    mean: jax.Array
    """[observation]"""
    squares: jax.Array
    """[observation]: sum of squared deviations from the mean."""

    @classmethod
    def empty(cls, size: int) -> ObservationStatistics:
        """Return the statistics of nothing; they normalise as mean 0, standard deviation 1."""
        return cls(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size))

    @property
    def ready(self) -> jax.Array:
        """bool []: something was seen."""
        return self.count > 0

    def updated(self, observations: jax.Array, valid: jax.Array) -> ObservationStatistics:
        """Return the statistics with observations [N, T, observation] folded in where valid [N, T].

        A batch whose moments are not finite changes nothing.
        """
        used = valid[..., None]
        count = jnp.sum(valid.astype(jnp.float32))
        mean = jnp.sum(jnp.where(used, observations, 0.0), axis=(0, 1)) / jnp.maximum(count, 1.0)
        # A long float32 sum is off by hundreds of roundings; the deviations from it are small, and their sum is not.
        mean += jnp.sum(jnp.where(used, observations - mean, 0.0), axis=(0, 1)) / jnp.maximum(count, 1.0)
        squares = jnp.sum(jnp.where(used, jnp.square(observations - mean), 0.0), axis=(0, 1))
        total = self.count + count
        difference = mean - self.mean
        share = count / jnp.maximum(total, 1.0)
        new = ObservationStatistics(
            count=total,
            mean=self.mean + difference * share,
            squares=self.squares + squares + jnp.square(difference) * self.count * share,
        )
        sound = jnp.all(jnp.isfinite(new.mean)) & jnp.all(jnp.isfinite(new.squares)) & (count > 0)
        return jax.tree.map(lambda ours, theirs: jnp.where(sound, ours, theirs), new, self)

    def std(self) -> jax.Array:
        """Return the standard deviation [observation], 1 before anything was seen, never below 1e-4."""
        variance = self.squares / jnp.maximum(self.count, 1.0)
        return jnp.where(self.count > 0, jnp.sqrt(jnp.maximum(variance, 1e-8)), 1.0)

    def normalize(self, observations: jax.Array, clip: float) -> jax.Array:
        """Return observations [..., observation] in standard deviations from the mean, clipped to +-`clip`."""
        return jnp.clip((observations - self.mean) / self.std(), -clip, clip)
