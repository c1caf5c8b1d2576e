"""From the results of the runs to curves.csv, runs.csv, summary.csv and setup.json."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.peers.settings import VARIANTS, VariantName, num_envs

Result = dict[str, Any]
"""The content of a result.json."""

WALL_CLOCK_MARKS = (5, 10, 30, 60, 120)
"""Training seconds at which returns are compared."""
_POINT = ("env_steps", "training_seconds", "return_mean", "return_std", "return_min", "length_mean")


def write_tables(folder: Path, results: Sequence[Result]) -> None:
    """Write every table."""
    folder.mkdir(parents=True, exist_ok=True)
    order = list(VARIANTS)
    results = sorted(results, key=lambda r: (r["task"], order.index(r["variant"]), r["devices"], r["seed"]))
    trained = [result for result in results if result["ended_by"] != "start"]
    starts = [result for result in results if result["ended_by"] == "start"]
    _write(folder / "curves.csv", [row for result in trained for row in _curve_rows(result)])
    _write(folder / "runs.csv", [_run_row(result) for result in results])
    _write(folder / "summary.csv", summary_rows(trained, starts))


def write_setup(folder: Path, results: Sequence[Result], origin: Mapping[str, str], seconds: float) -> None:
    """Write on what the figures were measured."""
    setup = {
        **origin,
        "platform": results[0]["platform"],
        "devices": sorted({result["devices"] for result in results}),
        "budget_seconds": seconds,
        "versions": results[0]["versions"],
    }
    (folder / "setup.json").write_text(json.dumps(setup, indent=2) + "\n")


def quoted(trained: Iterable[Result], variant: VariantName, task: str) -> list[Result]:
    """Return the runs of a variant on the number of devices on which it is faster, by its fastest run."""
    runs = [result for result in trained if (result["variant"], result["task"]) == (variant, task)]
    counts = sorted({result["devices"] for result in runs})
    if not counts:
        return []
    best = max(counts, key=lambda count: _speed(runs, count) or 0.0)
    return [result for result in runs if result["devices"] == best]


def return_at(result: Result, seconds: float) -> float | None:
    """Return the mean return of the last policy evaluated by then.

    None where there was none yet, or where the run had been cut off before: it would have gone on learning.
    """
    if result["ended_by"] == "budget" and result["training_seconds"] < seconds:
        return None
    known = [point["return_mean"] for point in result["points"] if point["training_seconds"] <= seconds]
    return known[-1] if known else None


def summary_rows(trained: Sequence[Result], starts: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one row a trainer, setting and task; speeds are medians over seeds, on the better number of devices."""
    rows = []
    for task in sorted({result["task"] for result in trained}):
        ours = _measures(trained, starts, "trpo_brax", task)
        for variant in VARIANTS:
            runs = quoted(trained, variant, task)
            if not runs:
                continue
            measures = _measures(trained, starts, variant, task)
            every = [result for result in trained if (result["variant"], result["task"]) == (variant, task)]
            speeds = {count: _speed(every, count) for count in sorted({result["devices"] for result in every})}
            row: dict[str, Any] = {
                "task": task,
                "trainer": VARIANTS[variant].trainer,
                "setting": VARIANTS[variant].setting,
                "num_envs": num_envs(variant, task),
                "devices": runs[0]["devices"],
                "steps_per_second": _short(measures["speed"]),
                "steps_per_second_by_devices": "; ".join(f"{count}: {speed:.6g}" for count, speed in speeds.items()),
                "ours_over_theirs": _ratio(ours["speed"], measures["speed"]),
                "seeds": len(runs),
                "ended_by": "; ".join(result["ended_by"] for result in runs),
                "env_steps_median": _short(statistics.median(result["env_steps"] for result in runs)),
                "training_seconds_median": _short(statistics.median(result["training_seconds"] for result in runs)),
                "final_returns": "; ".join(f"{result['points'][-1]['return_mean']:.6g}" for result in runs),
            }
            for mark in WALL_CLOCK_MARKS:
                known = [value for result in runs if (value := return_at(result, mark)) is not None]
                row[f"return_at_{mark}_s"] = _short(statistics.median(known)) if len(known) == len(runs) else ""
            row |= {
                "cold_start_seconds": _short(measures["cold"]),
                "cold_start_ours_over_theirs": _ratio(ours["cold"], measures["cold"]),
                "warm_start_seconds": _short(measures["warm"]),
                "unit_steps": runs[0]["unit_steps"],
                "unit_seconds": _short(runs[0]["unit_steps"] / measures["speed"]),
            }
            rows.append(row)
    return rows


def _measures(
    trained: Sequence[Result], starts: Sequence[Result], variant: VariantName, task: str
) -> dict[str, float | None]:
    runs = quoted(trained, variant, task)
    began = [result for result in starts if (result["variant"], result["task"]) == (variant, task)]
    cold = [
        statistics.median(result["start_seconds"] for result in began if result["devices"] == count)
        for count in {result["devices"] for result in began}
    ]
    return {
        "speed": max((result["steps_per_second"] for result in runs), default=None),
        "cold": min(cold, default=None),
        "warm": statistics.median(result["start_seconds"] for result in runs) if runs else None,
    }


def _speed(runs: Iterable[Result], devices: int) -> float | None:
    """Return the steps/s of the fastest run: a busy machine slows a run, and never speeds one up."""
    return max((result["steps_per_second"] for result in runs if result["devices"] == devices), default=None)


def _curve_rows(result: Result) -> list[dict[str, Any]]:
    variant = VARIANTS[result["variant"]]
    return [
        {
            "trainer": variant.trainer,
            "setting": variant.setting,
            "task": result["task"],
            "seed": result["seed"],
            "devices": result["devices"],
            **{name: _short(point[name]) for name in _POINT},
        }
        for point in result["points"]
    ]


def _run_row(result: Result) -> dict[str, Any]:
    variant = VARIANTS[result["variant"]]
    started_only = result["ended_by"] == "start"
    return {
        "trainer": variant.trainer,
        "setting": variant.setting,
        "task": result["task"],
        "seed": result["seed"],
        "devices": result["devices"],
        "cache": "cold" if started_only else "warm",
        "start_seconds": _short(result["start_seconds"]),
        "unit_steps": result["unit_steps"],
        "ended_by": result["ended_by"],
        "env_steps": result["env_steps"],
        "training_seconds": "" if started_only else _short(result["training_seconds"]),
        "steps_per_second": "" if started_only else _short(result["steps_per_second"]),
        "final_return": "" if started_only else _short(result["points"][-1]["return_mean"]),
    }


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.3g}" if ours and theirs else ""


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
