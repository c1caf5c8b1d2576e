"""Learning curves over seeds: which runs belong together, and what their seeds say together."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trpo_brax.checked import walk
from trpo_brax.config import Config, shaping_differences
from trpo_brax.errors import UserError
from trpo_brax.evaluation.across_time import detrended_spread, worst_drawdowns
from trpo_brax.evaluation.interquartile import Floats, bootstrap_interval, interquartile_mean
from trpo_brax.runs.files import write_text

Axis = Literal["env_steps", "wall_time"]

_SEEDS = {"seed", "num_seeds"}
_MOST_SEEDS = 10_000
_DRAWN = ("env_steps", "wall_time_s", "episode_return_mean", "episodes")
_LARGEST = 2.0**128
"""Of what is drawn: returns are a device's float32."""
_MOST_POINTS = 2000
"""Of a drawn curve: a few for every pixel."""


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """One run as it was recorded."""

    name: str
    """For messages."""
    config: Config
    records: Sequence[dict[str, Any]]
    """Of metrics.jsonl; those without `seed` are of the configuration's."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The training returns of one seed, [iterations] each."""

    env_steps: Floats
    wall_time: Floats
    """Seconds of the whole run: seeds trained together share them."""
    returns: Floats
    """NaN where no episode ended."""
    episodes: Floats
    """Episodes that ended."""

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]]) -> Curve:
        """Return the curve of one seed's records, in whatever order they come."""
        rows = sorted(records, key=lambda record: record["iteration"])
        return cls(*(np.array([row[name] for row in rows], np.float64) for name in _DRAWN))  # None becomes NaN

    def smoothed(self, window: int) -> Curve:
        """Return the curve of the mean over all episodes that ended in an iteration or the `window` - 1 before it."""
        if window == 1:
            return self
        known = ~np.isnan(self.returns)
        weights = np.where(known, self.episodes, 0.0)
        box, length = np.ones(window), len(weights)
        episodes = np.convolve(weights, box)[:length] if length else weights
        sums = np.convolve(weights * np.where(known, self.returns, 0.0), box)[:length] if length else weights
        returns = np.divide(sums, episodes, out=np.full(length, np.nan), where=episodes > 0)
        return dataclasses.replace(self, returns=returns, episodes=episodes)

    def points(self, axis: Axis) -> tuple[Floats, Floats]:
        """Return where there are returns, and which."""
        known = ~np.isnan(self.returns)
        return (self.env_steps if axis == "env_steps" else self.wall_time)[known], self.returns[known]


@dataclasses.dataclass(frozen=True)
class CurveGroup:
    """The curves of one task and one configuration, a curve a seed."""

    task: str
    label: str
    """What sets the configuration apart from the task's others; empty where there is no other."""
    curves: tuple[Curve, ...]

    def across_time(self) -> tuple[float, float] | None:
        """Return the detrended spread and the worst drawdowns of a seed, means over seeds; None without two returns."""
        known = [returns for _, returns in (curve.points("env_steps") for curve in self.curves) if returns.size > 1]
        if not known:
            return None
        return float(np.mean([*map(detrended_spread, known)])), float(np.mean([*map(worst_drawdowns, known)]))


@dataclasses.dataclass(frozen=True)
class Band:
    """What the K seeds of a group say together, at X places."""

    task: str
    label: str
    seeds: int
    """K."""
    x: Floats
    """[X], control steps or seconds."""
    iqm: Floats
    """[X], interquartile mean of the seeds that are present."""
    low: Floats
    """[X], 95% bootstrap interval; NaN where a seed is absent, and everywhere for one seed."""
    high: Floats
    """[X]."""
    present: np.ndarray
    """[X], how many seeds have a return at or before and at or after x."""
    across_time: tuple[float, float] | None
    """Of the group."""


def group_runs(runs: Iterable[RecordedRun]) -> list[CurveGroup]:
    """Put runs that differ only in seed, and in what does not shape learning, into one group.

    Groups stand in the order of their first runs. A run without a record adds no seed.

    Raises:
        UserError: two runs hold the same seed of the same configuration, which would count it twice, or a record lacks
            what is drawn.
    """
    members: list[list[RecordedRun]] = []
    for run in runs:
        for group in members:
            if set(shaping_differences(group[0].config, run.config)) <= _SEEDS:
                group.append(run)
                break
        else:
            members.append([run])
    groups = []
    for group in members:
        config = group[0].config
        rivals = [other[0].config for other in members if _task(other[0].config) == _task(config)]
        groups.append(CurveGroup(_task(config), _label(config, rivals), _curves_by_seed(group)))
    return groups


