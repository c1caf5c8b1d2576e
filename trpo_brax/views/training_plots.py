"""Pictures of what went on inside training: trust region, surrogate, step outcomes, critic, entropy, speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.evaluation.interquartile import Floats
from trpo_brax.views.curves import Axis, RecordedRun, can_be_drawn
from trpo_brax.views.plots import BLUE, ORANGE, X_LABELS, trim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTCOMES = {
    "accepted": "#56B4E9",
    "kl_exceeded": "#D55E00",
    "no_improvement": "#E69F00",
    "non_finite": "#000000",
    "zero_gradient": "#CC79A7",
    "bad_curvature": "#009E73",
}
"""Step outcome -> its colour."""
MOST_BINS = 50
"""Of the step outcomes along a run: a bin is wide enough to be seen."""
_LEAST_EXPLAINED = -1.0
"""Explained variance has no lower end; a critic below this is as bad as one at it."""


@dataclasses.dataclass(frozen=True)
class _Seed:
    """The metrics of one seed, in the order of its iterations."""

    x: Floats
    rows: Sequence[dict[str, Any]]

    def values(self, name: str) -> Floats:
        """Return a quantity, NaN where it has no value."""
        return _values(self.rows, name)

    def accepted(self, name: str) -> Floats:
        """Return a quantity of the accepted steps, NaN elsewhere: a refused step has none."""
        accepted = [row.get("step_outcome") == "accepted" for row in self.rows]
        return np.where(accepted, self.values(name), np.nan)


def training_figure(run: RecordedRun, axis: Axis = "env_steps") -> Figure:
    """Return six panels: KL, surrogate improvement, step outcomes, explained variance, entropy and throughput.

    The seeds of a run are thin lines, and their median is a thick one.

    Args:
        run: its name stands above the panels.
        axis: what to put the metrics against.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    seeds = _seeds(run, axis)
    # Margins are fixed: every run draws one of these when it ends, and finding them anew would double the time.
    figure = Figure(figsize=(6.7, 6.9))
    panels = figure.subplots(3, 2, sharex=True).ravel()
    _draw(panels[0], seeds, [seed.accepted("kl_mean") for seed in seeds], "mean KL of accepted steps", "nats")
    if seeds:
        panels[0].plot(seeds[0].x, seeds[0].values("max_kl"), color="0.2", ls="--", lw=1, label="max_kl")
    panels[0].set_ylim(0, None)
    _draw_improvement(panels[1], seeds)
    _draw_outcomes(panels[2], seeds)
    _draw_explained(panels[3], seeds)
    _draw(panels[4], seeds, [seed.values("entropy") for seed in seeds], "entropy of the policy", "nats")
    speed = "control steps / s of a seed" if len(seeds) > 1 else "control steps / s"
    _draw(panels[5], seeds, [seed.values("steps_per_second") for seed in seeds], "throughput", speed)
    panels[5].set_ylim(0, None)
    panels[5].yaxis.set_major_formatter(EngFormatter(sep=""))
    for panel in panels:
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        trim(panel)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=7, framealpha=0.9, edgecolor="none")
    panels[0].set_xlim(0, None)
    for panel in panels[4:]:
        panel.set_xlabel(X_LABELS[axis], fontsize=8)
    figure.suptitle(run.name.replace("$", r"\$"), fontsize=10)
    figure.subplots_adjust(left=0.1, right=0.98, top=0.915, bottom=0.065, hspace=0.22, wspace=0.3)
    return figure


def _seeds(run: RecordedRun, axis: Axis) -> list[_Seed]:
    rows: dict[int, list[dict[str, Any]]] = {}
    for record in sorted(run.records, key=lambda record: record["iteration"]):
        rows.setdefault(record.get("seed", run.config.seed), []).append(record)
    name = "env_steps" if axis == "env_steps" else "wall_time_s"
    return [_Seed(_values(rows[seed], name), rows[seed]) for seed in sorted(rows)]


def _values(rows: Sequence[dict[str, Any]], name: str) -> Floats:
    values = (row.get(name) for row in rows)
    return np.array([value if can_be_drawn(value) else None for value in values], np.float64)  # None becomes NaN


def _draw(panel: Axes, seeds: Sequence[_Seed], values: Sequence[Floats], title: str, unit: str) -> None:
    _entitle(panel, title, unit)
    if not any(np.isfinite(y).any() for y in values):
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", fontsize=8, color="0.4")
        panel.set_yticks([])
    _lines(panel, seeds, values, BLUE, "-")


