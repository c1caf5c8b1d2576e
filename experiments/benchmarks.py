"""Run `trpo-brax bench` for several tasks on one device and on all, and keep the figures.

    python experiments/benchmarks.py --tasks inverted_pendulum hopper ant --sweep-task hopper

Writes experiments/results/benchmarks/: a JSON of everything that was measured for each task and number of devices,
summary.csv with one row each, and sweep.png. What has a JSON already is not measured again. Run it on a machine that
does nothing else: every ratio is taken within one run, but a busy machine slows the columns unequally.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from trpo_brax.host.devices import usable_cores

RESULTS = Path(__file__).parent / "results" / "benchmarks"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Run `trpo-brax bench` for several tasks on one device and on all, and keep the figures."""

    tasks: tuple[str, ...] = ("inverted_pendulum", "hopper", "ant")
    """Tasks to measure."""
    devices: tuple[int, ...] = (1, usable_cores())
    """CPU devices to measure on."""
    sweep_task: str | None = None
    """Task to sweep the number of environments of, on the most devices."""
    sweep_envs: str = "64,256,1024,4096"
    """Numbers of environments of the sweep."""
    repeats: int = 5
    """Timed repeats; medians are kept."""


def bench(task: str, devices: int, repeats: int, *more: str) -> dict[str, Any]:
    """Return the report of one benchmark, in a process of its own."""
    words = [sys.executable, "-m", "trpo_brax", "bench", task, "--cpu-devices", str(devices), "--repeats", str(repeats)]
    done = subprocess.run([*words, "--json", *more], stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def summary_row(report: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that the README states."""
    parts, whole = report["parts_ms"], report["iteration_ms"]
    count, closed = (report[f"fisher_product_forward_passes{end}"] for end in ("", "_closed_form"))
    start = report["first_iteration_seconds"] or {"cold": None, "warm": None}
    return {
        "task": report["task"],
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
        "fisher_product_to_closed_form": round(count / closed, 3),
        "first_iteration_cold_seconds": start["cold"] and round(start["cold"], 1),
        "first_iteration_warm_seconds": start["warm"] and round(start["warm"], 1),
    }


def main(arguments: Arguments) -> None:
    """Measure what is missing and write the table."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in arguments.tasks:
        for devices in sorted(set(arguments.devices)):
            file = RESULTS / f"{task}-{devices}.json"
            if not file.is_file():
                # How long a start takes does not depend on the number of devices: it is timed once.
                start = () if devices == max(arguments.devices) else ("--skip-start",)
                report = bench(task, devices, arguments.repeats, *start)
                file.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.sweep_task is not None:
        file, picture = RESULTS / f"sweep-{arguments.sweep_task}.json", RESULTS / "sweep.png"
        more = ("--skip-start", "--sweep-envs", arguments.sweep_envs, "--picture", str(picture))
        if not file.is_file():
            report = bench(arguments.sweep_task, max(arguments.devices), arguments.repeats, *more)
            file.write_text(json.dumps(report["sweep"], indent=1) + "\n")
    reports = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*-[0-9]*.json"))]
    rows = [summary_row(report) for report in reports]
    with (RESULTS / "summary.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
