"""A user's own environment: built by name, and tried out by shapes before anything is created for it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import re
import sysconfig
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_brax.checked import suggest
from trpo_brax.config import MOST_CHARACTERS, MOST_METRICS, RolloutConfig, one_spelling
from trpo_brax.environments.quiet import quiet
from trpo_brax.environments.tasks import KEY, Task, leaf_name
from trpo_brax.environments.vectorized import VectorizedEnvironment
from trpo_brax.errors import TaskError

if TYPE_CHECKING:
    from brax.envs import Env

_MOST_TOLD = 300
_STATE = ("pipeline_state", "obs", "reward", "done", "metrics", "info", "replace")


def own_task(environment: Env, config: RolloutConfig) -> Task:
    """Describe a user's own `brax.envs.Env`, once all that training does with it has been traced.

    Actions are in [-1, 1], as Brax and MuJoCo Playground mean it, unless the configuration or the environment's
    attributes give `action_low` and `action_high`.

    Raises:
        TaskError: the environment is not one a trainer can use; one sentence says why.
    """
    if isinstance(environment, type):
        raise TaskError(f"environment {environment.__qualname__} is a class; give an object of it.")
    name = environment_name(environment)
    _refuse_wrappers(name, environment)
    for attribute in ("reset", "step", "action_size"):
        if _attribute(name, environment, attribute) is None:
            raise TaskError(f"environment {name} is not a brax.envs.Env: it has no {attribute}.")
    low, high = _action_bounds(name, environment, _action_size(name, environment), config)

    traced(name, "reset", lambda key: _refuse_start(name, environment.reset(key)), KEY)
    task = Task(name, environment, low, high)
    _try_out(task, config)
    return task


def load_environment(specification: str, arguments: str | None = None) -> Env:
    """Import `package.module:Class`, or `package.module:function`, and build an environment with it.

    Args:
        specification: what to call.
        arguments: JSON object of keyword arguments to call it with.

    Raises:
        TaskError: it is not of that form, there is no such module, class or function, it takes other arguments, or it
            makes no environment of these.
        ConfigError: the arguments are no JSON object.
    """
    module_name, separator, builder_name = specification.partition(":")
    if not separator or not module_name or module_name.startswith(".") or not builder_name.isidentifier():
        raise TaskError(f"environment must be package.module:Class or :function, not {specification!r}.")
    try:
        with quiet():
            importlib.import_module("brax.envs")
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise TaskError(f"environment {specification!r}: there is no module {error.name!r} to import.") from error
    if not hasattr(module, builder_name):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise TaskError(
            f"environment {specification!r}: module {module_name} has no {builder_name}{suggest(builder_name, known)}"
        )
    builder = getattr(module, builder_name)
    if not callable(builder):
        raise TaskError(f"environment {specification!r} is no class or function, but {type(builder).__name__}.")
    given = {} if arguments is None else json.loads(one_spelling(arguments))
    try:
        with contextlib.suppress(ValueError):  # Python knows no signature of some built-in classes
            inspect.signature(builder).bind(**given)
    except TypeError as error:
        how = "with these environment_arguments" if given else "without environment_arguments"
        raise TaskError(f"environment {specification!r} cannot be built {how}: {error}.") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"brax\.")  # that it is no longer maintained
        try:
            environment: Env | None = builder(**given)
        except Exception as error:
            raise TaskError(f"environment {specification!r} cannot be built: {reason(error)}.") from error
    if environment is None:
        raise TaskError(f"environment {specification!r} returns None; it must return the environment that it makes.")
    return environment


def environment_name(environment: Any) -> str:
    """Return `package.module:Class` of an environment object."""
    return f"{type(environment).__module__}:{type(environment).__qualname__}"


def reason(error: Exception) -> str:
    """Return in one line what an author's code raised, and where in it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    # A first line that ends in a colon announces the others.
    line = lines[-1] if lines[0].endswith(":") else lines[0]
    others = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]))
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {line[:_MOST_TOLD].rstrip('.')}{where}"


