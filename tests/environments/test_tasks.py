"""Which environments are accepted, what is known of them, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_environments import Bounded, ChangesShape, DictObservation, PointMass, WeaklyTyped
from trpo_brax.config import RolloutConfig
from trpo_brax.environments import (
    TASKS,
    VectorizedEnvironment,
    brax_task,
    environment_name,
    load_environment,
    own_task,
)
from trpo_brax.environments.quiet import quiet
from trpo_brax.environments.vectorized import POOL_SIZE
from trpo_brax.errors import TaskError

with quiet():
    from brax.envs import training as brax_wrappers

SIZES = {
    "ant": (27, 8),
    "halfcheetah": (17, 6),
    "hopper": (11, 3),
    "humanoid": (244, 17),
    "humanoidstandup": (244, 17),
    "inverted_double_pendulum": (8, 1),
    "inverted_pendulum": (4, 1),
    "pusher": (23, 7),
    "reacher": (11, 2),
    "swimmer": (8, 2),
    "walker2d": (17, 6),
}
"""Observation and action sizes, from the tasks' documentation."""

TRACED = [
    ("ant", "spring"),
    ("halfcheetah", "positional"),
    ("hopper", "spring"),
    ("humanoid", "spring"),
    ("humanoidstandup", "spring"),
    ("inverted_double_pendulum", "generalized"),
    ("inverted_pendulum", "mjx"),
    ("pusher", "spring"),
    ("reacher", "spring"),
    ("swimmer", "generalized"),
    ("walker2d", "spring"),
]
"""Every task once and every backend at least once; test_brax_physics.py compiles some, and every pair where slow."""

NUM_ENVS = 4


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


# Brax's tasks


def test_every_task_is_listed_with_its_backends() -> None:
    assert TASKS.keys() == SIZES.keys()
    assert TASKS["swimmer"] == ("generalized",)
    assert all(len(backends) == 4 for task, backends in TASKS.items() if task != "swimmer")


@pytest.mark.parametrize(("task_name", "backend"), TRACED)
def test_tasks_construct_reset_and_step(task_name: str, backend: str) -> None:
    task = brax_task(task_name, backend)
    observation, action = SIZES[task_name]
    assert (task.name, task.observation_size, task.environment.action_size) == (task_name, observation, action)
    assert task.action_low == (-1.0,) * action
    assert task.action_high == (1.0,) * action
    assert task.environment.backend == backend
    environment = VectorizedEnvironment(task, episode_length=1000)
    # From shapes alone, and from one trace of reset and one of step: what a pool holds is what reset returns.
    start = jax.eval_shape(environment.reset, jax.ShapeDtypeStruct((NUM_ENVS, 2), jnp.uint32))
    pool = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((NUM_ENVS, POOL_SIZE, *leaf.shape[1:]), leaf.dtype), start.state
    )
    actions = jax.ShapeDtypeStruct((NUM_ENVS, action), jnp.float32)
    taken = jax.ShapeDtypeStruct((NUM_ENVS,), jnp.int32)
    after, transitions, _ = jax.eval_shape(environment.step, start, actions, pool, taken)
    # Leaf by leaf: from Python 3.13 on, == of MuJoCo's dataclasses asks an empty array for its truth.
    assert jax.tree.structure(start) == jax.tree.structure(after)
    assert jax.tree.leaves(shapes(start)) == jax.tree.leaves(shapes(after))
    assert transitions.next_observation.shape == (NUM_ENVS, observation)
    assert transitions.reward.shape == transitions.done.shape == transitions.valid.shape == (NUM_ENVS,)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((start, after, transitions)))


def test_a_task_is_loaded_once() -> None:
    assert brax_task("inverted_pendulum", "spring") is brax_task("inverted_pendulum", "spring")


@pytest.mark.parametrize(
    ("task_name", "backend", "sentence"),
    [
        (
            "swimmer",
            "spring",
            "task swimmer does not run on backend spring; Brax supports it on generalized only.",
        ),
        ("antt", "spring", "unknown task 'antt'; did you mean ant."),
        ("cheetah", "spring", "unknown task 'cheetah'; did you mean halfcheetah."),
        (
            "inverted_pendulum",
            "warp",
            "task inverted_pendulum does not run on backend warp; Brax supports it on "
            "spring and positional and generalized and mjx only.",
        ),
    ],
)
def test_what_brax_does_not_have_is_said_in_one_sentence(task_name: str, backend: str, sentence: str) -> None:
    with pytest.raises(TaskError) as raised:
        brax_task(task_name, backend)
    assert str(raised.value) == sentence


# A user's own


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
        (Bounded(control_range=[(-2, 3), (0, 4)]), RolloutConfig(), (-2, 0), (3, 4)),
        (Bounded(-0.5, [1, 2], control_range=[(-2, 3), (0, 4)]), RolloutConfig(), (-0.5, -0.5), (1, 2)),
        (Bounded(low=-0.5, control_range=[(-2, 3), (0, 4)]), RolloutConfig(), (-2, 0), (3, 4)),
        (Bounded(-0.5, [1, 2], control_range=[(-2, 3), (0, 4)]), CONFIGURED, (-5, -5), (6, 6)),
        (Bounded(), CONFIGURED, (-5, -5), (6, 6)),
        (Bounded(jnp.array([-1.0, -2.0]), np.float32(7)), RolloutConfig(), (-1, -2), (7, 7)),
    ],
    ids=["nothing", "actuators", "attributes", "half the attributes", "configuration", "configuration alone", "arrays"],
)
def test_action_bounds_come_from_configuration_attributes_actuators_or_are_one(environment, config, low, high) -> None:
    task = own_task(environment, config)
    assert (task.action_low, task.action_high) == (low, high)
    assert all(type(bound) is float for bound in task.action_low + task.action_high)


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        ([-1, -1, -1], 1, "action_low and action_high must be numbers or have 2 entries, not shapes (3,) and ()."),
        (-1, [[1, 1]], "action_low and action_high must be numbers or have 2 entries, not shapes () and (1, 2)."),
        ([-1, 1], 1, "action_low must be below action_high in every component."),
        (1, -1, "action_low must be below action_high in every component."),
        (float("nan"), 1, "action_low must be below action_high in every component."),
    ],
)
def test_impossible_bounds_are_refused(low, high, sentence: str) -> None:
    with pytest.raises(TaskError) as raised:
        own_task(Bounded(low, high), RolloutConfig())
    assert str(raised.value) == f"environment tests.tiny_environments:Bounded: {sentence}"


