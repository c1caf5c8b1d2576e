"""Brax's tasks: their sizes, and what is said of those that there are not."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from trpo_brax.environments import TASKS, brax_task
from trpo_brax.errors import TaskError

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


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


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
    # From shapes alone, and from one trace of each: test_vectorized.py has what copies of any task do.
    start = jax.eval_shape(task.start, jax.ShapeDtypeStruct((2,), jnp.uint32))
    after = jax.eval_shape(task.advance, start, jax.ShapeDtypeStruct((action,), jnp.float32))
    # Leaf by leaf: from Python 3.13 on, == of MuJoCo's dataclasses asks an empty array for its truth.
    assert jax.tree.structure(start) == jax.tree.structure(after)
    assert jax.tree.leaves(shapes(start)) == jax.tree.leaves(shapes(after))
    assert after.obs.shape == (observation,)
    assert after.reward.shape == after.done.shape == ()
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((start, after)))


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
        ("antt", "spring", "unknown task 'antt'; did you mean ant?"),
        ("cheetah", "spring", "unknown task 'cheetah'; did you mean halfcheetah?"),
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


def test_brax_trap_no_log_file_is_left_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes MUJOCO_LOG.TXT into the current folder when it loads halfcheetah's old-fashioned model."""
    monkeypatch.chdir(tmp_path)
    brax_task.cache_clear()
    brax_task("halfcheetah", "spring")
    assert list(tmp_path.iterdir()) == []
