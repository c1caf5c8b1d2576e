"""Run `trpo-brax bench` for several tasks on one device and on all, and keep the figures.

    python experiments/benchmarks.py --tasks inverted_pendulum hopper --critics preset one_step two_steps tenth adam

Writes experiments/results/benchmarks/: a JSON of everything that was measured for each task, number of devices and
critic, and summary.csv with one row each. What has a JSON already is not measured again. Run it on a machine that does
nothing else: every ratio is taken within one run, but a busy machine slows the columns unequally.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from trpo_brax.config import override
from trpo_brax.environments import brax_task
from trpo_brax.host.devices import usable_cores
from trpo_brax.presets import preset

RESULTS = Path(__file__).parent / "results" / "benchmarks"
CRITICS: dict[str, dict[str, Any]] = {
    "preset": {},
    "one_step": {"critic_steps": 1},
    "two_steps": {"critic_steps": 2},
    "tenth": {"critic_fraction": 0.1},
    "adam": {"critic": "adam", "critic_epochs": 10, "critic_minibatches": 8},
}
"""How the critic is fitted: what dynamics.py says each is worth, against what it costs."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Run `trpo-brax bench` for several tasks on one device and on all, and keep the figures."""

    tasks: tuple[str, ...] = ("inverted_pendulum", "hopper", "ant")
    """Tasks to measure."""
    devices: tuple[int, ...] = (1, usable_cores())
    """CPU devices to measure on."""
    critics: tuple[Literal["preset", "one_step", "two_steps", "tenth", "adam"], ...] = ("preset",)
    """Ways of fitting the critic; all but the preset's on the most devices alone."""
    repeats: int = 5
    """Timed repeats; medians are kept."""


def bench(task: str, devices: int, repeats: int, *more: str) -> dict[str, Any]:
    """Return the report of one benchmark, in a process of its own."""
    words = [sys.executable, "-m", "trpo_brax", "bench", task, "--cpu-devices", str(devices), "--repeats", str(repeats)]
    done = subprocess.run([*words, "--json", *more], stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def closed_form(sizes: Sequence[int]) -> float:
    """Return 4 - 2 (observation h_1) / sum_l in_l out_l: a Fisher product in forward passes of a multilayer perceptron.

    In units of its sum of in x out, a forward pass is 1; the tangent sweep multiplies every layer's input by a change
    of its weights and, behind the first layer, a change of its input by its weights; the cotangent sweep is that,
    transposed. Matrix products alone: the least that is needed.

    Args:
        sizes: observation, hidden layers', action.
    """
    products = [inside * outside for inside, outside in itertools.pairwise(sizes)]
    return 4.0 - 2.0 * products[0] / sum(products)


def least_product(task: str) -> float:
    """Return `closed_form` of a task's preset."""
    config = preset(task)
    loaded = brax_task(task, config.rollout.backend)
    return closed_form((loaded.observation_size, *config.network.policy_hidden_sizes, len(loaded.action_low)))


def summary_row(report: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that the README states."""
    parts, whole = report["parts_ms"], report["iteration_ms"]
    count = report["fisher_product_forward_passes"]
    start = report["first_iteration_seconds"] or {"cold": None, "warm": None}
    return {
        "task": report["task"],
        "critic": report["critic"],
        "devices": report["devices"],
        "num_envs": report["num_envs"],
        "unroll_length": report["unroll_length"],
        "physics_steps_per_second": round(report["physics_steps_per_second"]),
        "rollout_steps_per_second": round(report["rollout_steps_per_second"]),
        "training_steps_per_second": round(report["training_steps_per_second"]),
        "rollout_to_physics": round(report["rollout_to_physics"], 3),
        "training_to_physics": round(report["training_to_physics"], 3),
        "trust_region_share": round(parts["trust_region_step"] / whole, 3),
        "critic_share": round(parts["critic"] / whole, 3),
        "fisher_product_forward_passes": round(count, 3),
        "fisher_product_to_closed_form": round(count / least_product(report["task"]), 3),
        "first_iteration_cold_seconds": start["cold"] and round(start["cold"], 1),
        "first_iteration_warm_seconds": start["warm"] and round(start["warm"], 1),
    }


def main(arguments: Arguments) -> None:
    """Measure what is missing and write the table."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    most = max(arguments.devices)
    for task, devices, critic in itertools.product(arguments.tasks, sorted(set(arguments.devices)), arguments.critics):
        file = RESULTS / f"{task}-{devices}-{critic}.json"
        changed, other = override(preset(task), **CRITICS[critic]), critic != "preset"
        if file.is_file() or (other and (devices < most or changed == preset(task))):
            continue
        # How long a start takes does not depend on the number of devices: it is timed once.
        start = () if (devices, critic) == (most, "preset") else ("--skip-start",)
        words = (
            word for name, value in CRITICS[critic].items() for word in (f"--{name.replace('_', '-')}", f"{value}")
        )
        report = {"critic": critic, **bench(task, devices, arguments.repeats, *start, *words)}
        file.write_text(json.dumps(report, indent=1) + "\n")
    reports = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*-[0-9]*-*.json"))]
    rows = [summary_row(report) for report in reports]
    with (RESULTS / "summary.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
