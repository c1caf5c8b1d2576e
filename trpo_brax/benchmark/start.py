"""Time from the command to the first finished iteration: without and with a compilation cache."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trpo_brax.checked import walk
from trpo_brax.config import Config
from trpo_brax.errors import UserError
from trpo_brax.presets import preset

_WARM_STARTS = 3
_SET_HERE = ("task", "num_seeds", "total_steps", "final_evaluation_episodes", "compilation_cache")


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


def training_options(config: Config) -> list[str]:
    """Return the words that make `trpo-brax train` of `config`'s task and everything that shapes its programs.

    How long it trains, and what it does afterwards, is left out.
    """
    words = [config.task]
    usual = {name: value for name, value, _ in walk(preset(config.task))}
    for name, value, _ in walk(config):
        if name in _SET_HERE or value == usual[name]:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *(str(item) for item in (value if isinstance(value, tuple) else (value,)))]
    return words


def _start(config: Config, folder: Path, cache: Path) -> float:
    """Return the seconds from starting the process to the first record on disk."""
    words = [sys.executable, "-m", "trpo_brax", "train", *training_options(config)]
    words += ["--total-steps", "1", "--final-evaluation-episodes", "0"]
    words += ["--run-dir", str(folder), "--compilation-cache", str(cache)]
    metrics = folder / "metrics.jsonl"
    with tempfile.TemporaryFile("w+") as complaints:
        began = time.monotonic()
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=complaints) as process:
            while not (metrics.is_file() and metrics.stat().st_size):
                if process.poll() is not None:
                    complaints.seek(0)
                    _fail(process.returncode, complaints.read().strip())
                time.sleep(0.02)
            return time.monotonic() - began


def _fail(status: int, complaint: str) -> None:
    if status == 2:
        raise UserError(complaint.removeprefix("trpo-brax: "))
    raise RuntimeError(f"the trainer ended with status {status} before its first iteration:\n{complaint}")
