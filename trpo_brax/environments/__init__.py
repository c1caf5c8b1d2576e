"""The world: Brax tasks and a user's own environments, vectorised."""

from trpo_brax.environments.making import known_returns, make_task
from trpo_brax.environments.own import environment_name, load_environment, own_task
from trpo_brax.environments.tasks import TASKS, Task, brax_task, return_bounds
from trpo_brax.environments.vectorized import EnvironmentState, Transition, VectorizedEnvironment

__all__ = [
    "TASKS",
    "EnvironmentState",
    "Task",
    "Transition",
    "VectorizedEnvironment",
    "brax_task",
    "environment_name",
    "known_returns",
    "load_environment",
    "make_task",
    "own_task",
    "return_bounds",
]