def band(group: CurveGroup, axis: Axis = "env_steps", window: int = 1) -> Band:
    """Return the interquartile mean over a group's seeds and its 95% bootstrap interval.

    Seeds meet at every place where one of them has a return, or, where those are thousands, at as many even places.
    Between two of its own returns a seed is interpolated linearly; before its first and after its last it is absent.
    There is an interval only where no seed is absent.

    Args:
        group: its curves.
        axis: what to put the returns against.
        window: smooth over so many iterations; 1: not at all.
    """
    points = [curve.smoothed(window).points(axis) for curve in group.curves]
    x = np.unique(np.concatenate([np.empty(0), *(places for places, _ in points)]))
    if x.size > _MOST_POINTS:
        x = np.linspace(x[0], x[-1], _MOST_POINTS)
    seeds = len(points)
    absent = np.full(x.size, np.nan)
    own = [np.interp(x, *known, left=np.nan, right=np.nan) if known[0].size else absent for known in points]
    returns = np.sort(np.reshape(own, (seeds, x.size)), axis=0)  # absent seeds come last; the seeds' order is forgotten
    present = np.count_nonzero(~np.isnan(returns), axis=0)
    iqm, low, high = absent.copy(), absent.copy(), absent.copy()
    for count in np.unique(present[present > 0]):
        at = present == count
        iqm[at] = interquartile_mean(returns[:count, at])
    complete = present == seeds
    if seeds > 1 and complete.any():
        low[complete], high[complete] = bootstrap_interval(returns[:, complete])
    return Band(group.task, group.label, seeds, x, iqm, low, high, present, group.across_time())


def write_bands(bands: Sequence[Band], file: Path, axis: Axis = "env_steps") -> None:
    """Write the numbers of a picture as CSV, whole or not at all; where there is no interval its ends are empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("task", "group", "wall_time_s" if axis == "wall_time" else axis, "iqm", "low", "high", "seeds"))
    for one in bands:
        for x, *returns, seeds in zip(one.x, one.iqm, one.low, one.high, one.present, strict=True):
            told = ("" if np.isnan(value) else f"{value:.8g}" for value in returns)
            writer.writerow((one.task, one.label, f"{x:.12g}", *told, seeds))
    write_text(file, text.getvalue())


def _task(config: Config) -> str:
    return config.environment or config.task


def _label(config: Config, rivals: Sequence[Config]) -> str:
    """Return the fields that shape learning and are not the same in all of a task's configurations."""
    # What is not the same in all of them is not the same in this one and some other.
    different = {name for rival in rivals for name in shaping_differences(config, rival)} - _SEEDS
    return ", ".join(f"{name} {value}" for name, value, _ in walk(config) if name in different)


def _curves_by_seed(runs: Sequence[RecordedRun]) -> tuple[Curve, ...]:
    records: dict[int, list[dict[str, Any]]] = {}
    owners: dict[int, RecordedRun] = {}
    for run in runs:
        for record in run.records:
            seed = int(record.get("seed", run.config.seed))
            owner = owners.setdefault(seed, run)
            if owner is not run:
                raise UserError(
                    f"{owner.name} and {run.name} both hold seed {seed} of one configuration, and a seed counts once: "
                    "leave one of them out."
                )
            missing = [name for name in _DRAWN if not can_be_drawn(record.get(name, ""))]
            if missing:
                raise UserError(
                    f"{run.name} cannot be drawn: {missing[0]} of iteration {record['iteration']} is no number."
                )
            records.setdefault(seed, []).append(record)
    if len(records) > _MOST_SEEDS:
        raise UserError(f"{len(records)} seeds are too many for one curve: at most {_MOST_SEEDS}.")
    return tuple(Curve.of(records[seed]) for seed in sorted(records))


def can_be_drawn(value: Any) -> bool:
    """Return whether a metric is none, or a number that a picture can hold."""
    return value is None or (isinstance(value, (int, float)) and -_LARGEST < value < _LARGEST)
