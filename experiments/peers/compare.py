"""Brax PPO and Brax SAC by their authors' settings beside this trainer's presets: same task, physics and evaluator.

    python experiments/peers/compare.py --tasks hopper --seeds 20 21 22 23 24 --seconds 1200

One run after another, each in a process of its own on one device; a finished run is not repeated, so the script can be
stopped and started again, and two of them may run beside each other on other tasks. It adds to what is there:

- runs.csv, a row a seed: the last policy over 1,000 episodes without noise (their mode, our mean action);
- curves.csv, a row a policy on the way, over 128 episodes;
- tasks.csv, a row a task and trainer: interquartile means with 95% bootstrap intervals at the end, at this trainer's
  training seconds and at its steps; how probably a run of this trainer is better after its seconds; the worst seed,
  failures; and across time, of the policies on the way (Chan et al. 2020): the interquartile range of a seed's changes
  and the mean of the worst 5% of its drawdowns, means over seeds;
- a picture against steps, one against training seconds, and the performance profiles of ours and PPO's.

A peer's run ends after the steps that its authors published or after `--seconds` of training, whichever is first.
Training seconds hold no imports, compilation or evaluation. This trainer's runs are those of learning.py, all seeds of
a task in one program on one device: a seed's seconds are its share of the program's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from experiments.peers.settings import PPO, SAC, Trainer
from experiments.peers.train import Job
from experiments.seeds import Row, over_seeds, read, seconds_of_a_seed, short, with_those_of, write
from trpo_brax.evaluation.interquartile import bootstrap_interval, interquartile_mean
from trpo_brax.views.curves import Curve, CurveGroup, band
from trpo_brax.views.plots import COLOURS, groups_figure, save_figure, trim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = Path(__file__).parents[1] / "results" / "learning"
RESULTS = Path(__file__).parents[1] / "results" / "peers"
NAMES = {"ours": "trpo_brax", "ppo": "Brax PPO", "sac": "Brax SAC"}
_FINAL = ("return_mean", "return_std", "return_min", "return_cvar_05", "length_mean", "failure_rate")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare this trainer with Brax PPO and Brax SAC."""

    tasks: tuple[str, ...] = ()
    """Tasks to train; none: the tables and pictures alone."""
    trainers: tuple[Trainer, ...] = ("ppo", "sac")
    """Which of the two; SAC where its authors use it."""
    seeds: tuple[int, ...] = (20, 21, 22, 23, 24)
    """Seeds of each task."""
    seconds: float = 1200.0
    """Training seconds after which a run is cut off."""
    runs_dir: Path = Path("runs/peers")
    """Where the runs and the compilation cache are kept."""


def trained(job: Job) -> Row:
    """Train in a process of its own, or read what is there."""
    folder = job.folder.resolve()
    if not (folder / "result.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "experiments.peers.train"]
        for name, value in dataclasses.asdict(dataclasses.replace(job, folder=folder)).items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
        with (folder / "log.txt").open("w") as log:
            ended = subprocess.run(words, env=os.environ | cache, stdout=log, stderr=subprocess.STDOUT, check=False)
        if ended.returncode:
            raise SystemExit(f"{folder.name} failed with status {ended.returncode}; see {folder / 'log.txt'}.")
    result: Row = json.loads((folder / "result.json").read_text())
    return result


def last_of(result: Row) -> Row:
    """Return a row of what a run ended with."""
    last = result["points"][-1]
    return {
        "task": result["task"],
        "trainer": NAMES[result["trainer"]],
        "seed": result["seed"],
        "env_steps": last["env_steps"],
        "seconds": short(last["seconds"]),
        "ended_by": result["ended_by"],
        "episodes": last["episodes"],
        **{key: short(last[key]) for key in _FINAL},
        "processor": result["provenance"]["processor"],
        "jax": result["provenance"]["versions"]["jax"],
        "brax": result["provenance"]["versions"]["brax"],
    }


def keep(result: Row) -> None:
    """Add a run to runs.csv and curves.csv."""
    curve = [
        {
            "task": result["task"],
            "trainer": NAMES[result["trainer"]],
            "seed": result["seed"],
            "env_steps": point["env_steps"],
            "seconds": short(point["seconds"]),
            "return_mean": short(point["return_mean"]),
        }
        for point in result["points"]
    ]
    for table, mine in (("curves.csv", curve), ("runs.csv", [last_of(result)])):
        rows = with_those_of(RESULTS / table, mine, ["task", "trainer", "seed"])
        rows.sort(key=lambda row: (row["task"], row["trainer"], int(row["seed"]), int(row["env_steps"])))
        write(RESULTS / table, rows)


def ours(task: str) -> tuple[list[Row], list[Row]]:
    """Return this trainer's policies on the way, and its last ones, as the peers' tables have them."""
    finals = [row for row in read(OURS / "summary.csv") if row["task"] == task]
    last = {}
    for row in finals:
        last[row["seed"]] = {**row, "trainer": NAMES["ours"], "seconds": seconds_of_a_seed(row, finals)}
    curve = [
        {
            "task": task,
            "trainer": NAMES["ours"],
            "seed": row["seed"],
            "env_steps": row["env_steps"],
            "seconds": float(row["env_steps"]) / float(last[row["seed"]]["env_steps"]) * last[row["seed"]]["seconds"],
            "return_mean": row["evaluation_return_mean"],
        }
        for row in read(OURS / f"{task}.csv")
        if row["evaluation_return_mean"] and row["seed"] in last
    ]
    return curve, list(last.values())


def group_of(task: str, trainer: str, rows: Sequence[Row]) -> CurveGroup:
    """Return the curves of a task and trainer, a curve a seed."""
    curves = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        own = [row for row in rows if row["seed"] == seed]
        steps, seconds, returns = (
            np.array([float(row[key]) for row in own]) for key in ("env_steps", "seconds", "return_mean")
        )
        curves.append(Curve(steps, seconds, returns, np.ones_like(steps)))
    return CurveGroup(task, trainer, tuple(curves))


def told(values: Sequence[float]) -> str:
    """Return the interquartile mean and its interval as words."""
    found = np.asarray(values, float)[:, None]
    if len(found) < 2 or not np.isfinite(found).all():
        return ""
    low, high = bootstrap_interval(found)
    return f"{interquartile_mean(found)[0]:.6g} ({low[0]:.6g} to {high[0]:.6g})"


def at(curve: Curve, axis: np.ndarray, place: float) -> float:
    """Return the return at a place along an axis: of the last policy, where training had ended before.

    Of the first one, where there is none yet: one unit of PPO's progress may take longer than our whole training.
    """
    return float(np.interp(place, axis, curve.returns))


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how often a run of ours is better than one of theirs, a tie counting half (Agarwal et al. 2021, eq. 2)."""
    margin = np.subtract.outer(np.asarray(ours), np.asarray(theirs))
    return float(np.mean((np.sign(margin) + 1) / 2))


def profiles(scores: Sequence[Mapping[str, Sequence[float]]]) -> Figure:
    """Draw what share of runs end above a score, and where 95% of stratified bootstraps do (Agarwal et al. 2021, 4.2).

    Args:
        scores: of each task the returns of each trainer's runs; 0 is to be the lowest of a task's, and 1 its highest.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.7, 3.7), layout="constrained")
    axes, rng, thresholds = figure.add_subplot(), np.random.default_rng(0), np.linspace(0, 1, 201)
    for trainer, colour in zip(scores[0], COLOURS, strict=False):
        drawn = []
        for own in scores:
            every = np.concatenate([np.asarray(one) for one in own.values()])
            above = np.asarray(own[trainer]) - every.min()
            scaled = above / np.ptp(every) if np.ptp(every) else np.ones_like(above)  # all are the best where all tie
            again = rng.integers(len(scaled), size=(2000, len(scaled)))
            again[0] = np.arange(len(scaled))  # the runs as they are
            drawn.append((scaled[again][..., None] > thresholds).mean(1))
        shares = np.mean(drawn, 0)
        axes.fill_between(thresholds, *np.quantile(shares, (0.025, 0.975), 0), color=colour, alpha=0.2, lw=0)
        axes.plot(thresholds, shares[0], color=colour, lw=2, label=trainer)
    axes.set(xlabel="score: 0 a task's worst run, 1 its best", ylabel="share of runs above it", ylim=(0, 1.02))
    axes.legend(frameon=False)
    trim(axes)
    return figure


