"""A linear-quadratic task: the learned policy's cost against the Riccati optimum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

from tests.tiny_environments import PointMass
from tests.tiny_programs import tiny_config
from trpo_brax.environments import VectorizedEnvironment, own_task
from trpo_brax.learner.program import Program
from trpo_brax.learner.state import initial_state

DISCOUNT = 0.95
A = np.array([[1.0, 0.1], [0.0, 0.9]])
B = np.array([[0.0], [0.1]])
Q = np.diag([1.0, 0.0])
R = np.array([[0.1]])


def cost_matrix(gain: np.ndarray) -> np.ndarray:
    """Return P with x^T P x the discounted cost of u = -gain x from x, by summing the series."""
    closed = np.sqrt(DISCOUNT) * (A - B @ gain)
    stage = Q + gain.T @ R @ gain
    total, power = np.zeros((2, 2)), np.eye(2)
    for _ in range(2000):
        total += power.T @ stage @ power
        power = closed @ power
    return total


@pytest.mark.parametrize("seeds", [(0,), pytest.param((1, 2, 3, 4, 5, 6, 7), marks=pytest.mark.slow)])
def test_a_linear_policy_comes_within_three_percent_of_the_riccati_optimum(seeds: tuple[int, ...]) -> None:
    """States start uniform in [-1, 1)^2, so the mean cost is trace(P) / 3."""
    riccati = solve_discrete_are(np.sqrt(DISCOUNT) * A, np.sqrt(DISCOUNT) * B, Q, R)
    optimum = np.trace(riccati) / 3
    config = tiny_config(
        num_envs=64,
        unroll_length=50,
        episode_length=50,
        discount=DISCOUNT,
        trace_decay=0.95,
        policy_hidden_sizes=(),
        critic_hidden_sizes=(32, 32),
        max_kl=0.02,
        # Wide enough that the optimal control never meets its bounds: a clipped one is no longer linear.
        action_low=-4.0,
        action_high=4.0,
        initial_log_std=-1.5,
    )
    task = own_task(PointMass(), config.rollout)
    program = Program(config, task, jax.devices()[:1])
    environment = VectorizedEnvironment(task, episode_length=50)
    for seed in seeds:
        start = initial_state(config, environment, program.specification.networks(), jax.random.PRNGKey(seed))
        state, _ = program.run(jax.device_put(start, program.shardings), 200)
        # The policy is linear in normalised observations: its gain in raw ones, by its values at the unit vectors.
        policy = program.specification
        raw = jnp.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
        origin, along, across = 4.0 * np.asarray(policy.distribution(state.policy, state.statistics, raw).mean)[:, 0]
        gain = -np.array([[along - origin, across - origin]]) / 0.1
        assert abs(origin) < 0.1
        cost = np.trace(cost_matrix(gain)) / 3
        assert cost >= optimum * (1 - 1e-6), "nothing beats the optimum: else the reference is wrong"
        assert cost <= 1.03 * optimum, f"seed {seed}: {cost:.4f} against {optimum:.4f}"
