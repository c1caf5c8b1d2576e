"""A tiny task and program, compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from brax.envs import Env

from tests.tiny_environments import PointMass, TinyEnvironment
from trpo_brax.config import Config, RolloutConfig, override, shaping_differences
from trpo_brax.environments import Task, own_task
from trpo_brax.learner.program import Program
from trpo_brax.runs.files import write_bytes
from trpo_brax.views import plots, training_plots


def tiny_config(**values: object) -> Config:
    """Return a configuration that compiles in seconds; 8 environments, 10 steps."""
    small = {
        "num_envs": 8,
        "unroll_length": 10,
        "episode_length": 7,
        "policy_hidden_sizes": (8,),
        "critic_hidden_sizes": (8,),
        # Of 80 samples: with less damping the fit amplifies rounding.
        "critic_fraction": 1.0,
        "critic_damping": 0.1,
        "total_steps": 8 * 10 * 4,
        "checkpoint_every": 2,
        "eval_every": 0,
        "final_evaluation_episodes": 0,
    }
    return override(Config(), **(small | values))


_PROGRAMS: list[Program] = []


def shared_program(config: Config, task: Task, devices: Sequence[jax.Device]) -> Program:
    """Return a program, and the same one again where nothing that is compiled differs.

    Tracing and compiling take most of a tiny run's time, and one executable is what the persistent cache would give.
    """

    def same(other: Program) -> bool:
        return (
            not shaping_differences(other.config, config)
            and other.config.runtime.check_finite == config.runtime.check_finite
            and list(other.mesh.devices.flat) == list(devices)
            and same_environment(other.task.environment, task.environment)
        )

    known = next(filter(same, _PROGRAMS), None)
    if known is None:
        known = Program(config, task, devices)
        _PROGRAMS.append(known)
    return known


def same_environment(ours: Env, theirs: Env) -> bool:
    """Tell whether two environments are one, or two tiny ones that were made alike."""
    made_alike = type(ours) is type(theirs) and repr(vars(ours)) == repr(vars(theirs))
    return ours is theirs or (isinstance(ours, TinyEnvironment) and made_alike)


@pytest.fixture(scope="session", autouse=True)
def _shared_programs() -> Iterator[None]:
    """Let all training of one process share its programs; that a new process goes on alike is test_survival.py's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trpo_brax.training.session.Program", shared_program)
        yield


_DRAWING = {
    "learning_figure": plots.learning_figure,
    "training_figure": training_plots.training_figure,
    "save_figure": plots.save_figure,
}


def write_nothing(_: object, file: Path) -> None:
    """Write an empty file in place of a picture; what a disk refuses is refused."""
    write_bytes(file, b"")


@pytest.fixture(scope="session", autouse=True)
def _blank_pictures() -> Iterator[None]:
    """Let runs end without pictures, where no test looks at them: drawing takes half as long as a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _DRAWING:
            blank = write_nothing if name == "save_figure" else lambda *_: None
            patch.setattr(f"trpo_brax.training.conclusion.{name}", blank)
        yield


@pytest.fixture(scope="module")
def pictures() -> Iterator[None]:
    """Let the runs of a module end with their pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for name, drawing in _DRAWING.items():
            patch.setattr(f"trpo_brax.training.conclusion.{name}", drawing)
        yield


@pytest.fixture(scope="session")
def point_mass() -> Task:
    return own_task(PointMass(), RolloutConfig())


@pytest.fixture(scope="session")
def programs(point_mass: Task) -> dict[int, Program]:
    """Device count -> the same program over that many devices."""
    return {count: shared_program(tiny_config(), point_mass, jax.devices()[:count]) for count in (1, 2, 4)}


def leaves(tree: object) -> dict[str, np.ndarray]:
    """Return a tree's leaves by path, on the host."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_bit_identical(ours: object, theirs: object) -> None:
    """Every leaf equal in dtype, shape and every bit, NaN included."""
    left, right = leaves(ours), leaves(theirs)
    assert left.keys() == right.keys()
    for name, leaf in left.items():
        assert leaf.dtype == right[name].dtype, name
        assert leaf.tobytes() == right[name].tobytes(), name


def replace_key(state: object, seed: int) -> object:
    """Return the state with another root key."""
    return dataclasses.replace(state, key=jax.random.PRNGKey(seed))  # type: ignore[type-var]
