"""Real trainers, each in a process of its own, with the tiny configuration of `tests.tiny_programs`."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPTIONS = shlex.split(
    "--environment tests.tiny_environments:PointMass --num-envs 8 --unroll-length 10 --episode-length 7 "
    "--policy-hidden-sizes 8 --critic-hidden-sizes 8 --critic-fraction 1 --critic-damping 0.1 "
    "--eval-every 0 --final-evaluation-episodes 0 --platform cpu --checkpoint-every 2"
)
FLAGS = " ".join(word for word in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in word)
"""XLA's flags of the tests themselves, without their number of devices."""
OPTIMISED = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
"""An environment in which everything is compiled as for a user."""


def steps(iterations: int) -> str:
    return f"--total-steps {80 * iterations}"


@contextlib.contextmanager
def trainer(
    folder: Path, words: str, *, before: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a trainer, and see to it that it ends; `words` after the tiny options, `before` the command."""
    command = [sys.executable, "-m", "trpo_brax", "train", *OPTIONS, "--run-dir", str(folder), *words.split()]
    process = subprocess.Popen(
        [*before, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": FLAGS, **(environment or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def succeed(process: subprocess.Popen[str]) -> str:
    """Wait for a trainer's success and return what it told."""
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return told


def finish(folder: Path, words: str, environment: Mapping[str, str] | None = None) -> str:
    """Train to the end and return what was told."""
    with trainer(folder, words, environment=environment) as process:
        return succeed(process)
