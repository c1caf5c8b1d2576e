"""Time from the command to the first finished iteration: without and with a compilation cache.

    python experiments/start_time.py inverted_pendulum hopper

Runs `trpo-brax train` for one iteration in processes of their own, first with an empty cache and then again, and writes
experiments/results/start_time.csv. Wall time, imports included, until the first line of metrics.jsonl is there.
"""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import tyro

RESULTS = Path(__file__).parent / "results" / "start_time.csv"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Time from the command to the first finished iteration: without and with a compilation cache."""

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional] = ("inverted_pendulum", "hopper")
    """Tasks to start."""
    warm_starts: int = 3
    """Starts with the cache filled; the median is kept."""


def first_iteration(task: str, folder: Path, cache: Path) -> float:
    """Return the seconds from starting the process to the first record on disk."""
    words = [sys.executable, "-m", "trpo_brax", "train", task, "--total-steps", "1", "--final-evaluation-episodes", "0"]
    words += ["--run-dir", str(folder), "--compilation-cache", str(cache)]
    began = time.monotonic()
    metrics = folder / "metrics.jsonl"
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while not (metrics.is_file() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(
                    f"{' '.join(words)} ended with status {process.returncode} before its first iteration"
                )
            time.sleep(0.02)
        seconds = time.monotonic() - began
    return seconds


def main(arguments: Arguments) -> None:
    """Measure and write."""
    rows = []
    for task in arguments.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            folders = [Path(scratch) / f"run{index}" for index in range(arguments.warm_starts + 1)]
            cold, *warm = [first_iteration(task, folder, Path(scratch) / "cache") for folder in folders]
        median = sorted(warm)[len(warm) // 2]
        rows.append((task, f"{cold:.1f}", f"{median:.1f}", f"{median / cold:.2f}"))
        print(f"{task}: {cold:.1f} s cold, {median:.1f} s with the cache")
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("task", "cold_seconds", "warm_seconds_median", "warm_to_cold"))
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
