"""A run folder opened: its configuration, policies and metrics."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from trpo_brax.config import Config
from trpo_brax.environments import Task, brax_task, environment_name, own_task
from trpo_brax.errors import ConfigError, RunFolderError, TaskError
from trpo_brax.evaluation import EpisodeRunner, EvaluationReport, policy_actor, summarize
from trpo_brax.policy import ActionBounds, Policy, PolicySpecification
from trpo_brax.training.checkpoints import Checkpoints
from trpo_brax.training.devices import largest_divisor
from trpo_brax.training.files import read_json, write_json
from trpo_brax.training.folder import RunFolder
from trpo_brax.training.streams import Stream, stream_key

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
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Open a run folder.

        Raises:
            RunFolderError: this is none.
        """
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
        return self._folder.read_metrics()

    def policy(self, which: str | int = "latest", *, policy_seed: int | None = None) -> Policy:
        """Return the policy of a checkpoint: `latest`, `best` or an iteration. No environment is needed.

        Args:
            which: checkpoint; `best` is the seed's own.
            policy_seed: whose policy, in a run of several seeds; by default the first one's.

        Raises:
            ConfigError: the run has no such seed.
            CheckpointError: there is no such checkpoint, or it cannot be read.
        """
        seed = self.check_seed(policy_seed)
        checkpoints = Checkpoints(self._folder.checkpoints, self.config)
        iteration = checkpoints.resolve(which, seed)
        parameters, statistics = checkpoints.restore_policy(iteration, self._specification(), seed)
        return Policy(self._specification(), parameters, statistics)

    def check_seed(self, policy_seed: int | None) -> int:
        """Return the seed whose policy is meant, the run's first by default.

        Raises:
            ConfigError: the run has no such seed.
        """
        seeds = self.config.seeds
        if policy_seed is None:
            return seeds[0]
        if policy_seed not in seeds:
            span = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
            raise ConfigError(f"policy_seed must be one of the seeds of {self.path}, {span}, not {policy_seed}.")
        return policy_seed

    def task(self, environment: Env | None = None) -> Task:
        """Return the task of the run.

        Args:
            environment: for a run on an environment of the user's own, that environment: it is never imported from
                what a run folder says.

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
        if trained_on is None:
            raise TaskError(
                f"{self.path} was trained on the task {self.config.task}, not on {environment_name(environment)}."
            )
        task = own_task(environment, self.config.rollout)
        specification = self._specification()
        if (task.observation_size, len(task.action_low)) != (specification.observation_size, specification.bounds.size):
            raise TaskError(
                f"environment {task.name} has {task.observation_size} observations and {len(task.action_low)} actions, "
                f"but {self.path} was trained with {specification.observation_size} and {specification.bounds.size}."
            )
        return task

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


def check_evaluation(episodes: int, seed: int) -> None:
    """Raise a `ConfigError` where an evaluation cannot have this many episodes or this seed."""
    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, not {episodes}.")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be at least 0 and less than 2^32, not {seed}.")


def write_task(folder: RunFolder, task: Task) -> None:
    """Save sizes and bounds, so that a policy can be opened with no environment at hand."""
    bounds = {
        "action_low": [bound if math.isfinite(bound) else None for bound in task.action_low],
        "action_high": [bound if math.isfinite(bound) else None for bound in task.action_high],
    }
    write_json(folder.task_file, {"name": task.name, "observation_size": task.observation_size, **bounds})


def evaluate(
    run: Run,
    *,
    episodes: int = 1000,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    seed: int = 0,
    policy_seed: int | None = None,
    environment: Env | None = None,
) -> EvaluationReport:
    """Run episodes of a trained policy, in parallel, each environment's first, and describe their returns.

    Args:
        run: the run.
        episodes: how many.
        checkpoint: `latest`, `best` or an iteration.
        stochastic: sample actions as in training, instead of acting by the mode.
        seed: of the episodes; drawn from a stream that no training uses.
        policy_seed: whose policy, in a run of several seeds; by default the first one's.
        environment: for a run on an environment of the user's own, that environment.

    Raises:
        UserError: the run, checkpoint or environment cannot be used.
    """
    chosen = run.check_seed(policy_seed)
    reports = evaluate_seeds(
        run,
        episodes=episodes,
        checkpoint=checkpoint,
        stochastic=stochastic,
        seed=seed,
        policy_seeds=[chosen],
        environment=environment,
    )
    return reports[chosen]


def evaluate_seeds(
    run: Run,
    *,
    episodes: int,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    seed: int = 0,
    policy_seeds: Sequence[int] | None = None,
    environment: Env | None = None,
    stopped: Callable[[], bool] | None = None,
) -> dict[int, EvaluationReport]:
    """Evaluate the policies of several of a run's seeds, all of them by default, by one compiled program.

    All meet the same episodes. `stopped` is asked every second or so whether to give up; the other arguments are those
    of `evaluate`.

    Raises:
        UserError: the run, checkpoint or environment cannot be used.
        EvaluationStopped: `stopped` said so.
    """
    check_evaluation(episodes, seed)
    rollout = run.config.rollout
    chosen = run.config.seeds if policy_seeds is None else policy_seeds
    policies = {policy_seed: run.policy(checkpoint, policy_seed=policy_seed) for policy_seed in chosen}
    available = jax.local_devices()
    runner = EpisodeRunner(
        run.task(environment),
        policy_actor(policies[chosen[0]].specification, stochastic=stochastic),
        episodes=episodes,
        episode_length=rollout.episode_length,
        action_repeat=rollout.action_repeat,
        devices=available[: largest_divisor(episodes, len(available))],
    )
    key = stream_key(jax.random.PRNGKey(seed), Stream.EVALUATION)
    return {
        policy_seed: summarize(runner.run((policy.parameters, policy.statistics), key, stopped))
        for policy_seed, policy in policies.items()
    }