def tables() -> None:
    """Write tasks.csv and the pictures of all that is there."""
    curves, runs = read(RESULTS / "curves.csv"), read(RESULTS / "runs.csv")
    rows, groups, scores = [], [], []
    for task in [name for name in PPO if (OURS / f"{name}.csv").is_file()]:
        own_curve, own_runs = ours(task)
        every = [*own_curve, *(row for row in curves if row["task"] == task)]
        finals = [*own_runs, *(row for row in runs if row["task"] == task)]
        if len(processors := sorted({row["processor"] for row in finals})) > 1:
            raise SystemExit(f"{task} was trained on {' and on '.join(processors)}, whose seconds are not the same.")
        steps, seconds = (float(np.mean([float(row[key]) for row in own_runs])) for key in ("env_steps", "seconds"))
        trainers = dict.fromkeys(row["trainer"] for row in every)
        then: dict[str, list[float]] = {}
        for trainer in trainers:
            group = group_of(task, trainer, [row for row in every if row["trainer"] == trainer])
            last = [row for row in finals if row["trainer"] == trainer]
            steadiness = group.across_time() or ("", "")
            at_our_seconds = then[trainer] = [at(one, one.wall_time, seconds) for one in group.curves]
            if len(trainers) > 1:
                groups.append(group)
            rows.append(
                {
                    "task": task,
                    "trainer": trainer,
                    "seeds": len(last),
                    "env_steps": round(np.median([float(row["env_steps"]) for row in last])),
                    "seconds": short(float(np.median([float(row["seconds"]) for row in last]))),
                    "at_the_end": told([float(row["return_mean"]) for row in last]),
                    "at_our_seconds": told(at_our_seconds),
                    "at_our_steps": told([at(one, one.env_steps, steps) for one in group.curves]),
                    "ours_is_better_then": short(probability_of_improvement(then[NAMES["ours"]], at_our_seconds)),
                    **over_seeds(last),
                    "detrended_spread": short(steadiness[0]),
                    "worst_drawdowns": short(steadiness[1]),
                }
            )
        if NAMES["ppo"] in then:
            scores.append({name: then[name] for name in (NAMES["ours"], NAMES["ppo"])})
    write(RESULTS / "tasks.csv", rows)
    if scores:
        save_figure(profiles(scores), RESULTS / "profiles.png")
    for axis in ("env_steps", "wall_time"):
        figure = groups_figure([band(one, axis) for one in groups], axis, 1)
        for panel in figure.axes:
            panel.set_ylabel("return without noise")
        save_figure(figure, RESULTS / f"{axis}.png")


def main(arguments: Arguments) -> None:
    """Run what has not been run yet, and make tables and pictures of all that is there."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in arguments.tasks:
        for trainer in arguments.trainers:
            if trainer == "sac" and task not in SAC:
                continue
            for seed in arguments.seeds:
                folder = arguments.runs_dir / f"{task}-{trainer}-{seed}"
                keep(trained(Job(task, trainer, seed, folder, seconds=arguments.seconds)))
    tables()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
