"""trpo-brax check and trpo-brax tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.cli.command import Answer, command
from trpo_brax.errors import TaskError
from trpo_brax.presets import PRESETS, preset


@dataclass(frozen=True)
class CheckArguments:
    """Tell an environment's author what a trainer needs of it, in one sentence each; exit status 1 if it lacks any."""

    environment: Annotated[str, Positional, tyro.conf.arg(metavar="ENVIRONMENT")]
    """package.module:Class, or :function, that makes a brax.envs.Env; or a Brax task."""
    environment_arguments: str | None = None
    """Keyword arguments to make it with, as a JSON object."""
    backend: str | None = None
    """Physics backend of a Brax task; by default the one its preset trains on."""
    episode_length: int = 1000
    """Time limit in control steps that training will use."""
    action_low: float | None = None
    """Lowest action; overrides what the environment says."""
    action_high: float | None = None
    """Highest action; overrides what the environment says."""


@dataclass(frozen=True)
class TasksArguments:
    """List the tasks, their physics backends and how long their presets train."""


@command(CheckArguments)
def check(arguments: CheckArguments) -> Answer:
    """Run `trpo-brax check`."""
    from trpo_brax.config import RolloutConfig, RuntimeConfig
    from trpo_brax.environments import brax_task, load_environment, own_task
    from trpo_brax.environments.check import Finding, check_environment
    from trpo_brax.host.devices import prepare

    settings = RolloutConfig(
        episode_length=arguments.episode_length, action_low=arguments.action_low, action_high=arguments.action_high
    )
    prepare(RuntimeConfig(cpu_devices=1), 1, lambda note: None)
    if ":" in arguments.environment:
        environment = load_environment(arguments.environment, arguments.environment_arguments)
        try:
            task = own_task(environment, settings)
        except TaskError as error:
            return Answer([str(Finding("error", "structure", str(error)))], status=1)
    else:
        task = brax_task(arguments.environment, arguments.backend or preset(arguments.environment).rollout.backend)
    findings = check_environment(task, episode_length=settings.episode_length)
    return Answer([*map(str, findings)], status=int(any(finding.level == "error" for finding in findings)))


@command(TasksArguments)
def tasks(_: TasksArguments) -> Answer:
    """Run `trpo-brax tasks`."""
    from trpo_brax.environments import TASKS

    lines = [f"{'task':26}{'environments':>14}{'steps':>14}  physics backends"]
    for name in sorted(TASKS):
        config = PRESETS[name]
        backends = ", ".join(TASKS[name])
        lines.append(f"{name:26}{config.rollout.num_envs:>14,}{config.total_steps:>14,}  {backends}")
    return Answer(lines)
