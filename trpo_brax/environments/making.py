"""The task that a configuration names, made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trpo_brax.config import Config
from trpo_brax.environments.own import load_environment, own_task
from trpo_brax.environments.tasks import Task, brax_task, return_bounds
from trpo_brax.errors import TaskError

if TYPE_CHECKING:
    from brax.envs import Env


def make_task(config: Config, environment: Env | None = None) -> Task:
    """Return the task that a configuration names, or describe the given environment.

    Raises:
        TaskError: it does not exist or cannot be used.
    """
    if environment is None and config.environment is not None:
        environment = load_environment(config.environment, config.environment_arguments)
    if environment is not None:
        return own_task(environment, config.rollout)
    if config.rollout.action_low is not None:
        raise TaskError(
            f"action_low and action_high are for an environment of your own; task {config.task} has its own."
        )
    return brax_task(config.task, config.rollout.backend)


def known_returns(config: Config) -> tuple[float | None, float | None]:
    """Return the lowest and highest return of an episode; None where unbounded, and of an environment of one's own."""
    if config.environment is not None:
        return None, None
    return return_bounds(config.task, config.rollout.episode_length * config.rollout.action_repeat)
