"""Pictures of what went on inside training: trust region, surrogate, step outcomes, critic, entropy, speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.config import Config
from trpo_brax.errors import UserError
from trpo_brax.evaluation.interquartile import Floats
from trpo_brax.views.curves import Axis, RecordedRun, can_be_drawn
from trpo_brax.views.plots import COLOURS, X_LABELS, save_figure, trim

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

    run: int
    """Which of the runs."""
    colour: str
    x: Floats
    rows: Sequence[dict[str, Any]]

    def values(self, name: str) -> Floats:
        """Return a quantity, NaN where it has no value."""
        return _values(self.rows, name)

    def accepted(self, name: str) -> Floats:
        """Return a quantity of the accepted steps, NaN elsewhere: a refused step has none."""
        accepted = [row.get("step_outcome") == "accepted" for row in self.rows]
        return np.where(accepted, self.values(name), np.nan)


def training_panels(records: Sequence[dict[str, Any]], config: Config, file: Path) -> None:
    """Draw what went on inside one run's training.

    Args:
        records: of metrics.jsonl.
        config: of the run.
        file: PNG to write.

    Raises:
        OSError: it cannot be written.
    """
    name = (config.environment or config.task).rpartition(":")[2]
    seeds = f"seeds {config.seeds[0]} to {config.seeds[-1]}" if config.num_seeds > 1 else f"seed {config.seed}"
    save_figure(training_figure([RecordedRun(f"{name}, {seeds}", config, records)]), file)


def training_figure(runs: Sequence[RecordedRun], axis: Axis = "env_steps") -> Figure:
    """Return six panels: KL, surrogate improvement, step outcomes, explained variance, entropy and throughput.

    A run has one colour; the seeds of a run are thin lines, and their median is a thick one.

    Args:
        runs: at least one; those of one picture are told apart by their names.
        axis: what to put the metrics against.

    Raises:
        UserError: there are more runs than colours.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    if len(runs) > len(COLOURS):
        raise UserError(f"{len(runs)} runs are too many for one picture: at most {len(COLOURS)}.")
    seeds = [seed for index, run in enumerate(runs) for seed in _seeds(index, run, axis)]
    height = 6.9 + (0.2 * len(runs) if len(runs) > 1 else 0.0)
    # Every run draws one of these when it ends: finding the margins anew would take as long as all the rest.
    figure = Figure(figsize=(6.7, height), layout="constrained" if len(runs) > 1 else None)
    panels = figure.subplots(3, 2, sharex=True).ravel()
    _draw_kl(panels[0], seeds, runs)
    _draw_improvement(panels[1], seeds, len(runs))
    _draw_outcomes(panels[2], seeds, len(runs))
    _draw_explained(panels[3], seeds)
    _draw(panels[4], seeds, "entropy", "entropy of the policy", "nats")
    each = " of a seed" if len(seeds) > len(runs) else ""
    _draw(panels[5], seeds, "steps_per_second", "throughput", f"control steps / s{each}")
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
    names = [run.name.replace("$", r"\$") for run in runs]
    if len(runs) == 1:
        figure.suptitle(names[0], fontsize=10)
        figure.subplots_adjust(left=0.1, right=0.98, top=0.915, bottom=0.065, hspace=0.22, wspace=0.3)
    else:
        handles = [panels[4].plot([], [], color=COLOURS[index], label=name)[0] for index, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _seeds(index: int, run: RecordedRun, axis: Axis) -> list[_Seed]:
    rows: dict[int, list[dict[str, Any]]] = {}
    for record in sorted(run.records, key=lambda record: record["iteration"]):
        rows.setdefault(record.get("seed", run.config.seed), []).append(record)
    name = "env_steps" if axis == "env_steps" else "wall_time_s"
    return [_Seed(index, COLOURS[index], _values(rows[seed], name), rows[seed]) for seed in sorted(rows)]


def _values(rows: Sequence[dict[str, Any]], name: str) -> Floats:
    values = (row.get(name) for row in rows)
    return np.array([value if can_be_drawn(value) else None for value in values], np.float64)  # None becomes NaN


def _draw(panel: Axes, seeds: Sequence[_Seed], name: str, title: str, unit: str) -> None:
    _lines(panel, seeds, [seed.values(name) for seed in seeds])
    _entitle(panel, title, unit)


def _lines(
    panel: Axes, seeds: Sequence[_Seed], values: Sequence[Floats], *, style: str = "-", colour: str | None = None
) -> None:
    known = [(seed, y) for seed, y in zip(seeds, values, strict=True) if np.isfinite(y).any()]
    if not known:
        panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center", fontsize=8, color="0.4")
        panel.set_yticks([])
    for run in dict.fromkeys(seed.run for seed, _ in known):
        own = [(seed, y) for seed, y in known if seed.run == run]
        for seed, y in own:
            alone = len(own) == 1
            marker = "." if alone and np.isfinite(y).sum() <= 50 else ""
            width, alpha = (1.1, 1.0) if alone else (0.6, 0.45)
            panel.plot(seed.x, y, color=colour or seed.colour, ls=style, marker=marker, ms=3, lw=width, alpha=alpha)
        if len(own) > 1:
            x, median = _median(own)
            panel.plot(x, median, color=colour or own[0][0].colour, ls=style, lw=1.4)


def _median(own: Sequence[tuple[_Seed, Floats]]) -> tuple[Floats, Floats]:
    """Return the median over seeds at each place where one of them was."""
    x = np.concatenate([seed.x for seed, _ in own])
    y = np.concatenate([values for _, values in own])
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    places = np.unique(x)
    order = np.argsort(x, kind="stable")
    parts = np.split(y[order], np.searchsorted(x[order], places[1:]))
    return places, np.array([np.median(part) for part in parts])


def _draw_kl(panel: Axes, seeds: Sequence[_Seed], runs: Sequence[RecordedRun]) -> None:
    _lines(panel, seeds, [seed.accepted("kl_mean") for seed in seeds])
    _entitle(panel, "mean KL of accepted steps", "nats")
    limits = sorted({run.config.trust_region.max_kl for run in runs})
    for limit in limits:
        panel.axhline(limit, color="0.2", ls="--", lw=1, label="max_kl" if limit == limits[0] else None)
    panel.set_ylim(0, None)


def _draw_improvement(panel: Axes, seeds: Sequence[_Seed], runs: int) -> None:
    """Draw the surrogate's improvement, and what the gradient predicted of a step of that length."""
    predicted = [seed.accepted("surrogate_improvement_predicted") for seed in seeds]
    colour = COLOURS[1] if runs == 1 else None
    _lines(panel, seeds, [seed.accepted("surrogate_improvement") for seed in seeds])
    if any(np.isfinite(one).any() for one in predicted):
        _lines(panel, seeds, predicted, style=":", colour=colour)
        panel.plot([], [], color=COLOURS[0] if runs == 1 else "0.2", lw=1.1, label="actual")
        panel.plot([], [], color=colour or "0.2", lw=1.1, ls=":", label="predicted")
    _entitle(panel, "improvement of the surrogate", "std of advantages")


def _draw_outcomes(panel: Axes, seeds: Sequence[_Seed], runs: int) -> None:
    """Draw the shares of step outcomes, stacked; of several runs, the share of accepted steps of each."""
    for run in range(runs):
        own = [seed for seed in seeds if seed.run == run]
        words = [(seed.x, [row.get("step_outcome") for row in seed.rows]) for seed in own]
        edges, shares = outcome_shares(words, MOST_BINS if runs == 1 else MOST_BINS // 3)
        if runs > 1:
            panel.stairs(shares["accepted"], edges, baseline=None, color=COLOURS[run], lw=1.2)
            continue
        below = np.zeros(len(edges) - 1)
        for outcome, colour in OUTCOMES.items():
            if shares[outcome].any():
                top = below + shares[outcome]
                panel.stairs(top, edges, baseline=below, fill=True, color=colour, label=outcome.replace("_", " "))
                below = top
    panel.set_ylim(0, 1.02)
    _entitle(panel, "step outcomes" if runs == 1 else "accepted steps", "share of steps")


def outcome_shares(seeds: Sequence[tuple[Floats, Sequence[Any]]], most: int) -> tuple[Floats, dict[str, Floats]]:
    """Return the edges of at most `most` bins along a run, and each outcome's share of the steps in them.

    An iteration's step is drawn from the end of the one before to its own. A bin without steps has shares of 0.

    Args:
        seeds: of each, where its iterations ended and their outcomes.
        most: bins.
    """
    x = np.concatenate([np.empty(0), *(places for places, _ in seeds)])
    outcomes = np.array([outcome for _, words in seeds for outcome in words], object)
    known = np.isfinite(x) & np.isin(outcomes, list(OUTCOMES)) if x.size else np.zeros(0, bool)
    ends = np.unique(x[known])
    if not ends.size:
        return np.array([0.0, 1.0]), {outcome: np.zeros(1) for outcome in OUTCOMES}
    width = -(-ends.size // most)
    edges = np.unique(np.concatenate([[0.0], ends[width - 1 :: width], ends[-1:]]))
    bins = np.clip(np.searchsorted(edges, x[known]) - 1, 0, len(edges) - 2)
    total = np.bincount(bins, minlength=len(edges) - 1)
    counts = {outcome: np.bincount(bins[outcomes[known] == outcome], minlength=len(edges) - 1) for outcome in OUTCOMES}
    return edges, {outcome: count / np.maximum(total, 1) for outcome, count in counts.items()}


def _draw_explained(panel: Axes, seeds: Sequence[_Seed]) -> None:
    values = [np.maximum(seed.values("explained_variance"), _LEAST_EXPLAINED) for seed in seeds]
    _lines(panel, seeds, values)
    panel.axhline(0, color="0.2", lw=0.8)
    panel.set_ylim(min([-0.1, *(np.nanmin(one) - 0.05 for one in values if np.isfinite(one).any())]), 1.02)
    _entitle(panel, "variance explained by the critic", "share of the targets' variance")


def _entitle(panel: Axes, title: str, unit: str) -> None:
    panel.set_title(title, fontsize=9)
    panel.set_ylabel(unit, fontsize=8)
