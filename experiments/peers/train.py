"""One run of Brax PPO or Brax SAC on a task, in a process of its own, and what its policies are worth.

    python -m experiments.peers.train --task hopper --trainer sac --seed 0 --folder runs/peers/hopper-sac-0

The trainer is called once, with an evaluation after every smallest unit of progress (PPO: one batch and its updates;
SAC: `_SAC_STEPS` steps with theirs), and its evaluator is replaced by one that takes the parameters and runs no
episodes. So nothing is compiled or run for an evaluation, and a run can end at any unit. Its clock runs only while it
trains; the first unit, in which it compiles, counts as long as the median of the others.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import tyro

import trpo_brax as tb
from experiments.peers.settings import EPISODE_LENGTH, PPO, SAC, PPOSettings, SACSettings, Trainer
from trpo_brax.environments import Task, brax_task
from trpo_brax.environments.quiet import quiet
from trpo_brax.evaluation import EpisodeRunner, summarize
from trpo_brax.runs.files import write_text
from trpo_brax.runs.provenance import provenance

_SAC_STEPS = 1024
_EVALUATION_SEED = 20_240_601
EPISODES, FINAL_EPISODES = 128, 1000
"""Of each policy on the way, and of the last."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of Brax PPO or Brax SAC on a task."""

    task: str
    """Task, on the backend of this trainer's preset."""
    trainer: Trainer
    """Which of the two."""
    seed: int
    """Of everything random in the training."""
    folder: Path
    """Where result.json is written."""
    learning_rate: float | None = None
    """Its step size, where it is not what its authors published."""
    seconds: float = 1800.0
    """Training ends at the first unit of progress that ends after so many seconds of it, if not before."""
    points: int = 20
    """Most policies evaluated, evenly spread over the training seconds."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """The end of a unit of progress."""

    env_steps: int
    lasted: float
    """Seconds of the unit."""
    parameters: Any


class _BudgetSpent(Exception):
    """Ends a training from within its callback."""


class _Collector:
    """Takes the place of `brax.training.acting.Evaluator` and of the progress callback."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._resumed = time.monotonic()
        self._lasted = 0.0
        self._parameters: Any = None
        self._policy: Any = None
        self.units: list[Unit] = []

    def evaluator(self, eval_env: Any, eval_policy_fn: Callable[[Any], Any], **_: Any) -> _Collector:
        """Stand for the evaluator's constructor."""
        self._policy = eval_policy_fn
        return self

    def run_evaluation(self, policy_params: Any, training_metrics: Any) -> Any:
        """Keep the parameters; called by Brax at the end of a unit, before `progress`."""
        self._lasted = time.monotonic() - self._resumed
        self._parameters = jax.device_get(policy_params)
        return training_metrics

    def progress(self, env_steps: int, _: Any) -> None:
        """Keep the unit and let training go on."""
        if env_steps:
            self.units.append(Unit(int(env_steps), self._lasted, self._parameters))
            if len(self.units) > 1 and clock(self.units)[-1] >= self._job.seconds:
                raise _BudgetSpent
        self._resumed = time.monotonic()

    def act(self, parameters: Any, observations: jax.Array, keys: jax.Array) -> jax.Array:
        """Return the mode's actions, in [-1, 1] as every Brax task takes them."""
        actions: jax.Array = self._policy(parameters)(observations, keys[0])[0]
        return actions


def clock(units: Sequence[Unit]) -> list[float]:
    """Return the training seconds at the end of each unit; the first, which compiles, lasts as long as the others."""
    lasted = [unit.lasted for unit in units]
    if len(lasted) > 1:
        lasted[0] = statistics.median(lasted[1:])
    return np.cumsum(lasted).tolist()


def spread(seconds: Sequence[float], most: int) -> list[int]:
    """Return the indices of at most `most` points, evenly spread; the last is always among them."""
    marks = seconds[-1] * np.arange(1, most + 1) / most
    return sorted({int(np.argmin(np.abs(np.array(seconds) - mark))) for mark in marks})


def settings_of(job: Job) -> PPOSettings | SACSettings:
    """Return what the trainer runs with."""
    settings = PPO[job.task] if job.trainer == "ppo" else SAC[job.task]
    return settings if job.learning_rate is None else dataclasses.replace(settings, learning_rate=job.learning_rate)


def train(job: Job, task: Task) -> _Collector:
    """Train and return what was collected."""
    collector = _Collector(job)
    with quiet():
        from brax.training import acting
        from brax.training.agents.ppo import train as ppo
        from brax.training.agents.sac import train as sac
    settings = settings_of(job)
    arguments = dataclasses.asdict(settings)
    if isinstance(settings, PPOSettings):
        trainer, unit, start = ppo, settings.steps_per_update, 0
    else:
        trainer, unit, start = sac, _SAC_STEPS, settings.min_replay_size
    units = -(-(settings.num_timesteps - start) // unit)
    arguments["num_timesteps"] = start + units * unit
    try:
        with mock.patch.object(acting, "Evaluator", collector.evaluator):
            trainer.train(
                environment=task.environment,
                episode_length=EPISODE_LENGTH,
                normalize_observations=True,
                max_devices_per_host=1,
                seed=job.seed,
                num_evals=units + 1,
                deterministic_eval=True,
                progress_fn=collector.progress,
                **arguments,
            )
    except _BudgetSpent:
        pass
    return collector


def main(job: Job) -> None:
    """Train, evaluate the policies, write."""
    jax.config.update("jax_num_cpu_devices", 1)
    settings = settings_of(job)
    repeat = settings.action_repeat
    task = brax_task(job.task, tb.preset(job.task).rollout.backend)
    collector = train(job, task)
    seconds = clock(collector.units)
    runner = EpisodeRunner(
        task, collector.act, batch=EPISODES, episode_length=EPISODE_LENGTH // repeat, action_repeat=repeat
    )
    rows = []
    for index in spread(seconds, job.points):
        unit, last = collector.units[index], index == len(seconds) - 1
        episodes = FINAL_EPISODES if last else EPISODES
        report = summarize(runner.run(unit.parameters, jax.random.PRNGKey(_EVALUATION_SEED), episodes=episodes))
        row = {name: value for name, value in report.to_dict().items() if name != "failure"}
        rows.append({"env_steps": unit.env_steps, "seconds": seconds[index], **row})
    result = {
        "task": job.task,
        "trainer": job.trainer,
        "learning_rate": settings.learning_rate,
        "seed": job.seed,
        "budget_seconds": job.seconds,
        "ended_by": "steps" if collector.units[-1].env_steps >= settings.num_timesteps else "seconds",
        "points": rows,
        "provenance": provenance(jax.local_devices()),
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    write_text(job.folder / "result.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Job))
