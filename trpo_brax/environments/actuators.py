"""What an environment's actuators take, and what its step gives them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_brax.environments.perturbed import with_attribute
from trpo_brax.environments.tasks import Task


def own_range(environment: Any) -> Any:
    """Return the range of the actuators of an environment's `sys`, [2, actuators]; None where it tells of none."""
    actuator: Any = getattr(getattr(environment, "sys", None), "actuator", None)
    return np.asarray(actuator.ctrl_range, np.float64).T if hasattr(actuator, "ctrl_range") else None


def reached_range(task: Task, start: Any) -> Any:
    """Return the range of what step gives the actuators where actions are at their bounds, [2, actuators].

    None where that cannot be told.

    Args:
        task: to look at.
        start: starting states, [N, ...].
    """
    reached = _reached(task, task.environment, start)
    if reached is None:
        # A wrapper may step within a loop, out of which nothing can be told.
        reached = _reached(task, getattr(task.environment, "unwrapped", None), start)
    return reached


def _reached(task: Task, environment: Any, start: Any) -> Any:
    """Return what one environment's own step gives them.

    It is a look into an author's code from outside, and may fail where that is right.
    """
    given: list[jax.Array] = []

    def reach(state: Any, action: jax.Array) -> jax.Array:
        probe.step(jax.tree.map(lambda leaf: leaf, state), action)
        return given[-1]

    def listening(*arguments: Any, **named: Any) -> Any:
        given.append(named["action"] if "action" in named else arguments[1])
        return environment.pipeline_step(*arguments, **named)

    try:
        probe = with_attribute(environment, "pipeline_step", listening)
        # Of the step's program only what leads to the actuators is compiled, and once for both ends.
        reached = jax.jit(jax.vmap(reach, in_axes=(0, None)))
        ends = [reached(start, jnp.asarray(bound, jnp.float32)) for bound in (task.action_low, task.action_high)]
    except Exception:
        return None
    return np.array([np.min(ends, axis=(0, 1)), np.max(ends, axis=(0, 1))], np.float64)
