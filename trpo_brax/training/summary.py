"""What the records of a run add up to."""

from __future__ import annotations

from typing import Any

import numpy as np


def of_seed(records: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return the records of one seed."""
    return [row for row in records if row["seed"] == seed]


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
