"""The mathematical kernels, timed by pytest-benchmark at two sizes: nothing about the times is asserted.

    pytest -m slow tests/benchmark/test_kernels.py

Single precision, a policy and a critic of two hidden layers of 64. Under pytest-xdist every kernel runs once, untimed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.references import generalized_advantages
from trpo_brax.algorithm import (
    PolicyBatch,
    ValueBatch,
    conjugate_gradient,
    fit_by_gauss_newton,
    generalized_advantage_estimation,
    sample_weights,
)
from trpo_brax.benchmark.update import (
    VectorPolicy,
    chained_products,
    damped_product,
    of_vector,
    surrogate_gradient,
)
from trpo_brax.config import NetworkConfig, TrustRegionConfig
from trpo_brax.learner.steps import policy_batch, policy_step, value_batch
from trpo_brax.policy import ActionBounds, Networks

pytestmark = pytest.mark.slow

OBSERVATION, ACTION = 11, 3
SETTINGS = TrustRegionConfig(cg_iterations=10, cg_tolerance=0.0)
KEY = jax.random.PRNGKey(0)


class Problem(NamedTuple):
    """One iteration's arrays."""

    networks: Networks
    parameters: Any
    policy: VectorPolicy
    theta: jax.Array
    samples: tuple[jax.Array, ...]
    """[N, T, ...]"""
    batch: PolicyBatch


@pytest.fixture(scope="module", params=[(64, 16), (512, 128)], ids=["64x16", "512x128"])
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """N, T."""
    size: tuple[int, int] = request.param
    return size


@pytest.fixture(scope="module")
def problem(shape: tuple[int, int]) -> Problem:
    networks = Networks.build(NetworkConfig(), OBSERVATION, ActionBounds((-1,) * ACTION, (1,) * ACTION))
    policy = networks.initial_policy(KEY)
    of_observations, of_actions, of_advantages = jax.random.split(KEY, 3)
    observations = jax.random.normal(of_observations, (*shape, OBSERVATION))
    distribution = networks.distribution(policy, observations)
    weights = sample_weights(jnp.ones(shape, bool))
    samples = (observations, distribution.sample(of_actions), jax.random.normal(of_advantages, shape), weights)
    batch = policy_batch(*samples, SETTINGS.fisher_fraction)
    theta, of_theta = of_vector(networks.distribution, policy)
    return Problem(networks, policy, of_theta, theta, samples, batch)


def timed(benchmark: BenchmarkFixture, kernel: Any, *arguments: Any) -> Any:
    """Time the compiled kernel until its result is there, and return the result."""
    compiled = jax.jit(kernel)
    jax.block_until_ready(compiled(*arguments))
    return benchmark(lambda: jax.block_until_ready(compiled(*arguments)))


def test_generalized_advantage_estimation(benchmark: BenchmarkFixture, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    rewards, values, next_values = rng.standard_normal((3, shape[1], shape[0]))
    dones = rng.random((shape[1], shape[0])) < 0.05
    terminations = dones & (rng.random(dones.shape) < 0.5)

    def kernel(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        return generalized_advantage_estimation(*arrays, discount=0.99, trace_decay=0.95)

    arrays = [jnp.asarray(array, jnp.float32) for array in (rewards, values, next_values)]
    advantages, targets = timed(benchmark, kernel, *arrays, jnp.asarray(terminations), jnp.asarray(dones))
    expected = generalized_advantages(rewards, values, next_values, terminations, dones, 0.99, 0.95)
    np.testing.assert_allclose(advantages, expected[0], atol=1e-3)
    np.testing.assert_allclose(targets, expected[1], atol=1e-3)


def test_fisher_product(benchmark: BenchmarkFixture, problem: Problem) -> None:
    """One linearisation and one product."""
    left, right = jax.random.normal(KEY, (2, problem.theta.size))

    # Everything is an argument: of what it knows beforehand the compiler might work out a part.
    kernel = chained_products(problem.policy, SETTINGS.damping, 1)
    states = (problem.batch.fisher_inputs, problem.batch.fisher_weights)
    result = timed(benchmark, kernel, problem.theta, *states, left)
    other = kernel(problem.theta, *states, right)
    assert float(right @ result) == pytest.approx(float(left @ other), rel=1e-2, abs=1e-2)
    assert float(left @ result) > 0


def test_conjugate_gradient(benchmark: BenchmarkFixture, problem: Problem) -> None:
    """One linearisation and ten products."""
    gradient = surrogate_gradient(problem.policy, problem.theta, problem.batch)
    states = (problem.batch.fisher_inputs, problem.batch.fisher_weights)

    def kernel(theta: jax.Array, b: jax.Array, *states: jax.Array) -> Any:
        product = damped_product(problem.policy, theta, *states, SETTINGS.damping)
        return conjugate_gradient(product, b, max_iterations=10, tolerance=0.0)

    result = timed(benchmark, kernel, problem.theta, gradient, *states)
    assert int(result.iterations) == 10
    product = damped_product(problem.policy, problem.theta, *states, SETTINGS.damping)
    error = jnp.linalg.norm(product(result.solution) - gradient)
    assert float(error) < 0.1 * float(jnp.linalg.norm(gradient))


def test_trust_region_step(benchmark: BenchmarkFixture, problem: Problem) -> None:
    """Gradient, conjugate gradient and line search."""
    step = lambda parameters, batch: policy_step(
        problem.networks.distribution, parameters, batch, SETTINGS, max_kl=SETTINGS.max_kl
    )
    taken = timed(benchmark, step, problem.parameters, problem.batch).taken
    assert 1 <= int(taken.trials) <= SETTINGS.line_search_steps
    assert float(taken.evaluation.kl_mean) <= SETTINGS.max_kl
    assert float(taken.evaluation.improvement) >= 0


def test_critic_fit(benchmark: BenchmarkFixture, problem: Problem) -> None:
    """Two Gauss-Newton steps."""
    networks, (observations, _, _, weights) = problem.networks, problem.samples
    critic, targets = networks.initial_critic(KEY).network, jnp.sum(observations, axis=-1)

    def kernel(parameters: Any, batch: ValueBatch) -> Any:
        return fit_by_gauss_newton(
            networks.normalized_value, parameters, batch, steps=2, damping=1e-3, cg_iterations=10, cg_tolerance=1e-3
        )

    result = timed(benchmark, kernel, critic, value_batch(observations, targets, weights, 0.25))
    before = jnp.mean(jnp.square(networks.normalized_value(critic, observations) - targets))
    assert float(result.loss) < float(before)