def traced(name: str, what: str, function: Callable[..., Any], *shapes: Any) -> tuple[Any, Any]:
    """Return an author's code as a program, traced anew, and the shapes of what it returns.

    Raises:
        TaskError: it raises, or reads what another call of it, traced too, has left on the environment.
    """
    try:
        # A new partial every time: JAX remembers its traces of a function.
        program, result = jax.make_jaxpr(functools.partial(function), return_shape=True)(*shapes)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"environment {name}: {what} raises {reason(error)}.") from error
    if any(isinstance(constant, jax.core.Tracer) for constant in program.consts):
        raise TaskError(f"environment {name}: {what} uses what an earlier call left on the object; keep it in info.")
    return program, result


def _try_out(task: Task, config: RolloutConfig) -> None:
    """Trace what training runs: resets of several environments, a pool of them, and a step with its resets."""
    environment = VectorizedEnvironment(task, episode_length=config.episode_length, action_repeat=config.action_repeat)
    keys = jax.ShapeDtypeStruct((2, *KEY.shape), KEY.dtype)
    actions = jax.ShapeDtypeStruct((2, len(task.action_low)), jnp.float32)
    taken = jax.ShapeDtypeStruct((2,), jnp.int32)
    _, start = traced(task.name, "reset", environment.reset, keys)
    _, pool = traced(task.name, "reset", environment.starting_pool, keys)
    traced(task.name, "step", environment.step, start, actions, pool, taken)
    if _may_keep_tracers(task.environment):
        # What one step leaves is met by another that is traced by itself, as an evaluation's is.
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), start.state)
        action = jax.ShapeDtypeStruct(actions.shape[1:], actions.dtype)
        traced(task.name, "step", task.environment.step, one, action)


def _may_keep_tracers(environment: Any) -> bool:
    """Return whether what was traced is left on an environment, or on what it wraps, as far as can be seen."""
    try:
        leaves = jax.tree.leaves([list(vars(one).values()) for one in _wrapped(environment)])
    except (ValueError, TypeError):  # attributes that are no tree, keys that cannot be sorted for instance
        return True
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _wrapped(environment: Any) -> list[Any]:
    """Return an environment and those that it wraps one in another, outermost first."""
    found: list[Any] = []
    while hasattr(environment, "__dict__") and not any(environment is one for one in found):
        found.append(environment)
        environment = vars(environment).get("env")
    return found


def _refuse_wrappers(name: str, environment: Any) -> None:
    """Refuse what does the trainer's own part, whichever library's wrapper it is."""
    for one in _wrapped(environment)[:-1]:
        kind = type(one).__name__
        if re.search("AutoReset.*Wrapper", kind):
            raise TaskError(f"environment {name} resets itself; take off its {kind}, the trainer resets.")
        if re.search("Vmap.*Wrapper", kind):
            what = "is randomised and vectorised" if "Random" in kind else "is vectorised"
            raise TaskError(
                f"environment {name} {what}; take off its {kind}, the trainer steps copies of a single one."
            )


def _refuse_start(name: str, state: Any) -> None:
    """Refuse a State, as `reset` returned it, that cannot be trained on, recorded or saved."""
    missing = next((part for part in _STATE if not hasattr(state, part)), None)
    if missing is not None:
        kind = type(state).__name__
        raise TaskError(f"environment {name} must return a brax.envs.State from reset; its {kind} has no {missing}.")
    for part in ("metrics", "info"):
        if not isinstance(getattr(state, part), Mapping):
            kind = type(getattr(state, part)).__name__
            raise TaskError(f"environment {name}: {part} must be a dictionary, not {kind}.")
    _refuse_observation(name, state.obs)
    _refuse_metrics(name, state.metrics)
    _refuse_leaves(name, state)
    scalars = {"reward": state.reward, "done": state.done, "info['truncation']": state.info.get("truncation", 0)}
    for part, value in scalars.items():
        if jnp.shape(value) != ():
            raise TaskError(
                f"environment {name} must give a scalar {part}, not shape {jnp.shape(value)}; it must not be batched."
            )
    if "first_obs" in state.info or "first_state" in state.info:
        raise TaskError(f"environment {name} resets itself; take off its auto-reset wrapper, the trainer resets.")


