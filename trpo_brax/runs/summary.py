"""What the records of a run add up to, and whether something in one was not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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


def mean_return(records: list[dict[str, Any]]) -> float | None:
    """Return the mean return of all episodes in the records, None if none ended."""
    # A mean can be null although episodes ended: finite rewards may add up to more than a float32.
    rows = [row for row in records if row["episodes"] and row["episode_return_mean"] is not None]
    if not rows:
        return None
    return float(np.average([row["episode_return_mean"] for row in rows], weights=[row["episodes"] for row in rows]))


def last_episodes(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean training return over the last tenth of the iterations, and how many episodes that is."""
    last = records[-1]["iteration"] if records else 0
    recent = [row for row in records if row["iteration"] > last - max(1, last // 10)]
    return {"episode_return_mean": mean_return(recent), "episodes": sum(row["episodes"] for row in recent)}