def _lines(panel: Axes, seeds: Sequence[_Seed], values: Sequence[Floats], colour: str, style: str) -> None:
    known = [(seed.x, y) for seed, y in zip(seeds, values, strict=True) if np.isfinite(y).any()]
    for x, y in known:
        marker = "." if len(known) == 1 and np.isfinite(y).sum() <= 50 else ""
        width, alpha = (1.1, 1.0) if len(known) == 1 else (0.6, 0.45)
        panel.plot(x, y, color=colour, ls=style, marker=marker, ms=3, lw=width, alpha=alpha)
    if len(known) > 1:
        panel.plot(*_median(known), color=colour, ls=style, lw=1.4)


def _median(known: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Return the median over seeds at each place where one of them was."""
    x, y = (np.concatenate(parts) for parts in zip(*known, strict=True))
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    places = np.unique(x)
    order = np.argsort(x, kind="stable")
    parts = np.split(y[order], np.searchsorted(x[order], places[1:]))
    return places, np.array([np.median(part) for part in parts])


def _draw_improvement(panel: Axes, seeds: Sequence[_Seed]) -> None:
    """Draw the surrogate's improvement, and what the gradient predicted of a step of that length."""
    actual = [seed.accepted("surrogate_improvement") for seed in seeds]
    predicted = [seed.accepted("surrogate_improvement_predicted") for seed in seeds]
    _draw(panel, seeds, actual, "improvement of the surrogate", "std of advantages")
    if any(np.isfinite(one).any() for one in predicted):
        _lines(panel, seeds, predicted, ORANGE, ":")
        panel.plot([], [], color=BLUE, lw=1.1, label="actual")
        panel.plot([], [], color=ORANGE, lw=1.1, ls=":", label="predicted")


def _draw_outcomes(panel: Axes, seeds: Sequence[_Seed]) -> None:
    """Draw the shares of step outcomes, stacked."""
    edges, shares = outcome_shares([(seed.x, [row.get("step_outcome") for row in seed.rows]) for seed in seeds])
    below = np.zeros(len(edges) - 1)
    for outcome, colour in OUTCOMES.items():
        if shares[outcome].any():
            top = below + shares[outcome]
            panel.stairs(top, edges, baseline=below, fill=True, color=colour, label=outcome.replace("_", " "))
            below = top
    panel.set_ylim(0, 1.02)
    _entitle(panel, "step outcomes", "share of steps")


def outcome_shares(seeds: Sequence[tuple[Floats, Sequence[Any]]]) -> tuple[Floats, dict[str, Floats]]:
    """Return the edges of at most `MOST_BINS` bins along a run, and each outcome's share of the steps in them.

    An iteration's step is drawn from the end of the one before to its own. A bin without steps has shares of 0.

    Args:
        seeds: of each, where its iterations ended and their outcomes.
    """
    x = np.concatenate([np.empty(0), *(places for places, _ in seeds)])
    outcomes = np.array([outcome for _, words in seeds for outcome in words], object)
    known = np.isfinite(x) & np.isin(outcomes, list(OUTCOMES)) if x.size else np.zeros(0, bool)
    ends = np.unique(x[known])
    if not ends.size:
        return np.array([0.0, 1.0]), {outcome: np.zeros(1) for outcome in OUTCOMES}
    width = -(-ends.size // MOST_BINS)
    edges = np.unique(np.concatenate([[0.0], ends[width - 1 :: width], ends[-1:]]))
    bins = np.clip(np.searchsorted(edges, x[known]) - 1, 0, len(edges) - 2)
    total = np.bincount(bins, minlength=len(edges) - 1)
    counts = {outcome: np.bincount(bins[outcomes[known] == outcome], minlength=len(edges) - 1) for outcome in OUTCOMES}
    return edges, {outcome: count / np.maximum(total, 1) for outcome, count in counts.items()}


def _draw_explained(panel: Axes, seeds: Sequence[_Seed]) -> None:
    values = [np.maximum(seed.values("explained_variance"), _LEAST_EXPLAINED) for seed in seeds]
    _draw(panel, seeds, values, "variance explained by the critic", "share of the targets' variance")
    panel.axhline(0, color="0.2", lw=0.8)
    panel.set_ylim(min([-0.1, *(np.nanmin(one) - 0.05 for one in values if np.isfinite(one).any())]), 1.02)


def _entitle(panel: Axes, title: str, unit: str) -> None:
    panel.set_title(title, fontsize=9)
    panel.set_ylabel(unit, fontsize=8)
