"""Return against step size: this trainer's over its trust region, Brax PPO's over its learning rate.

    python experiments/step_size.py --tasks hopper reacher --seconds 120

PPO's learning rates span two decades around the one that its authors published, with all else as they published it.
A run ends after `--seconds` of training, if not before, and is not repeated; ours are the `region_of` rows of
dynamics.py. Results go to experiments/results/step_size/: ppo.csv, a row a seed, and step_size.png.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tyro

from experiments.dynamics import RESULTS as DYNAMICS
from experiments.dynamics import VARIANTS
from experiments.peers.compare import last_of, trained
from experiments.peers.train import Job
from experiments.seeds import Row, read, with_those_of, write
from trpo_brax.evaluation.interquartile import bootstrap_interval, interquartile_mean
from trpo_brax.views.plots import save_figure, trim

RESULTS = Path(__file__).parent / "results" / "step_size"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Return against step size: this trainer's over its trust region, Brax PPO's over its learning rate."""

    tasks: tuple[str, ...] = ()
    """Tasks to train PPO on; none: the picture alone."""
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    """Learning rates of PPO."""
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    """Seeds of each."""
    seconds: float = 120.0
    """Training seconds after which a run is cut off."""
    runs_dir: Path = Path("runs/step_size")
    """Where the runs and the compilation cache are kept."""


def keep(row: Row) -> None:
    """Add a run to ppo.csv."""
    rows = with_those_of(RESULTS / "ppo.csv", [row], ["task", "learning_rate", "seed"])
    rows.sort(key=lambda row: (row["task"], float(row["learning_rate"]), int(row["seed"])))
    write(RESULTS / "ppo.csv", rows)


def our_rows() -> list[Row]:
    """Return the runs of dynamics.py with another trust region, by their largest KL divergence."""
    regions = {name: one.settings["max_kl"] for name, one in VARIANTS.items() if name.startswith("region_of")}
    rows = [row for row in read(DYNAMICS / "runs.csv") if row["variant"] in regions]
    return [{**row, "step_size": regions[row["variant"]]} for row in rows]


def draw() -> None:
    """Draw a row for each task of both, ours on the left: each seed, and their interquartile mean with its interval."""
    from matplotlib.figure import Figure

    ours, peers = our_rows(), [{**row, "step_size": row["learning_rate"]} for row in read(RESULTS / "ppo.csv")]
    tasks = sorted({row["task"] for row in ours} & {row["task"] for row in peers})
    if not tasks:
        return
    figure = Figure(figsize=(9, 2.8 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 2, sharey="row", squeeze=False)
    sides = ((ours, "trpo_brax", "largest KL divergence, nats"), (peers, "Brax PPO", "learning rate"))
    for task, pair in zip(tasks, panels, strict=True):
        for panel, (rows, trainer, axis) in zip(pair, sides, strict=True):
            own = [(float(row["step_size"]), float(row["return_mean"])) for row in rows if row["task"] == task]
            sizes = sorted({size for size, _ in own})
            found = [np.array([[value] for size, value in own if size == one]) for one in sizes]
            middle = np.array([interquartile_mean(values)[0] for values in found])
            low, high = (np.ravel(ends) for ends in zip(*map(bootstrap_interval, found), strict=True))
            panel.errorbar(sizes, middle, (middle - low, high - middle), color="#D55E00", lw=2, capsize=3)
            panel.plot(*zip(*own, strict=True), "o", color="#0072B2", ms=3, alpha=0.6)
            panel.set(title=f"{task}, {trainer}", xlabel=axis, xscale="log")
            trim(panel)
        pair[0].set_ylabel("return without noise")
    save_figure(figure, RESULTS / "step_size.png")


def main(arguments: Arguments) -> None:
    """Run what has not been run yet and draw what there is."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in arguments.tasks:
        for rate in arguments.learning_rates:
            for seed in arguments.seeds:
                folder = arguments.runs_dir / f"{task}-ppo-{rate:g}-{seed}"
                job = Job(task, "ppo", seed, folder, rate, arguments.seconds, points=1)
                keep({"learning_rate": rate, **last_of(trained(job))})
    draw()


if __name__ == "__main__":
    main(tyro.cli(Arguments))
