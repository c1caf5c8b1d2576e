"""What a trainer needs of an environment, told to its author in one sentence each.

Two programs are compiled, a batch of resets and a batch of steps that takes its actions as an argument; the checks are
NumPy on what these return. Episodes are followed to their own end and never reset, so that nothing is hidden.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_brax.environments.tasks import Task
from trpo_brax.environments.vectorized import VectorizedEnvironment
from trpo_brax.errors import TaskError

NUM_ENVS = 64
CHUNK = 25
"""Steps in one call of the compiled program."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing a trainer needs, and whether the environment has it."""

    level: Literal["ok", "warning", "error"]
    topic: str
    sentence: str


class Record(NamedTuple):
    """What happened, row 0 being the reset; all leaves are NumPy arrays that lead with [1 + T, N]."""

    observation: Any
    reward: Any
    done: Any
    truncation: Any
    """The environment's own `info["truncation"]`, else 0."""
    physics: Any
    """bool: no number of the physics state is NaN."""

    @property
    def broken(self) -> dict[str, Any]:
        """Part of the state -> bool [1 + T, N]: it is not finite."""
        return {
            "observation": ~np.isfinite(self.observation).all(axis=-1),
            "reward": ~np.isfinite(self.reward),
            "done": ~np.isfinite(self.done),
            "physics state": ~self.physics,
        }

    @property
    def alive(self) -> Any:
        """bool [1 + T, N]: not after the environment's first end or first number that is not finite."""
        ended = np.logical_or.reduce([self.done > 0.5, *self.broken.values()]).astype(int)
        return np.cumsum(ended, axis=0) - ended == 0

    @property
    def sound(self) -> Any:
        """bool [1 + T, N]: alive and finite."""
        return self.alive & ~np.logical_or.reduce(list(self.broken.values()))


def check_environment(
    task: Task, *, episode_length: int = 1000, seconds: float = 2.0, seed: int = 0
) -> list[Finding]:
    """Step a batch of environments in several ways and say what a trainer would meet.

    What `own_task` refuses (dictionaries, batches, auto-reset wrappers, impossible bounds) never gets here.

    Args:
        task: the environment.
        episode_length: time limit in control steps that training will use; random episodes are followed up to it.
        seconds: most seconds spent on following them, compilation and the other checks not included.
        seed: of starting states and random actions.
    """
    try:
        findings = _structure(task, episode_length)
    except TaskError as error:
        return [Finding("error", "structure", str(error))]
    except Exception as error:  # whatever an author's code may raise when it is traced
        reason = (str(error).strip() or "no message").splitlines()[0]
        return [Finding("error", "structure", f"tracing reset and step raises {type(error).__name__}: {reason}")]
    if any(finding.level == "error" for finding in findings):
        return findings

    keys = jax.random.split(jax.random.PRNGKey(seed), NUM_ENVS)
    begin, advance, compile_seconds = _compile(task, keys, episode_length)
    start, at_reset = begin(keys)
    rng, size = np.random.default_rng(seed), len(task.action_low)
    low = np.where(np.isfinite(task.action_low), task.action_low, -1.0).astype(np.float32)
    high = np.where(np.isfinite(task.action_high), task.action_high, 1.0).astype(np.float32)
    draw = lambda: rng.uniform(low, high, (CHUNK, NUM_ENVS, size)).astype(np.float32)

    def follow(actions: Any) -> Record:
        return _joined([at_reset, advance(start, actions)[1]])[: episode_length + 1]

    actions = draw()
    state, record = advance(start, actions)
    records, began = [at_reset, record], time.perf_counter()
    while len(records) < 3 or (len(records) * CHUNK < episode_length + CHUNK and time.perf_counter() - began < seconds):
        state, record = advance(state, draw())
        records.append(record)
    speed = (len(records) - 2) * CHUNK * NUM_ENVS / (time.perf_counter() - began)
    random = _joined(records, episode_length)
