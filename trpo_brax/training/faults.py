"""Reading off an iteration's records whether something in it was not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_ALWAYS_FINITE = (
    "surrogate_improvement",
    "surrogate_improvement_predicted",
    "kl_mean",
    "kl_max",
    "cg_relative_residual",
    "entropy",
    "critic_loss",
    "advantage_max_abs",
)
"""Quantities that every iteration has, whatever its episodes did."""


def too_many(rows: Sequence[dict[str, Any]], limit: float) -> str | None:
    """Return a sentence where a record's share of non-finite transitions is above `limit`, else None."""
    for row in rows:
        if row["nonfinite_share"] > limit:
            whose = f" of seed {row['seed']}" if len({other["seed"] for other in rows}) > 1 else ""
            return (
                f"{row['nonfinite_share']:.1%} of the transitions of iteration {row['iteration']}{whose} were not "
                f"finite, more than max_nonfinite_share allows ({limit:.1%})"
            )
    return None


def seen(row: dict[str, Any]) -> str | None:
    """Return what a record says was not finite, in words, None where nothing was."""
    if row["nonfinite_envs"]:
        return f"{row['nonfinite_envs']} environments were not finite"
    if row["step_outcome"] == "non_finite":
        return "the policy's step was not finite"
    missing = [name for name in _ALWAYS_FINITE if row[name] is None]
    return f"{missing[0]} was not finite" if missing else None
