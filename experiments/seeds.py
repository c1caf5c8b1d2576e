"""Train all seeds of a configuration in one program, and keep a row a seed in tables that scripts fill side by side."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import trpo_brax as tb
from trpo_brax.config import Config
from trpo_brax.evaluation import summarize
from trpo_brax.runs.evaluator import Evaluator

EPISODES = 1000
"""Of each seed's last policy, acting by its mean action, drawn from a stream that no training uses."""
_EVALUATION = (
    "return_mean",
    "return_std",
    "return_min",
    "return_quantile_05",
    "return_cvar_05",
    "length_mean",
    "failure_rate",
)

Row = dict[str, Any]


def trained(config: Config, folder: Path) -> tb.Run:
    """Train, or go on with what was stopped, or open what is finished; another configuration is refused."""
    run = tb.train(config, run_dir=folder, resume=(folder / "config.json").is_file())
    if run.summary["status"] != "finished":
        raise SystemExit(f"{folder} was stopped; start the script again to go on.")
    return run


def seed_rows(run: tb.Run, names: Row, episode_length: int | None = None) -> list[Row]:
    """Return a row a seed, which begins with `names`; of episodes with the training's time limit where not told."""
    provenance = json.loads((run.path / "provenance.json").read_text())
    kind = provenance["devices"][0].partition(" ")[2]
    records = run.metrics()
    evaluator = Evaluator(run, episodes=EPISODES, episode_length=episode_length)
    rows = []
    for seed in run.config.seeds:
        report = summarize(evaluator.run(EPISODES, policy_seed=seed))
        returns = [record["episode_return_mean"] for record in records if record["seed"] == seed]
        rows.append(
            {
                **names,
                "seed": seed,
                "env_steps": run.summary["env_steps"],
                "seconds_of_all_seeds": round(run.summary["wall_time_s"], 1),
                "episodes": EPISODES,
                **{name: short(getattr(report, name)) for name in _EVALUATION},
                "sampled_return": short(statistics.mean([value for value in returns if value is not None][-5:])),
                "commit": provenance["git"]["commit"][:12]
                + "+" * ("b/trpo_brax/" in (provenance["git"]["diff"] or "")),
                "processor": provenance["processor"] if kind == "cpu" else kind,
                "devices": len(provenance["devices"]),
                "jax": provenance["versions"]["jax"],
                "brax": provenance["versions"]["brax"],
            }
        )
    return rows


def seconds_of_a_seed(row: Row, rows: Sequence[Row]) -> float:
    """Return a seed's share of the seconds of the program that it was trained in, of a task's `rows`."""
    together = [other["seconds_of_all_seeds"] for other in rows].count(row["seconds_of_all_seeds"])
    return float(row["seconds_of_all_seeds"]) / together


def over_seeds(rows: Sequence[Row]) -> Row:
    """Return what the seeds of a task have in common."""
    returns = [float(row["return_mean"]) for row in rows]
    failures = [float(row["failure_rate"]) for row in rows]
    lower, median, upper = np.quantile(returns, (0.25, 0.5, 0.75))
    return {
        "worst_seed": short(min(returns)),
        "lower_quartile": short(float(lower)),
        "median": short(float(median)),
        "interquartile_range_over_median": f"{abs((upper - lower) / median):.4f}",
        "worst_5_percent": short(float(np.mean([float(row["return_cvar_05"] or "nan") for row in rows]))),
        "worst_episode": min((row["return_min"] for row in rows), key=float),
        "failure_rate_mean": f"{np.mean(failures):.4f}",
        "failure_rate_worst_seed": f"{max(failures):.4f}",
    }


def short(value: Any) -> Any:
    """Return a float as six digits, anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else value


def write(file: Path, rows: Sequence[Row]) -> None:
    """Write rows with the same columns."""
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(file: Path) -> list[Row]:
    """Return the rows of a file, none where there is no file."""
    if not file.is_file():
        return []
    with file.open() as opened:
        return [dict(row) for row in csv.DictReader(opened)]


def with_those_of(file: Path, mine: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows of a file, read anew, and `mine`, in place of those that `names` call as they call mine."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(str(row[name]) for name in names)

    replaced = {key(row) for row in mine}
    return [*(row for row in read(file) if key(row) not in replaced), *mine]
