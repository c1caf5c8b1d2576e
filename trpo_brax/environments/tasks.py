"""Brax tasks and a user's own environments behind one description."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_brax.checked import suggest
from trpo_brax.config import RolloutConfig
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


_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment and what a trainer has to know about it."""

    name: str
    environment: Env
    observation_size: int
    action_low: tuple[float, ...]
    """Lowest action per component, as `environment.step` takes it."""
    action_high: tuple[float, ...]
    """Highest action per component, as `environment.step` takes it."""


@functools.cache
def brax_task(name: str, backend: str) -> Task:
    """Load one of Brax's tasks.

    Every one of them takes actions in [-1, 1]: those whose actuators have another range rescale inside.

    Raises:
        TaskError: unknown task or a backend that Brax does not support for it.
    """
    if name not in TASKS:
        raise TaskError(f"unknown task {name!r}{suggest(name, TASKS)}.")
    if backend not in TASKS[name]:
        supported = " and ".join(TASKS[name])
        raise TaskError(f"task {name} does not run on backend {backend}; Brax supports it on {supported} only.")
    with quiet():
        from brax import envs

        with _no_mujoco_log():
            environment = envs.get_environment(name, backend=backend)
    size = int(environment.action_size)
    return Task(name, environment, _observation_size(name, environment), (-1.0,) * size, (1.0,) * size)


def return_bounds(task: str, steps: int) -> tuple[float | None, float | None]:
    """Return the lowest and highest return of an episode of at most so many simulator steps; None where unbounded."""
    low, high = REWARD_BOUNDS.get(task, (None, None))
    return None if low is None else min(0.0, low * steps), None if high is None else max(0.0, high * steps)


def own_task(environment: Env, config: RolloutConfig) -> Task:
    """Describe a user's own `brax.envs.Env`.

    Action bounds come from `action_low`/`action_high` in the configuration, else the environment's attributes of
    these names, else `sys.actuator.ctrl_range`, else [-1, 1].

    Raises:
        TaskError: the environment is not one a trainer can use; one sentence says why.
    """
    if isinstance(environment, type):
        raise TaskError(f"environment {environment.__qualname__} is a class; give an object of it.")
    name = environment_name(environment)
    for attribute in ("reset", "step", "action_size"):
        if not hasattr(environment, attribute):
            raise TaskError(f"environment {name} is not a brax.envs.Env: it has no {attribute}.")
    size = int(environment.action_size)
    low, high = _action_bounds(name, environment, size, config)
    task = Task(name, environment, _observation_size(name, environment), low, high)
    start = _traced(name, "reset", lambda key: starting_state(environment, key), _KEY)
    action = jax.ShapeDtypeStruct((size,), jnp.float32)
    _traced(name, "step", lambda old, given: match_state(old, environment.step(old, given), name), start, action)
    return task


