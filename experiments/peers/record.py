"""What a run leaves: its training clock, its policies, their evaluation, and result.json."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.peers.settings import EPISODE_LENGTH, Job
from trpo_brax.environments import Task
from trpo_brax.evaluation import EpisodeRunner, summarize

EPISODES = 128
_EVALUATION_SEED = 20_240_601
_LEAST_UNITS = 2


@dataclasses.dataclass(frozen=True)
class Point:
    """A policy on the way."""

    env_steps: int
    training_seconds: float
    """Without tracing, compilation and evaluation."""
    parameters: Any


@dataclasses.dataclass(frozen=True)
class Training:
    """A training that has ended."""

    points: Sequence[Point]
    steps_per_second: float
    """Median over the units of progress after the first."""
    unit_steps: int
    """Environment steps of one unit of progress."""
    start_seconds: float
    """From the start of the process to the end of the first unit of progress."""
    ended_by: str
    """`steps`: the published number of them; `budget`: seconds; `start`: only the start was asked for."""


class BudgetSpent(Exception):
    """Ends a peer's training from within its callback."""


class Recorder:
    """Keeps a peer's time and its policies; the clock runs only while the peer does.

    The first unit of progress holds tracing and compilation as well: it counts as long as the median of the others.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._units: list[tuple[int, float, Any]] = []
        self._start_seconds = 0.0
        self._resumed = time.monotonic()
        self._lasted = 0.0

    def pause(self) -> None:
        """Stop the clock: a unit of progress has ended."""
        self._lasted = time.monotonic() - self._resumed

    def add(self, env_steps: int, parameters: Any) -> None:
        """Keep the policy at the end of the unit before the last `pause`.

        Raises:
            BudgetSpent: training is to end here.
        """
        if not self._units:
            self._start_seconds = time.time() - self._job.started
        self._units.append((env_steps, self._lasted, parameters))
        if self._job.start_only or (len(self._units) >= _LEAST_UNITS and self._seconds()[-1] >= self._job.seconds):
            raise BudgetSpent

    def resume(self) -> None:
        """Let the clock run again."""
        self._resumed = time.monotonic()

    def finish(self, *, stopped: bool) -> Training:
        """Return what was recorded; `stopped` where `BudgetSpent` ended it."""
        steps = [unit[0] for unit in self._units]
        rates = [(steps[index] - steps[index - 1]) / self._units[index][1] for index in range(1, len(self._units))]
        return Training(
            points=[
                Point(unit[0], seconds, unit[2]) for unit, seconds in zip(self._units, self._seconds(), strict=True)
            ],
            steps_per_second=statistics.median(rates) if rates else 0.0,
            unit_steps=steps[-1] - steps[-2] if rates else steps[0],
            start_seconds=self._start_seconds,
            ended_by="start" if self._job.start_only else "budget" if stopped else "steps",
        )

    def _seconds(self) -> list[float]:
        """Return the training seconds at the end of each unit."""
        lasted = [unit[1] for unit in self._units]
        if len(lasted) > 1:
            lasted[0] = statistics.median(lasted[1:])
        return [sum(lasted[: index + 1]) for index in range(len(lasted))]


def configure(job: Job) -> None:
    """Make JAX's settings before its backend starts; the compilation cache is set by the environment."""
    jax.config.update("jax_num_cpu_devices", job.devices)


def evaluate_and_write(
    job: Job, training: Training, task: Task, act: Callable[[Any, jax.Array, jax.Array], jax.Array]
) -> None:
    """Evaluate the policies with the one evaluator of all trainers and write result.json."""
    rows = []
    if not job.start_only:
        runner = EpisodeRunner(
            task,
            act,
            batch=EPISODES,
            episode_length=EPISODE_LENGTH,
            devices=jax.local_devices()[: job.devices],
        )
        for point in spread(training.points, job.points):
            report = summarize(runner.run(point.parameters, jax.random.PRNGKey(_EVALUATION_SEED), episodes=EPISODES))
            rows.append(
                {
                    "env_steps": point.env_steps,
                    "training_seconds": point.training_seconds,
                    "return_mean": report.return_mean,
                    "return_std": report.return_std,
                    "return_min": report.return_min,
                    "length_mean": report.length_mean,
                }
            )
    last = training.points[-1]
    result = {
        "variant": job.variant,
        "task": job.task,
        "seed": job.seed,
        "devices": job.devices,
        "platform": jax.default_backend(),
        "ended_by": training.ended_by,
        "env_steps": last.env_steps,
        "training_seconds": last.training_seconds,
        "steps_per_second": training.steps_per_second,
        "unit_steps": training.unit_steps,
        "start_seconds": training.start_seconds,
        "points": rows,
        "versions": _versions(),
    }
    temporary = job.folder / "result.tmp"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(temporary, job.folder / "result.json")


def spread(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most `most` points, evenly spread over the training seconds; the last is always among them."""
    ends = np.array([point.training_seconds for point in points])
    marks = ends[-1] * np.arange(1, most + 1) / most
    return [points[index] for index in sorted({int(np.argmin(np.abs(ends - mark))) for mark in marks})]


def _versions() -> dict[str, str]:
    names = ("jax", "brax", "trpo-brax", "torch", "stable-baselines3", "sb3-contrib")
    return {name: importlib.metadata.version(name) for name in names}
