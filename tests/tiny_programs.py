"""A tiny task and program, compiled once."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.tiny_environments import PointMass
from trpo_brax.config import Config, RolloutConfig, override
from trpo_brax.environments import Task, own_task
from trpo_brax.learner.program import Program


def tiny_config(**values: object) -> Config:
    """Return a configuration that compiles in seconds; 8 environments, 10 steps."""
    small = {
        "num_envs": 8,
        "unroll_length": 10,
        "episode_length": 7,
        "policy_hidden_sizes": (8,),
        "critic_hidden_sizes": (8,),
        "critic_epochs": 2,
        "critic_minibatches": 3,
        "total_steps": 8 * 10 * 4,
        "checkpoint_every": 2,
        "final_evaluation_episodes": 0,
    }
    return override(Config(), **(small | values))


@pytest.fixture(scope="session")
def point_mass() -> Task:
    return own_task(PointMass(), RolloutConfig())


@pytest.fixture(scope="session")
def programs(point_mass: Task) -> dict[int, Program]:
    """Device count -> the same program over that many devices."""
    return {count: Program(tiny_config(), point_mass, jax.devices()[:count]) for count in (1, 2, 4)}


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
