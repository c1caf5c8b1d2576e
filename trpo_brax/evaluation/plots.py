"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE = "#0072B2", "#D55E00"
"""Two colours that every kind of colour vision tells apart (Okabe & Ito 2008)."""


def learning_curve(records: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Draw return against control steps, with the spread over the episodes that ended in each iteration.

    Args:
        records: of metrics.jsonl.
        file: PNG to write.
        title: above the curve.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [record for record in records if record["episode_return_mean"] is not None]
    steps = np.array([record["env_steps"] for record in rows], float)
    mean = np.array([record["episode_return_mean"] for record in rows], float)
    std = np.array([record["episode_return_std"] for record in rows], float)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.fill_between(steps, mean - std, mean + std, color=BLUE, alpha=0.2, lw=0, label="± 1 standard deviation")
    axes.plot(steps, mean, color=BLUE, lw=1.2, marker=".", ms=3, label="mean over episodes that ended")
    axes.set(title=title, xlabel="control steps", ylabel="return (sampled actions)", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(file, dpi=120)
