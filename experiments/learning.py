"""Train tasks with their presets over many seeds, all seeds of a task in one program; keep curves as CSV and draw them.

    python experiments/learning.py --tasks hopper --num-seeds 10 --cpu-devices 1

A run that was stopped is resumed and a finished one is not repeated, so the script can be started again at any time,
and two of them may run beside each other. What is reported is of `--seed 20`; presets were chosen on seeds 100 and up.
Results go to experiments/results/learning/: a CSV of the iterations of each task, summary.csv with a row a seed (the
last policy acting by its mean action, 1,000 episodes drawn from a stream that no training uses), tasks.csv with a row a
task, and learning.png. Other seeds are added to those that are there: with another `--seed`, and another `--runs-dir`.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro

import trpo_brax as tb
from experiments.seeds import Row, over_seeds, read, seconds_of_a_seed, seed_rows, short, trained, with_those_of, write
from trpo_brax.presets import PRESETS

RESULTS = Path(__file__).parent / "results" / "learning"
CURVE = (
    "iteration",
    "env_steps",
    "episodes",
    "episode_return_mean",
    "episode_return_std",
    "episode_length_mean",
    "evaluation_return_mean",
    "kl_mean",
    "max_kl",
    "step_outcome",
    "step_fraction",
    "entropy",
    "explained_variance",
    "cg_relative_residual",
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train tasks with their presets over many seeds; keep the curves as CSV and draw them."""

    tasks: tuple[str, ...] = ()
    """Tasks to train; none: the tables and the picture alone."""
    seed: int = 0
    """First seed of each task."""
    num_seeds: int = 10
    """Seeds of each task."""
    runs_dir: Path = Path("runs/learning")
    """Where the run folders are kept."""
    cpu_devices: int | None = None
    """As of trpo-brax train; 1 to run two of these scripts side by side."""


def run(task: str, arguments: Arguments) -> tb.Run:
    """Train one task with all seeds, or go on with it, or open it if it is finished."""
    config = tb.override(
        tb.preset(task),
        seed=arguments.seed,
        num_seeds=arguments.num_seeds,
        cpu_devices=arguments.cpu_devices,
        final_evaluation_episodes=0,
    )
    return trained(config, arguments.runs_dir / task)


def write_curves(one: tb.Run) -> None:
    """Write the iterations of a task's seeds to one CSV file: all, or of more than 400 the first 60 and every k-th.

    What was evaluated is always among them, and what learning looks like while it is under way (test_findings.py).
    """
    every = -(-one.config.total_iterations // 400)

    def kept(row: Row) -> bool:
        return row["iteration"] <= 60 or row["iteration"] % every == 0 or row["evaluation_return_mean"] is not None

    table = RESULTS / f"{one.config.task}.csv"
    rows = [{name: short(row.get(name)) for name in ("seed", *CURVE)} for row in one.metrics() if kept(row)]
    write(table, with_those_of(table, rows, ["seed"]))


def task_rows(rows: Sequence[Row]) -> list[Row]:
    """Return a row a task: what its seeds have in common."""
    told = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        steps = int(own[0]["env_steps"])
        told.append(
            {
                "task": task,
                "seeds": len(own),
                "env_steps": own[0]["env_steps"],
                "steps_per_second": round(steps / seconds_of_a_seed(own[0], own)),
                **over_seeds(own),
                "commit": own[0]["commit"],
            }
        )
    return told


def draw() -> None:
    """Draw the curves of the CSV files, a panel a task and a thin line a seed, their median a thick one."""
    from matplotlib.figure import Figure

    tasks = [task for task in PRESETS if (RESULTS / f"{task}.csv").is_file()]
    columns = 3
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, task in zip(panels, tasks, strict=False):
        with (RESULTS / f"{task}.csv").open() as file:
            table = [row for row in csv.DictReader(file) if row["evaluation_return_mean"]]
        seeds = sorted({row["seed"] for row in table}, key=int)
        steps = sorted({int(row["env_steps"]) for row in table})
        curves = {(row["seed"], int(row["env_steps"])): float(row["evaluation_return_mean"]) for row in table}
        values = np.array([[curves[seed, step] for step in steps] for seed in seeds])
        x = np.array(steps) / 1e6
        panel.plot(x, values.T, color="#0072B2", lw=0.6, alpha=0.5)
        panel.plot(x, np.median(values, axis=0), color="#D55E00", lw=2, label=f"median of {len(seeds)} seeds")
        panel.set(title=task, xlabel="million control steps", xlim=(0, None))
        panel.legend(frameon=False, loc="lower right", fontsize=8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    panels[0].set_ylabel("return by the mean action")
    figure.savefig(RESULTS / "learning.png", dpi=110)


def main(arguments: Arguments) -> None:
    """Train, write and draw."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = RESULTS / "summary.csv"
    for task in arguments.tasks:
        one = run(task, arguments)
        write_curves(one)
        rows = with_those_of(table, seed_rows(one, {"task": task}), ["task", "seed"])
        rows.sort(key=lambda row: (row["task"], int(row["seed"])))
        write(table, rows)
    write(RESULTS / "tasks.csv", task_rows(read(table)))
    draw()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