def load_environment(specification: str) -> Env:
    """Import and build `package.module:Class`.

    Raises:
        TaskError: it is not of that form, or there is no such module or class.
    """
    module_name, separator, class_name = specification.partition(":")
    if not separator or not module_name or module_name.startswith(".") or not class_name.isidentifier():
        raise TaskError(f"environment must be package.module:Class, not {specification!r}.")
    try:
        with quiet():
            importlib.import_module("brax.envs")
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise TaskError(f"environment {specification!r}: there is no module {error.name!r} to import.") from error
    if not hasattr(module, class_name):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise TaskError(
            f"environment {specification!r}: module {module_name} has no {class_name}{suggest(class_name, known)}."
        )
    builder = getattr(module, class_name)
    if not callable(builder):
        raise TaskError(f"environment {specification!r} is no class, but {type(builder).__name__}.")
    try:
        with contextlib.suppress(ValueError):  # Python knows no signature of some built-in classes
            inspect.signature(builder).bind()
    except TypeError as error:
        raise TaskError(f"environment {specification!r} cannot be built without arguments: {error}.") from error
    environment: Env = builder()
    return environment


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
        TaskError: step and reset give trees or shapes that differ, or fractions where reset gave whole numbers.
    """
    ours: Any = jax.tree.structure(reference)
    theirs: Any = jax.tree.structure(state)
    if ours != theirs:
        raise TaskError(f"environment {name} returns another State from step than from reset: {theirs} against {ours}.")
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(reference), jax.tree.leaves(state), strict=True):
        where = jax.tree_util.keystr(path)
        if jnp.shape(old) != jnp.shape(new):
            raise TaskError(
                f"environment {name} returns {where} of shape {jnp.shape(new)} from step, {jnp.shape(old)} from reset."
            )
        if jnp.issubdtype(jnp.result_type(new), jnp.inexact) and not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            raise TaskError(
                f"environment {name} returns {where} as {jnp.result_type(new)} from step, {jnp.result_type(old)} from "
                f"reset; begin it with {jnp.result_type(new)}."
            )
    return jax.tree.map(lambda old, new: jax.lax.convert_element_type(new, jnp.result_type(old)), reference, state)


def environment_name(environment: Any) -> str:
    """Return `package.module:Class` of an environment object."""
    return f"{type(environment).__module__}:{type(environment).__qualname__}"


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


def _traced(name: str, what: str, function: Callable[..., Any], *shapes: Any) -> Any:
    """Return the shapes of what an author's code returns; what it raises becomes one sentence."""
    try:
        return jax.eval_shape(function, *shapes)
    except TaskError:
        raise
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0].rstrip(".")
        raise TaskError(f"environment {name}: {what} raises {type(error).__name__}: {reason}.") from error


def _observation_size(name: str, environment: Env) -> int:
    """Return the length of the observation vector, from shapes alone: Brax's own property runs a reset."""
    state = _traced(name, "reset", environment.reset, _KEY)
    if not hasattr(state, "obs") or not hasattr(state, "info"):
        raise TaskError(f"environment {name} must return a brax.envs.State from reset, not {type(state).__name__}.")
    observation = state.obs
    if not hasattr(observation, "ndim"):
        kind = "a dictionary" if isinstance(observation, Mapping) else type(observation).__name__
        raise TaskError(f"environment {name} observes {kind}; this trainer needs one vector of floats.")
    if observation.ndim != 1 or not jnp.issubdtype(observation.dtype, jnp.floating):
        shape, dtype = observation.shape, observation.dtype
        raise TaskError(f"environment {name} must observe a vector of floats, not {dtype} of shape {shape}.")
    for part in ("reward", "done"):
        shape = jnp.shape(getattr(state, part))
        if shape != ():
            raise TaskError(f"environment {name} must give a scalar {part}, not shape {shape}; it must not be batched.")
    if "first_obs" in state.info or "first_state" in state.info:
        raise TaskError(f"environment {name} resets itself; take off its auto-reset wrapper, the trainer resets.")
    return int(observation.shape[0])


def _action_bounds(
    name: str, environment: Env, size: int, config: RolloutConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low: Any
    high: Any
    if config.action_low is not None:
        low, high = config.action_low, config.action_high
    elif hasattr(environment, "action_low") and hasattr(environment, "action_high"):
        low, high = environment.action_low, environment.action_high
    elif hasattr(environment, "sys") and getattr(environment.sys, "actuator", None) is not None:
        low, high = np.asarray(environment.sys.actuator.ctrl_range).T
    else:
        low, high = -1.0, 1.0
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if low.shape not in ((), (size,)) or high.shape not in ((), (size,)):
        raise TaskError(
            f"environment {name}: action_low and action_high must be numbers or have {size} entries, "
            f"not shapes {low.shape} and {high.shape}."
        )
    low, high = np.broadcast_to(low, (size,)), np.broadcast_to(high, (size,))
    if not np.all(low < high):
        raise TaskError(f"environment {name}: action_low must be below action_high in every component.")
    return tuple(low.tolist()), tuple(high.tolist())
