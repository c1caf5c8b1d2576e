"""Brax's tasks, and what every environment looks like to a trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from trpo_brax.checked import suggest
from trpo_brax.environments.quiet import quiet
from trpo_brax.errors import TaskError

if TYPE_CHECKING:
    from brax.envs import Env, State

TASKS: dict[str, tuple[str, ...]] = dict.fromkeys(
    (
        "ant",
        "halfcheetah",
        "hopper",
        "humanoid",
        "humanoidstandup",
        "inverted_double_pendulum",
        "inverted_pendulum",
        "pusher",
        "reacher",
        "walker2d",
    ),
    ("spring", "positional", "generalized", "mjx"),
) | {"swimmer": ("generalized",)}
"""Task name -> the physics backends Brax supports for it."""

REWARD_BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "inverted_pendulum": (0.0, 1.0),
    "inverted_double_pendulum": (None, 10.0),
    "reacher": (None, 0.0),
    "pusher": (None, 0.0),
}
"""Task name -> lowest and highest reward of a simulator step that Brax's own formula allows; None: no such bound."""


KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)
"""What `reset` is given."""


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment and what a trainer has to know about it."""

    name: str
    environment: Env
    action_low: tuple[float, ...]
    """Lowest action per component, as `environment.step` takes it."""
    action_high: tuple[float, ...]
    """Highest action per component, as `environment.step` takes it."""

    @functools.cached_property
    def observation_size(self) -> int:
        """Length of the observation vector; Brax's own property runs a reset."""
        return int(jax.eval_shape(self.start, KEY).obs.shape[0])

    # Jitted for their traces' sake: whoever resets or steps this task shares one, and tracing Brax takes seconds.

    @functools.cached_property
    def start(self) -> Callable[[jax.Array], State]:
        """Key uint32 [2] -> one starting state."""
        return jax.jit(functools.partial(starting_state, self.environment))

    @functools.cached_property
    def advance(self) -> Callable[[State, jax.Array], State]:
        """(State, action [A]) -> the State after one simulator step, in the types of the first."""

        def step(state: State, action: jax.Array) -> State:
            # Authors update `metrics` and `info` in place: they are handed a copy, so that ours stay as they were.
            copy = jax.tree.map(lambda leaf: leaf, state)
            return match_state(state, self.environment.step(copy, action), self.name)

        return jax.jit(step)


@functools.cache
def brax_task(name: str, backend: str) -> Task:
    """Load one of Brax's tasks.

    Every one of them takes actions in [-1, 1]: those whose actuators have another range rescale inside.

    Raises:
        TaskError: unknown task or a backend that Brax does not support for it.
    """
    if name not in TASKS:
        raise TaskError(f"unknown task {name!r}{suggest(name, TASKS)}")
    if backend not in TASKS[name]:
        supported = " and ".join(TASKS[name])
        raise TaskError(f"task {name} does not run on backend {backend}; Brax supports it on {supported} only.")
    with quiet():
        from brax import envs

        with _no_mujoco_log():
            environment = envs.get_environment(name, backend=backend)
    size = int(environment.action_size)
    return Task(name, environment, (-1.0,) * size, (1.0,) * size)


def return_bounds(task: str, steps: int) -> tuple[float | None, float | None]:
    """Return the lowest and highest return of an episode of at most so many simulator steps; None where unbounded."""
    low, high = REWARD_BOUNDS.get(task, (None, None))
    return None if low is None else min(0.0, low * steps), None if high is None else max(0.0, high * steps)


def starting_state(environment: Env, key: jax.Array) -> State:
    """Return one starting state with weak types stripped, so that nothing downstream compiles twice.

    What the trainer reads is float32: an environment may begin with a Python 0 and go on with fractions.
    """
    state = environment.reset(key)
    read = {"obs": state.obs, "reward": state.reward, "done": state.done, "metrics": state.metrics}
    state = state.replace(**jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), read))
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), state)


def match_state(reference: State, state: State, name: str) -> State:
    """Return `state` in the dtypes of `reference`.

    Raises:
        TaskError: step and reset give trees or shapes that differ, or types that would lose what step says.
    """
    if type(state) is not type(reference):
        kind = type(state).__name__
        raise TaskError(f"environment {name} must return a {type(reference).__name__} from step, not {kind}.")
    ours: Any = jax.tree.structure(reference)
    if ours != jax.tree.structure(state):
        raise TaskError(f"environment {name}: {_difference(leaf_names(reference), leaf_names(state))}.")
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(reference), jax.tree.leaves(state), strict=True):
        where = leaf_name(path)
        if jnp.shape(old) != jnp.shape(new):
            raise TaskError(
                f"environment {name} returns {where} of shape {jnp.shape(new)} from step, {jnp.shape(old)} from reset."
            )
        before, after = jnp.result_type(old), jnp.result_type(new)
        if jnp.result_type(old, new) != before:
            raise TaskError(
                f"environment {name} returns {where} as {after} from step, {before} from reset; begin it with {after}."
            )
    return jax.tree.map(lambda old, new: jax.lax.convert_element_type(new, jnp.result_type(old)), reference, state)


def leaf_names(state: State) -> list[str]:
    """Return what an author calls each leaf of his State, as in info['limit']."""
    return [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def leaf_name(path: Any) -> str:
    """Return what an author calls a leaf of his State, given JAX's path to it."""
    return jax.tree_util.keystr(path).removeprefix(".")


def _difference(reset: list[str], step: list[str]) -> str:
    """Say in what two trees differ, by the names of their leaves."""
    for name in step:
        if name not in reset:
            return f"{name} is in step's State only; begin it in reset"
    for name in reset:
        if name not in step:
            return f"{name} is in reset's State only; return it from step, too"
    return "step's State has other containers than reset's, a list in place of a tuple for instance"


@contextlib.contextmanager
def _no_mujoco_log() -> Iterator[None]:
    """Keep MuJoCo from leaving a MUJOCO_LOG.TXT in the user's folder for each deprecation in Brax's own models."""
    import mujoco

    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)
