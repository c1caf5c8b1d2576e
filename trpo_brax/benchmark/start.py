"""Time from the command to the first finished iteration: without and with a compilation cache."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trpo_brax.config import Config, override
from trpo_brax.errors import UserError
from trpo_brax.runs.folder import RunFolder

_WARM_STARTS = 3


def first_iteration_seconds(config: Config) -> dict[str, float]:
    """Return the seconds of a `cold` start and the median of several `warm` ones, imports included.

    Every start is `trpo-brax train` in a process of its own, until the first line of metrics.jsonl is on the disk. The
    first one finds an empty cache, the others what it left there.

    Raises:
        UserError: the trainer refuses the configuration.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        cold, *warm = [_start(config, root / f"run{index}", root / "cache") for index in range(1 + _WARM_STARTS)]
    return {"cold": cold, "warm": statistics.median(warm)}


def _start(config: Config, folder: Path, cache: Path) -> float:
    """Return the seconds from starting the process to the first record on disk."""
    # A folder that holds a configuration and nothing else is resumed from the beginning.
    run = RunFolder(folder)
    run.create(override(config, num_seeds=1, total_steps=1, final_evaluation_episodes=0))
    words = [sys.executable, "-m", "trpo_brax", "train", "--resume", "--run-dir", str(folder)]
    words += ["--compilation-cache", str(cache)]
    words += config.environment_options
    with tempfile.TemporaryFile("w+") as complaints:
        began = time.monotonic()
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=complaints) as process:
            while not (run.metrics_file.is_file() and run.metrics_file.stat().st_size):
                if process.poll() is not None:
                    complaints.seek(0)
                    complaint = complaints.read().strip()
                    if process.returncode == 2:
                        raise UserError(complaint.removeprefix("trpo-brax: "))
                    raise RuntimeError(f"the trainer ended with status {process.returncode}:\n{complaint}")
                time.sleep(0.02)
            return time.monotonic() - began
