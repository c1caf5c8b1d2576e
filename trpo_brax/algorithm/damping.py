"""Damping that rises while steps are refused: a Levenberg-Marquardt rule in whole levels.

Where many steps in a row are refused, the quadratic model is wrong about the KL at the trust region's edge. More
damping turns the step towards the gradient and shortens it (Nocedal & Wright 2006, section 10.3); accepted steps take
it back.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from trpo_brax.algorithm.line_search import StepOutcome

_LEAST_RAISED = 1e-3
"""What level 1 grows from where the settings' own damping is smaller, 0 perhaps."""


class DampingSettings(Protocol):
    """The fields of `TrustRegionConfig` that the rule reads."""

    @property
    def damping(self) -> float: ...
    @property
    def damping_growth(self) -> float: ...
    @property
    def damping_patience(self) -> int: ...
    @property
    def damping_levels(self) -> int: ...


class DampingState(NamedTuple):
    """How far damping has been raised; whole numbers, so that coming back down is exact."""

    level: jax.Array
    """int32 []: times raised and not yet lowered again."""
    rejections: jax.Array
    """int32 []: refused steps in a row since the last change or accepted step."""

    @classmethod
    def initial(cls) -> DampingState:
        """Return the state before the first step."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def value(self, settings: DampingSettings) -> jax.Array:
        """Return float32 []: lambda in F + lambda I, `damping` x `damping_growth`^level; at level 0 `damping`."""
        raised = max(settings.damping, _LEAST_RAISED) * jnp.float32(settings.damping_growth) ** self.level
        return jnp.where(self.level > 0, raised, jnp.float32(settings.damping))

    def after(self, outcome: jax.Array, settings: DampingSettings) -> DampingState:
        """Return the state after a step.

        An accepted step lowers the level by one; `damping_patience` refused ones in a row raise it by one, up to
        `damping_levels`. A zero gradient asks for no step, and changes nothing.

        Args:
            outcome: int32 []: the step's `StepOutcome`.
            settings: a `TrustRegionConfig`.
        """
        accepted = outcome == StepOutcome.ACCEPTED
        rejections = self.rejections + 1
        raised = rejections >= settings.damping_patience
        level = jnp.where(accepted, self.level - 1, jnp.where(raised, self.level + 1, self.level))
        level = jnp.clip(level, 0, settings.damping_levels)
        rejections = jnp.where(accepted | raised, 0, rejections)
        nothing_asked = outcome == StepOutcome.ZERO_GRADIENT
        return DampingState(
            jnp.where(nothing_asked, self.level, level).astype(jnp.int32),
            jnp.where(nothing_asked, self.rejections, rejections).astype(jnp.int32),
        )
