"""Train a task with other settings than its preset's on seeds 100 and up, and keep what came of it.

    python experiments/tuning.py hopper --settings critic_fraction=0.1 --num-seeds 5 --cpu-devices 1

The presets were chosen by these runs and dynamics.py's; what the README reports is of other seeds. Where a preset is
annealed, total_steps is the annealing's length as well, and the trust region shrinks to a tenth of max_kl. Results go
to experiments/results/tuning.csv: a row a seed, by all that its run's settings changed of the defaults at its commit
(with + behind it where the package's files had been changed since), and by the time limit of the evaluation's episodes
(evaluated_over), where it is not the training's. What that took of each task, dynamics.py's runs included, is in
tuning_budget.csv.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

import trpo_brax as tb
from experiments.seeds import Row, read, seed_rows, short, trained, with_those_of, write
from trpo_brax.checked import walk
from trpo_brax.config import Config, shaping_differences
from trpo_brax.presets import PRESETS

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "tuning.csv"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train a task with other settings than its preset's, and keep what came of it."""

    task: tyro.conf.Positional[str]
    """Task."""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=JSON ...")] = ()
    """What differs from its preset."""
    seed: int = 100
    """First seed."""
    num_seeds: int = 5
    """Seeds, trained in one program."""
    episode_length: int | None = None
    """Time limit of the evaluation's episodes, where it is not the training's: does the policy hold for longer?"""
    runs_dir: Path = Path("runs/tuning")
    """Where the run folders are kept."""
    cpu_devices: int | None = None
    """As of trpo-brax train; 1 to run two of these scripts side by side."""


def config_of(arguments: Arguments) -> Config:
    """Return the configuration of the run."""
    settings: dict[str, Any] = {name: json.loads(value) for name, value in (s.split("=") for s in arguments.settings)}
    base = tb.preset(arguments.task)
    if base.anneal_steps is not None:
        if "total_steps" in settings:
            settings.setdefault("anneal_steps", settings["total_steps"])
        if "max_kl" in settings:
            settings.setdefault("final_max_kl", settings["max_kl"] / 10)
    return tb.override(
        base,
        **settings,
        seed=arguments.seed,
        num_seeds=arguments.num_seeds,
        eval_every=0,
        final_evaluation_episodes=0,
        cpu_devices=arguments.cpu_devices,
    )


def told(config: Config) -> str:
    """Return what learning is shaped by and differs from the defaults."""
    changed = set(shaping_differences(Config(), config)) - {"task", "seed", "num_seeds"}
    return " ".join(f"{name}={value}" for name, value, _ in walk(config) if name in changed)


def budget() -> list[Row]:
    """Return a row a task: runs of a program, seeds in them, control steps of all, and hours of one device."""
    rows = [*read(TABLE), *read(RESULTS / "dynamics" / "runs.csv")]
    told = []
    for task in PRESETS:
        # What was evaluated in two ways was trained once.
        seeds = {(row["commit"], row["seconds_of_all_seeds"], row["seed"]): row for row in rows if row["task"] == task}
        runs = {(commit, seconds): float(seconds) for commit, seconds, _ in seeds}
        steps = sum(int(row["env_steps"]) for row in seeds.values()) / 1e6
        told.append(
            {
                "task": task,
                "runs": len(runs),
                "seeds": len(seeds),
                "million_steps": short(steps),
                "hours": short(sum(runs.values()) / 3600),
            }
        )
    return told


def main(arguments: Arguments) -> None:
    """Train, evaluate and write."""
    config = config_of(arguments)
    if arguments.episode_length is not None:
        tb.override(config, episode_length=arguments.episode_length)  # refused before training, not after it
    name = "_".join([arguments.task, *arguments.settings, str(arguments.seed)])
    run = trained(config, arguments.runs_dir / name.translate(str.maketrans("[]", "()")))  # no folder may have []
    settings = told(config)
    if arguments.episode_length is not None:
        settings += f" evaluated_over={arguments.episode_length}"
    mine = seed_rows(run, {"task": arguments.task, "settings": settings}, arguments.episode_length)
    write(TABLE, with_those_of(TABLE, mine, ["task", "settings", "env_steps", "seed", "commit", "processor"]))
    write(RESULTS / "tuning_budget.csv", budget())
    print(", ".join(row["return_mean"] for row in mine))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