def _refuse_leaves(name: str, state: Any) -> None:
    """Refuse what is no array, and names that no checkpoint could keep."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for path, leaf in leaves:
        place = leaf_name(path)
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
            kind = type(leaf).__name__
            raise TaskError(
                f"environment {name}: {place[:MOST_CHARACTERS]} is {kind}; a State holds arrays and numbers."
            )
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.number) and _bits(dtype) < 8:
            raise TaskError(
                f"environment {name}: {place} is {dtype}, which no checkpoint can hold; use a type of whole bytes."
            )
    # By these names checkpoints keep them.
    dotted = Counter(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    for saved, times in dotted.items():
        if len(saved) > MOST_CHARACTERS or not saved.isprintable() or saved.endswith("/"):
            raise TaskError(
                f"environment {name}: a State holds things under names of printable characters, at most "
                f"{MOST_CHARACTERS} of them, that do not end in /, and not under {saved[:40]!r}."
            )
        if times > 1:
            raise TaskError(f"environment {name} has two entries that would both be saved as {saved}; rename one.")


def _bits(dtype: Any) -> int:
    info: Any = jnp.finfo if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo
    return int(info(dtype).bits)


def _refuse_metrics(name: str, metrics: Mapping[Any, Any]) -> None:
    if len(metrics) > MOST_METRICS:
        raise TaskError(f"environment {name} has {len(metrics)} metrics; at most {MOST_METRICS} are recorded.")
    for key, value in metrics.items():
        if not isinstance(key, str):
            raise TaskError(f"environment {name}: metrics are named by text, not by {key!r:.40}.")
        if isinstance(value, Mapping) or (not hasattr(value, "dtype") and not isinstance(value, (bool, int, float))):
            kind = "a dictionary" if isinstance(value, Mapping) else type(value).__name__
            raise TaskError(f"environment {name}: metrics[{key!r:.40}] is {kind}; metrics are numbers by name.")


def _refuse_observation(name: str, observation: Any) -> None:
    if not hasattr(observation, "ndim"):
        kind = "a dictionary" if isinstance(observation, Mapping) else type(observation).__name__
        raise TaskError(f"environment {name} observes {kind}; this trainer needs one vector of floats.")
    shape, dtype = observation.shape, observation.dtype
    if observation.ndim != 1 or not observation.size or not jnp.issubdtype(dtype, jnp.floating):
        raise TaskError(f"environment {name} must observe a vector of floats, not {dtype} of shape {shape}.")


def _attribute(name: str, environment: Any, attribute: str) -> Any:
    """Return an attribute of an author's object, None where it has none."""
    try:
        return getattr(environment, attribute, None)
    except Exception as error:
        raise TaskError(f"environment {name}: {attribute} raises {reason(error)}.") from error


def _action_size(name: str, environment: Any) -> int:
    size = _attribute(name, environment, "action_size")
    try:
        whole = not callable(size) and np.shape(size) == () and int(size) == size >= 1
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        kind = "a method; make it a property" if callable(size) else f"{size!r:.40}"
        raise TaskError(f"environment {name}: action_size must be a whole number of at least 1, not {kind}.")
    return int(size)


def _action_bounds(
    name: str, environment: Any, size: int, config: RolloutConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    given: dict[str, Any] = {"action_low": config.action_low, "action_high": config.action_high}
    if config.action_low is None:
        given = {bound: _attribute(name, environment, bound) for bound in given}
    missing = [bound for bound, value in given.items() if value is None]
    if len(missing) == 1:
        raise TaskError(f"environment {name} has no {missing[0]}; give action_low and action_high, or neither.")
    if missing:
        return (-1.0,) * size, (1.0,) * size
    arrays = []
    for bound, value in given.items():
        try:
            arrays.append(np.asarray(value, np.float64))
        except (TypeError, ValueError) as error:
            kind = "a method; make it a property" if callable(value) else f"{value!r:.40}"
            raise TaskError(f"environment {name}: {bound} must be numbers, not {kind}.") from error
    low, high = arrays
    if low.shape not in ((), (size,)) or high.shape not in ((), (size,)):
        raise TaskError(
            f"environment {name}: action_low and action_high must be numbers or have {size} entries, "
            f"not shapes {low.shape} and {high.shape}."
        )
    low, high = np.broadcast_to(low, (size,)), np.broadcast_to(high, (size,))
    if not np.all(low < high):
        raise TaskError(f"environment {name}: action_low must be below action_high in every component.")
    return tuple(low.tolist()), tuple(high.tolist())
