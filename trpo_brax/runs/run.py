"""A run folder opened: its configuration, policies and metrics."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trpo_brax.config import Config
from trpo_brax.environments import Task, brax_task, environment_name, own_task
from trpo_brax.errors import RunFolderError, TaskError
from trpo_brax.host.settings import check_process, start_jax
from trpo_brax.policy import ActionBounds, Policy, PolicySpecification
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.files import read_json
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.records import read_metrics

if TYPE_CHECKING:
    from brax.envs import Env


_MOST_SIZE = 1 << 20
"""Of an observation or an action."""


class Run:
    """A training run on disk; open one with `Run.load`."""

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self._folder = folder
        self.config = config

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def load(cls, path: Run | str | os.PathLike[str]) -> Run:
        """Open a run folder; a run that is open already is returned as it is.

        Raises:
            RunFolderError: this is none.
        """
        if isinstance(path, Run):
            return path
        if not isinstance(path, (str, os.PathLike)):
            raise RunFolderError(f"run must be a Run or the path of its folder, not {path!r:.40}.")
        folder = RunFolder(path)
        return cls(folder, folder.read_config())

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.path

    @property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds.

        Raises:
            RunFolderError: the run has not ended yet.
        """
        summary: dict[str, Any] = read_json(self._folder.summary_file)
        return summary

    def metrics(self) -> list[dict[str, Any]]:
        """Return the objects of metrics.jsonl, one an iteration and seed."""
        return read_metrics(self._folder.metrics_file)

    def policy(self, which: str | int = "latest", *, policy_seed: int | None = None) -> Policy:
        """Return the policy of a checkpoint: `latest`, `best` or an iteration. No environment is needed.

        Args:
            which: checkpoint; `best` is the seed's own.
            policy_seed: whose policy, in a run of several seeds; by default the first one's.

        Raises:
            ConfigError: the run has no such seed.
            CheckpointError: there is no such checkpoint, or it cannot be read.
            UserError: JAX cannot be used in this process, or by one of its settings.
        """
        check_process(acting=True)
        start_jax()
        checkpoints, specification = self.checkpoints, self._specification()
        iteration = checkpoints.resolve(which, policy_seed)
        return Policy(specification, *checkpoints.restore_policy(iteration, specification, policy_seed))

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints.

        Raises:
            CheckpointError: there is no folder of them.
        """
        return Checkpoints(self._folder.checkpoints, self.config)

    def task(self, environment: Env | Task | None = None) -> Task:
        """Return the task of the run.

        Args:
            environment: for a run on an environment of the user's own, that environment: it is never imported from
                what a run folder says. What this returned of it will do, and saves tracing it again.

        Raises:
            TaskError: it is missing, or its sizes are not those the run was trained with.
        """
        trained_on = self.config.environment
        if environment is None:
            if trained_on is not None:
                raise TaskError(
                    f"{self.path} was trained on an environment of your own: give environment {trained_on}."
                )
            return brax_task(self.config.task, self.config.rollout.backend)
        name = environment.name if isinstance(environment, Task) else environment_name(environment)
        if trained_on is None and name != self.config.task:
            raise TaskError(f"{self.path} was trained on the task {self.config.task}, not on {name}.")
        task = environment if isinstance(environment, Task) else own_task(environment, self.config.rollout)
        specification = self._specification()
        if (task.observation_size, len(task.action_low)) != (specification.observation_size, specification.bounds.size):
            raise TaskError(
                f"environment {task.name} has {task.observation_size} observations and {len(task.action_low)} actions, "
                f"but {self.path} was trained with {specification.observation_size} and {specification.bounds.size}."
            )
        return task

    def refuse_other_actions(self, task: Task) -> None:
        """Refuse to go on training where actions mean something else than in the training so far.

        Raises:
            RunFolderError: the task's action range is not the run's.
        """
        try:
            bounds = self._specification().bounds
        except RunFolderError:
            return  # a description that is not there yet, or is broken, is written anew
        if (bounds.low, bounds.high) != (task.action_low, task.action_high):
            raise RunFolderError(
                f"run_dir {self.path} was trained with actions from {list(bounds.low)} to {list(bounds.high)}; "
                f"environment {task.name} now takes {list(task.action_low)} to {list(task.action_high)}: give it the "
                "attributes action_low and action_high of before."
            )

    def _specification(self) -> PolicySpecification:
        data = read_json(self._folder.task_file)
        try:
            low = tuple(-math.inf if bound is None else float(bound) for bound in data["action_low"])
            high = tuple(math.inf if bound is None else float(bound) for bound in data["action_high"])
            size = data["observation_size"]
            if not (isinstance(size, int) and 1 <= size <= _MOST_SIZE and 1 <= len(low) == len(high) <= _MOST_SIZE):
                raise ValueError("sizes that no task has")
            return PolicySpecification(self.config.network, size, ActionBounds(low, high))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunFolderError(f"{self._folder.task_file} is not the description of a task.") from error
