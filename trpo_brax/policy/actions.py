"""From a policy's raw action to the action an environment receives."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class ActionBounds:
    """Lowest and highest action per component, as the environment's `step` takes them; infinite where unbounded."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        """Number of action components."""
        return len(self.low)

    @property
    def bounded(self) -> tuple[bool, ...]:
        """Whether a component has both bounds."""
        return tuple(bool(both) for both in np.isfinite(self.low) & np.isfinite(self.high))

    @property
    def centre(self) -> np.ndarray:
        """Middle of the range [A]; 0 where a side is unbounded."""
        low, high = self._finite_bounds
        return (0.5 * (low + high)).astype(np.float32)

    @property
    def half_range(self) -> np.ndarray:
        """Half the width of the range [A]; 1 where a side is unbounded."""
        low, high = self._finite_bounds
        return (0.5 * (high - low)).astype(np.float32)

    @property
    def _finite_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest action [A]; -1 and 1 where a side is unbounded."""
        bounded = np.array(self.bounded)
        return np.where(bounded, self.low, -1.0), np.where(bounded, self.high, 1.0)

    def to_environment(self, raw: jax.Array) -> jax.Array:
        """Scale raw actions [..., A] (units of half the range around its centre) and clip them to the bounds."""
        scaled = self.centre + self.half_range * raw
        return jnp.clip(scaled, np.asarray(self.low, np.float32), np.asarray(self.high, np.float32))

    def saturated(self, raw: jax.Array) -> jax.Array:
        """Return bool [..., A]: where `to_environment` clips."""
        scaled = self.centre + self.half_range * raw
        return (scaled < np.asarray(self.low, np.float32)) | (scaled > np.asarray(self.high, np.float32))
