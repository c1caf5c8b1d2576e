"""Brax's tasks compiled and stepped for real, against Brax's own `step`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.environments.test_tasks import SIZES
from trpo_brax.environments import TASKS, Task, VectorizedEnvironment, brax_task
from trpo_brax.environments.vectorized import POOL_SIZE

PAIRS = [(task, backend) for task, backends in TASKS.items() for backend in backends]
NUM_ENVS = 4


def scan(environment: VectorizedEnvironment, keys: jax.Array, actions: jax.Array):
    """Return the start and, for every step of `actions` [T, N, A], the transition and what Brax's own step gives."""
    start = environment.reset(keys)
    pool = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], POOL_SIZE, axis=1), start.state)

    def step(carry, action):
        current, taken = carry
        after, transition, taken = environment.step(current, action, pool, taken)
        own = jax.vmap(environment.task.environment.step)(current.state, action)
        return (after, taken), (transition, (own.obs, own.reward, own.done))

    _, steps = jax.lax.scan(step, (start, jnp.zeros(NUM_ENVS, jnp.int32)), actions)
    return start, steps


def compile_and_step(task_name: str, backend: str, length: int, tolerance: float = 1e-5) -> Task:
    """Step for real, and compare with Brax's own step, to rounding.

    The two are fused into one program in different ways, and a contact solver that iterates until float32 holds no more
    (halfcheetah on mjx) multiplies their roundings: 2.5e-5 was seen.
    """
    task = brax_task(task_name, backend)
    environment = VectorizedEnvironment(task, episode_length=1000)
    keys = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
    actions = np.random.default_rng(0).uniform(-1, 1, (length, NUM_ENVS, len(task.action_low))).astype(np.float32)
    start, (transitions, own) = jax.jit(functools.partial(scan, environment))(keys, actions)
    assert start.healthy.all()
    assert len(np.unique(start.observation, axis=0)) == NUM_ENVS
    assert transitions.valid.all()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(transitions))
    assert len(np.unique(transitions.next_observation, axis=0)) == length
    observation, reward, done = own
    np.testing.assert_allclose(transitions.next_observation, observation, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(transitions.reward, reward, rtol=tolerance, atol=tolerance)
    assert np.array_equal(transitions.termination, done > 0.5)
    return task


@pytest.mark.parametrize("backend", ["spring", "generalized"])
def test_a_task_runs(backend: str) -> None:
    compile_and_step("inverted_pendulum", backend, length=20)


@pytest.mark.slow
@pytest.mark.parametrize(("task_name", "backend"), PAIRS)
def test_every_task_runs_on_every_backend(task_name: str, backend: str) -> None:
    task = compile_and_step(task_name, backend, length=5, tolerance=1e-4 if backend == "mjx" else 1e-5)
    sizes = []
    jax.eval_shape(lambda: sizes.append(task.environment.observation_size))  # traced: Brax runs a whole reset for it
    assert SIZES[task_name] == (task.observation_size, len(task.action_low)) == (sizes[0], task.environment.action_size)
    jax.clear_caches()