class OnlySteps:
    action_size = 1

    def step(self, state, action):
        return state


class TupleObservation(PointMass):
    def reset(self, rng):
        state = super().reset(rng)
        return state.replace(obs=(state.obs, state.obs))


class Gymnax(PointMass):
    """Returns (observation, state), as other libraries do."""

    def reset(self, rng):
        state = super().reset(rng)
        return state.obs, state


class WholeNumbers(PointMass):
    def reset(self, rng):
        return super().reset(rng).replace(obs=jnp.zeros(2, jnp.int32))


class VectorReward(PointMass):
    def reset(self, rng):
        return super().reset(rng).replace(reward=jnp.zeros(1))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (OnlySteps(), "is not a brax.envs.Env: it has no reset."),
        (DictObservation(), "observes a dictionary; this trainer needs one vector of floats."),
        (brax_wrappers.VmapWrapper(PointMass(), 4), "must observe a vector of floats, not float32 of shape (4, 2)."),
        (WholeNumbers(), "must observe a vector of floats, not int32 of shape (2,)."),
        (ChangesShape(), "returns .obs of shape (2,) from step, (1,) from reset."),
        (VectorReward(), "must give a scalar reward, not shape (1,); it must not be batched."),
        (
            brax_wrappers.AutoResetWrapper(PointMass()),
            "resets itself; take off its auto-reset wrapper, the trainer resets.",
        ),
        (
            brax_wrappers.AutoResetWrapper(brax_wrappers.EpisodeWrapper(PointMass(), 10, 1)),
            "resets itself; take off its auto-reset wrapper, the trainer resets.",
        ),
    ],
    ids=[
        "no reset",
        "dictionary",
        "batched",
        "whole numbers",
        "changes shape",
        "vector reward",
        "auto-reset",
        "envs.create",
    ],
)
def test_what_a_trainer_cannot_use_is_refused_in_one_sentence(environment, sentence: str) -> None:
    with pytest.raises(TaskError) as raised:
        own_task(environment, RolloutConfig())
    assert str(raised.value) == f"environment {environment_name(environment)} {sentence}"


@pytest.mark.parametrize(
    "environment",
    [brax_wrappers.VmapWrapper(PointMass()), brax_wrappers.wrap(PointMass()), TupleObservation(), Gymnax()],
    ids=["vmapped", "wrapped for Brax's trainers", "tuple", "other library"],
)
def test_what_raises_when_traced_is_refused_by_name(environment) -> None:
    with pytest.raises(TaskError, match=environment_name(environment)):
        own_task(environment, RolloutConfig())


def test_a_class_in_place_of_an_object_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match="PointMass"):
        own_task(PointMass, RolloutConfig())


def test_brax_s_episode_wrapper_may_stay() -> None:
    task = own_task(brax_wrappers.EpisodeWrapper(PointMass(), 10, 1), RolloutConfig())
    assert task.observation_size == 2


# By name


def test_load_environment_builds_the_class() -> None:
    assert type(load_environment("tests.tiny_environments:PointMass")) is PointMass


@pytest.mark.parametrize(
    ("specification", "sentence"),
    [
        ("hopper", "environment must be package.module:Class, not 'hopper'."),
        ("tests.tiny_environments:", "environment must be package.module:Class, not 'tests.tiny_environments:'."),
        (":PointMass", "environment must be package.module:Class, not ':PointMass'."),
        ("a:b:c", "environment must be package.module:Class, not 'a:b:c'."),
        (".tiny:PointMass", "environment must be package.module:Class, not '.tiny:PointMass'."),
        ("no_such.module:A", "environment 'no_such.module:A': there is no module 'no_such' to import."),
        ("tests.nothing:A", "environment 'tests.nothing:A': there is no module 'tests.nothing' to import."),
        (
            "tests.tiny_environments:PointMas",
            "environment 'tests.tiny_environments:PointMas': module tests.tiny_environments has no PointMas; "
            "did you mean PointMass.",
        ),
    ],
)
def test_load_environment_says_what_is_wrong(specification: str, sentence: str) -> None:
    with pytest.raises(TaskError) as raised:
        load_environment(specification)
    assert str(raised.value) == sentence


def test_load_environment_needs_something_to_call() -> None:
    with pytest.raises(TaskError, match="math:pi"):
        load_environment("math:pi")


def test_an_import_that_fails_within_the_users_module_shows_its_own_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "environment_with_a_missing_import.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        load_environment("environment_with_a_missing_import:Mine")


def test_brax_trap_no_log_file_is_left_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes MUJOCO_LOG.TXT into the current folder when it loads halfcheetah's old-fashioned model."""
    monkeypatch.chdir(tmp_path)
    brax_task.cache_clear()
    brax_task("halfcheetah", "spring")
    assert list(tmp_path.iterdir()) == []
