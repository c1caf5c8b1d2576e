"""Which environments of a user's own are accepted, what is known of them, and what is said of the others."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_environments import Bounded, ChangesShape, DictObservation, PointMass, WeaklyTyped, unit
from trpo_brax.config import RolloutConfig
from trpo_brax.environments import environment_name, load_environment, own_task
from trpo_brax.environments.quiet import quiet
from trpo_brax.errors import ConfigError, TaskError

with quiet():
    from brax.envs import training as brax_wrappers


def test_own_task_knows_name_and_sizes() -> None:
    task = own_task(PointMass(), RolloutConfig())
    assert task.name == "tests.tiny_environments:PointMass"
    assert (task.observation_size, task.action_low, task.action_high) == (2, (-1.0,), (1.0,))
    assert environment_name(WeaklyTyped()) == "tests.tiny_environments:WeaklyTyped"


CONFIGURED = RolloutConfig(action_low=-5.0, action_high=6.0)


@pytest.mark.parametrize(
    ("environment", "config", "low", "high"),
    [
        (Bounded(), RolloutConfig(), (-1, -1), (1, 1)),
        (Bounded(control_range=[(-2, 3), (0, 4)]), RolloutConfig(), (-1, -1), (1, 1)),
        (Bounded(-0.5, [1, 2], control_range=[(-2, 3), (0, 4)]), RolloutConfig(), (-0.5, -0.5), (1, 2)),
        (Bounded(-0.5, [1, 2], control_range=[(-2, 3), (0, 4)]), CONFIGURED, (-5, -5), (6, 6)),
        (Bounded(), CONFIGURED, (-5, -5), (6, 6)),
        (Bounded(jnp.array([-1.0, -2.0]), np.float32(7)), RolloutConfig(), (-1, -2), (7, 7)),
    ],
    ids=["nothing", "actuators", "attributes", "configuration", "configuration alone", "arrays"],
)
def test_action_bounds_come_from_configuration_or_attributes_or_are_one(environment, config, low, high) -> None:
    task = own_task(environment, config)
    assert (task.action_low, task.action_high) == (low, high)
    assert all(type(bound) is float for bound in task.action_low + task.action_high)


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (-1, None, " has no action_high; give action_low and action_high, or neither."),
        (lambda: -1, 1, ": action_low must be numbers, not a method; make it a property."),
        (-1, "high", ": action_high must be numbers, not 'high'."),
        ([-1, -1, -1], 1, ": action_low and action_high must be numbers or have 2 entries, not shapes (3,) and ()."),
        (-1, [[1, 1]], ": action_low and action_high must be numbers or have 2 entries, not shapes () and (1, 2)."),
        ([-1, 1], 1, ": action_low must be below action_high in every component."),
        (1, -1, ": action_low must be below action_high in every component."),
        (float("nan"), 1, ": action_low must be below action_high in every component."),
    ],
)
def test_impossible_bounds_are_refused(low, high, sentence: str) -> None:
    with pytest.raises(TaskError) as raised:
        own_task(Bounded(low, high), RolloutConfig())
    assert str(raised.value).endswith(f"tests.tiny_environments:Bounded{sentence}")


class OnlySteps:
    action_size = 1

    def step(self, state, action):
        return state


class Mine(PointMass):
    """A `PointMass` of which an author got something wrong: the State of reset or of step, or an attribute."""

    def __init__(self, start=lambda state: state, after=lambda state: state, **attributes) -> None:
        self.start, self.after = start, after
        for name, value in attributes.items():
            setattr(self, name, value)

    def reset(self, rng):
        return self.start(super().reset(rng))

    def step(self, state, action):
        return self.after(super().step(state, action))


class PlaygroundState(NamedTuple):
    data: Any
    obs: Any
    reward: Any
    done: Any
    metrics: Any
    info: Any


class Keeps(PointMass):
    """Keeps what reset drew on itself, and reads it in step."""

    def reset(self, rng):
        self.goal = unit(rng)[0]
        return super().reset(rng)

    def step(self, state, action):
        return super().step(state, action + self.goal)


class KeepsAction(PointMass):
    """Keeps the last action on itself."""

    last = None

    def step(self, state, action):
        before, self.last = self.last, action
        return super().step(state, action if before is None else action - before)


class AutoResetCart(PointMass):
    """Called like a wrapper, and none."""


class Unready(PointMass):
    @property
    def action_size(self):
        raise NotImplementedError("ask the model")


def changed(**parts):
    return lambda state: state.replace(**parts)


def with_info(**entries):
    return lambda state: state.replace(info={**state.info, **entries})


def writes_in_place(state):
    state.info["last_action"] = jnp.zeros(1)
    return state


def misses(state):
    return state.info["goal"]


def announces(state):
    raise ValueError("these do not fit:\n\n  (3,) and (2,)\n")


class NewKey(PointMass):
    """Writes a new key into `info`, in place."""

    def step(self, state, action):
        state.info["last_action"] = action
        return super().step(state, action)


class RandomVmapWrapper(brax_wrappers.Wrapper):
    """As the randomising wrappers of Brax and MuJoCo Playground are called."""


NAMES = (
    ": a State holds things under names of printable characters, at most 200 of them, that do not end in /, and not "
    "under"
)
NO_STATE = " must return a brax.envs.State from reset; its"
SIZE = ": action_size must be a whole number of at least 1, not"
WRAPPED = "take off its {}, the trainer steps copies of a single one."

REFUSED = [
    (OnlySteps(), " is not a brax.envs.Env: it has no reset."),
    (DictObservation(), " observes a dictionary; this trainer needs one vector of floats."),
    (Mine(changed(obs=(1.0, 2.0))), " observes tuple; this trainer needs one vector of floats."),
    (Mine(changed(obs=jnp.zeros(2, jnp.int32))), " must observe a vector of floats, not int32 of shape (2,)."),
    (Mine(changed(obs=jnp.zeros((4, 2)))), " must observe a vector of floats, not float32 of shape (4, 2)."),
    (Mine(changed(obs=jnp.zeros(0))), " must observe a vector of floats, not float32 of shape (0,)."),
    (Mine(changed(reward=jnp.zeros(1))), " must give a scalar reward, not shape (1,); it must not be batched."),
    (
        Mine(with_info(truncation=jnp.zeros(3))),
        " must give a scalar info['truncation'], not shape (3,); it must not be batched.",
    ),
    (ChangesShape(), " returns obs of shape (2,) from step, (1,) from reset."),
    (
        Mine(with_info(count=0), with_info(count=0.5)),
        " returns info['count'] as float32 from step, int32 from reset; begin it with float32.",
    ),
    (
        Mine(with_info(count=False), with_info(count=2)),
        " returns info['count'] as int32 from step, bool from reset; begin it with int32.",
    ),
    (
        Mine(with_info(count=jnp.zeros((), jnp.uint8)), with_info(count=jnp.zeros((), jnp.int32))),
        " returns info['count'] as int32 from step, uint8 from reset; begin it with int32.",
    ),
    # Wrappers that do the trainer's part
    (
        brax_wrappers.AutoResetWrapper(PointMass()),
        " resets itself; take off its AutoResetWrapper, the trainer resets.",
    ),
    (brax_wrappers.wrap(PointMass()), " resets itself; take off its AutoResetWrapper, the trainer resets."),
    (Mine(with_info(first_obs=0.0)), " resets itself; take off its auto-reset wrapper, the trainer resets."),
    (brax_wrappers.VmapWrapper(PointMass(), 4), f" is vectorised; {WRAPPED.format('VmapWrapper')}"),
    (RandomVmapWrapper(PointMass()), f" is randomised and vectorised; {WRAPPED.format('RandomVmapWrapper')}"),
    # Another State
    (
        Mine(lambda state: (state.obs, state)),
        " must return a brax.envs.State from reset; its tuple has no pipeline_state.",
    ),
    (
        Mine(lambda state: PlaygroundState(state.obs, state.obs, 0.0, 0.0, {}, {})),
        f"{NO_STATE} PlaygroundState has no pipeline_state.",
    ),
    (Mine(after=lambda state: (state.obs, state)), " must return a State from step, not tuple."),
    (Mine(after=lambda state: None), " must return a State from step, not NoneType."),
    (NewKey(), ": info['last_action'] is in step's State only; begin it in reset."),
    (Mine(after=writes_in_place), ": info['last_action'] is in step's State only; begin it in reset."),
    (Mine(with_info(goal=0.0), changed(info={})), ": info['goal'] is in reset's State only; return it from step, too."),
    (
        Mine(with_info(pair=(0.0, 1.0)), with_info(pair=[0.0, 1.0])),
        ": step's State has other containers than reset's, a list in place of a tuple for instance.",
    ),
    (Mine(changed(metrics=None)), ": metrics must be a dictionary, not NoneType."),
    (Mine(changed(info=None)), ": info must be a dictionary, not NoneType."),
    (Mine(with_info(name="cart")), ": info['name'] is str; a State holds arrays and numbers."),
    # What could not be recorded or saved
    (Mine(changed(metrics={"a": {"b": 0.0}})), ": metrics['a'] is a dictionary; metrics are numbers by name."),
    (Mine(changed(metrics={"a": None})), ": metrics['a'] is NoneType; metrics are numbers by name."),
    (Mine(changed(metrics={1: 0.0})), ": metrics are named by text, not by 1."),
    (
        Mine(changed(metrics={f"m{n}": 0.0 for n in range(1001)})),
        " has 1001 metrics; at most 1000 are recorded.",
    ),
    (
        Mine(with_info(**{"a\nb": 0.0})),
        f"{NAMES} 'info.a\\nb'.",
    ),
    (Mine(with_info(**{"a/": 0.0})), f"{NAMES} 'info.a/'."),
    (
        Mine(changed(metrics={"m" * 200: 0.0})),
        f"{NAMES} 'metrics.{'m' * 32}'.",
    ),
    (
        Mine(with_info(**{"a.b": 0.0, "a": {"b": 0.0}})),
        " has two entries that would both be saved as info.a.b; rename one.",
    ),
    (
        Mine(with_info(small=jnp.zeros(2, jnp.int4))),
        ": info['small'] is int4, which no checkpoint can hold; use a type of whole bytes.",
    ),
    # Attributes
    (
        Mine(action_size=lambda: 1),
        f"{SIZE} a method; make it a property.",
    ),
    (Mine(action_size=(1,)), f"{SIZE} (1,)."),
    (Mine(action_size=0), f"{SIZE} 0."),
    (Mine(action_size=math.inf), f"{SIZE} inf."),
    (Unready(), ": action_size raises NotImplementedError: ask the model (test_own.py, line {Unready})."),
    (Mine(action_size=1.5), f"{SIZE} 1.5."),
    # What raises
    (KeepsAction(), ": step uses what an earlier call left on the object; keep it in info."),
    (Keeps(), ": step uses what an earlier call left on the object; keep it in info."),
    (Mine(after=misses), ": step raises KeyError: 'goal' (test_own.py, line {misses})."),
    (Mine(start=announces), ": reset raises ValueError: (3,) and (2,) (test_own.py, line {announces})."),
]


@pytest.mark.parametrize(("environment", "sentence"), REFUSED, ids=[sentence[:60] for _, sentence in REFUSED])
def test_what_a_trainer_cannot_use_is_refused_in_one_sentence(environment, sentence: str) -> None:
    lines = {function.__name__: inspect.getsourcelines(function)[1] + 1 for function in (misses, announces)}
    lines["Unready"] = inspect.getsourcelines(Unready)[1] + 3
    for function, line in lines.items():
        sentence = sentence.replace(f"{{{function}}}", str(line))
    with pytest.raises(TaskError) as raised:
        own_task(environment, RolloutConfig())
    assert str(raised.value) == f"environment {environment_name(environment)}{sentence}"


def test_a_class_in_place_of_an_object_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match="PointMass"):
        own_task(PointMass, RolloutConfig())


@pytest.mark.parametrize("environment", [brax_wrappers.EpisodeWrapper(PointMass(), 10, 1), AutoResetCart()])
def test_what_only_looks_like_the_trainers_part_may_stay(environment) -> None:
    assert own_task(environment, RolloutConfig()).observation_size == 2


def test_load_environment_builds_the_class() -> None:
    assert type(load_environment("tests.tiny_environments:PointMass")) is PointMass


@pytest.mark.parametrize(
    ("specification", "sentence"),
    [
        ("hopper", "environment must be package.module:Class or :function, not 'hopper'."),
        (
            "tests.tiny_environments:",
            "environment must be package.module:Class or :function, not 'tests.tiny_environments:'.",
        ),
        (":PointMass", "environment must be package.module:Class or :function, not ':PointMass'."),
        ("a:b:c", "environment must be package.module:Class or :function, not 'a:b:c'."),
        (
            ".tiny:PointMass",
            "environment must be package.module:Class or :function, not '.tiny:PointMass'.",
        ),
        ("no_such.module:A", "environment 'no_such.module:A': there is no module 'no_such' to import."),
        ("tests.nothing:A", "environment 'tests.nothing:A': there is no module 'tests.nothing' to import."),
        (
            "tests.tiny_environments:PointMas",
            "environment 'tests.tiny_environments:PointMas': module tests.tiny_environments has no PointMas; "
            "did you mean PointMass?",
        ),
    ],
)
def test_load_environment_says_what_is_wrong(specification: str, sentence: str) -> None:
    with pytest.raises(TaskError) as raised:
        load_environment(specification)
    assert str(raised.value) == sentence


def make(size: int, low: float = -1.0) -> Bounded | None:
    if size == 0:
        return None
    if size < 0:
        raise ValueError("size must be positive")
    environment = Bounded(low, 2.0)
    environment.action_size = size
    return environment


def test_load_environment_calls_a_function_with_arguments() -> None:
    environment = load_environment(f"{__name__}:make", '{"size": 3, "low": -0.5}')
    assert (environment.action_size, environment.action_low) == (3, -0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (None, TaskError, "cannot be built without environment_arguments: missing a required argument: 'size'."),
        ("{}", TaskError, "cannot be built without environment_arguments: missing a required argument: 'size'."),
        (
            '{"siz": 1}',
            TaskError,
            "cannot be built with these environment_arguments: missing a required argument: 'size'.",
        ),
        ('{"size": 0}', TaskError, "returns None; it must return the environment that it makes."),
        ('{"size": -1}', TaskError, "cannot be built: ValueError: size must be positive (test_own.py, line"),
        ("[1]", ConfigError, "environment_arguments must be a JSON object of at most 500 characters."),
        ("{size: 1}", ConfigError, "environment_arguments are not valid JSON: "),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: str | None, error: type, sentence: str) -> None:
    with pytest.raises(error) as raised:
        load_environment(f"{__name__}:make", arguments)
    assert sentence in str(raised.value)


def test_load_environment_needs_something_to_call() -> None:
    with pytest.raises(TaskError, match="math:pi"):
        load_environment("math:pi")


def test_an_import_that_fails_within_the_users_module_shows_its_own_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "environment_with_a_missing_import.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        load_environment("environment_with_a_missing_import:Mine")
