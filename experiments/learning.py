"""Train tasks with their presets over several seeds; keep the curves as CSV and draw them.

    python experiments/learning.py --tasks hopper reacher --seeds 0 1 2

A run that was stopped is resumed and a finished one is not repeated, so the script can be started again at any time.
Results go to experiments/results/learning/: a CSV of every iteration of each task, summary.csv with one row a run (the
last policy acting by its mode, 128 episodes drawn from a stream that no training uses), and learning.png.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

import trpo_brax as tb

RESULTS = Path(__file__).parent / "results" / "learning"
CURVE = (
    "iteration",
    "env_steps",
    "wall_time_s",
    "episodes",
    "episode_return_mean",
    "episode_return_std",
    "episode_return_min",
    "episode_length_mean",
    "kl_mean",
    "kl_max",
    "step_outcome",
    "step_fraction",
    "entropy",
    "explained_variance",
    "cg_relative_residual",
)
EVALUATION = ("episodes", "return_mean", "return_std", "return_min", "return_quantile_05", "length_mean")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train tasks with their presets over several seeds; keep the curves as CSV and draw them."""

    tasks: tuple[str, ...] = ("inverted_pendulum", "inverted_double_pendulum", "reacher", "hopper")
    """Tasks to train."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each task."""
    runs_dir: Path = Path("runs/learning")
    """Where the run folders are kept."""


def run(task: str, seed: int, folder: Path) -> tb.Run:
    """Train one task with one seed, or go on with it, or open it if it is finished."""
    config = tb.override(tb.preset(task), seed=seed)
    # Resuming a finished run does nothing, and one of another configuration is refused.
    trained = tb.train(config, run_dir=folder, resume=(folder / "config.json").is_file())
    if trained.summary["status"] != "finished":
        raise SystemExit(f"{folder} was stopped; start the script again to go on.")
    return trained


def write_curves(task: str, runs: Sequence[tb.Run]) -> None:
    """Write every iteration of a task's runs to one CSV file."""
    with (RESULTS / f"{task}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("task", "seed", *CURVE))
        for one in runs:
            for row in one.metrics():
                writer.writerow((task, one.config.seed, *(_short(row[name]) for name in CURVE)))


def summary_row(one: tb.Run) -> dict[str, Any]:
    """Return one run's row of summary.csv."""
    rows = one.metrics()
    provenance = json.loads((one.path / "provenance.json").read_text())
    return {
        "task": one.config.task,
        "seed": one.config.seed,
        "env_steps": one.summary["env_steps"],
        "training_seconds": round(one.summary["wall_time_s"], 1),
        "steps_per_second_median": round(statistics.median(row["steps_per_second"] for row in rows)),
        "training_return_mean": _short(one.summary["training"]["episode_return_mean"]),
        **{name: _short(one.summary["evaluation"][name]) for name in EVALUATION},
        "commit": provenance["git"]["commit"][:12],
        "processor": provenance["processor"],
        "devices": len(provenance["devices"]),
        "jax": provenance["versions"]["jax"],
        "brax": provenance["versions"]["brax"],
    }


def draw(tasks: Sequence[str]) -> None:
    """Draw the curves of the CSV files, a panel a task and a line a seed."""
    from matplotlib.figure import Figure

    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
    columns = 2
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, task in zip(panels, tasks, strict=False):
        with (RESULTS / f"{task}.csv").open() as file:
            table = [row for row in csv.DictReader(file) if row["episode_return_mean"]]
        for colour, seed in zip(colours, sorted({row["seed"] for row in table}), strict=False):
            curve = [row for row in table if row["seed"] == seed]
            steps = [float(row["env_steps"]) / 1e6 for row in curve]
            panel.plot(
                steps, [float(row["episode_return_mean"]) for row in curve], color=colour, lw=1.4, label=f"seed {seed}"
            )
        panel.set(title=task, xlabel="million control steps", xlim=(0, None))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    panels[0].set_ylabel("return (sampled actions)")
    panels[0].legend(frameon=False)
    figure.savefig(RESULTS / "learning.png", dpi=110)


def main(arguments: Arguments) -> None:
    """Train, write and draw."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = RESULTS / "summary.csv"
    known: dict[tuple[str, str], dict[str, Any]] = {}
    if table.is_file():
        with table.open() as file:
            known = {(row["task"], row["seed"]): row for row in csv.DictReader(file)}
    for task in arguments.tasks:
        runs = [run(task, seed, arguments.runs_dir / f"{task}-{seed}") for seed in arguments.seeds]
        write_curves(task, runs)
        known |= {(task, str(one.config.seed)): summary_row(one) for one in runs}
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, next(iter(known.values())).keys())
            writer.writeheader()
            writer.writerows(known[key] for key in sorted(known))
    draw(sorted(path.stem for path in RESULTS.glob("*.csv") if path.stem != "summary"))


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main(tyro.cli(Arguments))
