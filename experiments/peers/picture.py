"""The picture of the comparison: return against environment steps and against wall-clock, a row a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.peers.settings import VARIANTS, VariantName
from experiments.peers.tables import Result, quoted

_STYLES: dict[VariantName, tuple[str, str]] = {
    "trpo_brax": ("#D55E00", "-"),
    "ppo-our-envs": ("#0072B2", "-"),
    "ppo-published": ("#0072B2", "--"),
    "ppo-playground": ("#0072B2", ":"),
    "sac-published": ("#CC79A7", "-"),
    "sb3-2-envs": ("#009E73", "-"),
    "sb3-512-envs": ("#009E73", "--"),
}
"""Colour (of a palette that colour-blind people can tell apart) and line of each variant."""
_COLUMNS = (("env_steps", "environment steps"), ("training_seconds", "training seconds"))


def draw(file: Path, trained: Sequence[Result]) -> None:
    """Draw the median over seeds as a line and their range as a band."""
    from matplotlib.figure import Figure

    tasks = sorted({result["task"] for result in trained}, reverse=True)
    figure = Figure(figsize=(9.6, 3.1 * len(tasks) + 0.6), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    handles: dict[str, Any] = {}
    for row, task in zip(panels, tasks, strict=True):
        for variant, (colour, line) in _STYLES.items():
            runs = quoted(trained, variant, task)
            if not runs:
                continue
            label = f"{VARIANTS[variant].trainer}, {VARIANTS[variant].setting}"
            for panel, (name, _) in zip(row, _COLUMNS, strict=True):
                grid, returns = _common(runs, name)
                (handles[label],) = panel.plot(
                    grid, np.median(returns, axis=0), line, color=colour, lw=1.6, marker="o", ms=2.5
                )
                panel.fill_between(grid, returns.min(axis=0), returns.max(axis=0), color=colour, alpha=0.18, lw=0)
        for panel, (_, name) in zip(row, _COLUMNS, strict=True):
            panel.set(xscale="log", xlabel=name)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set(ylabel="return (mode of the policy)", title=task)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=110)


def _common(runs: Sequence[Result], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return places along the axis that all runs reached, [P], and each run's return there, [runs, P]."""
    axes = [np.array([point[name] for point in run["points"]], float) for run in runs]
    first, last = max(axis[0] for axis in axes), min(axis[-1] for axis in axes)
    everywhere = np.unique(np.concatenate([*axes, [first, last]]))
    grid = everywhere[(everywhere >= first) & (everywhere <= last)] if first <= last else np.array([first])
    curves = [[point["return_mean"] for point in run["points"]] for run in runs]
    return grid, np.stack([np.interp(grid, axis, curve) for axis, curve in zip(axes, curves, strict=True)])
