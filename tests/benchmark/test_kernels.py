"""The mathematical kernels, timed by pytest-benchmark at two sizes: nothing about the times is asserted.

    pytest -m slow tests/benchmark/test_kernels.py

Single precision, a policy and a critic of two hidden layers of 64. Under pytest-xdist every kernel runs once, untimed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.references import generalized_advantages
from trpo_brax.algorithm import (
    PolicyBatch,
    conjugate_gradient,
    fit_critic,
    generalized_advantage_estimation,
    sample_weights,
    trust_region_step,
)
from trpo_brax.benchmark.update import TimedUpdate
from trpo_brax.config import NetworkConfig, TrustRegionConfig
from trpo_brax.policy import Networks

pytestmark = pytest.mark.slow

OBSERVATION, ACTION = 11, 3
SETTINGS = TrustRegionConfig(cg_iterations=10, cg_tolerance=0.0)
KEY = jax.random.PRNGKey(0)


class Problem(NamedTuple):
    """One iteration's arrays."""

    networks: Networks
    update: TimedUpdate
    policy: Any
    batch: PolicyBatch


@pytest.fixture(scope="module", params=[(64, 16), (512, 128)], ids=["64x16", "512x128"])
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """N, T."""
    size: tuple[int, int] = request.param
    return size


@pytest.fixture(scope="module")
def problem(shape: tuple[int, int]) -> Problem:
    networks = Networks.build(NetworkConfig(), OBSERVATION, ACTION)
    policy = networks.initial_policy(KEY)
    of_observations, of_actions, of_advantages = jax.random.split(KEY, 3)
    observations = jax.random.normal(of_observations, (*shape, OBSERVATION))
    distribution = networks.distribution(policy, observations)
    batch = PolicyBatch(
        observations,
        distribution.sample(of_actions),
        jax.random.normal(of_advantages, shape),
        sample_weights(jnp.ones(shape, bool)),
    )
    return Problem(networks, TimedUpdate(networks.distribution, policy, SETTINGS), policy, batch)


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
    update, samples = problem.update, problem.update.samples(problem.batch)
    left, right = jax.random.normal(KEY, (2, update.vector.size))

    # Everything is an argument: of what it knows beforehand the compiler might work out a part.
    def kernel(vector: jax.Array, direction: jax.Array, observations: jax.Array, weights: jax.Array) -> jax.Array:
        return update.product(vector, observations, weights)(direction)

    states = (samples.fisher_observations, samples.fisher_weights)
    result = timed(benchmark, kernel, update.vector, left, *states)
    other = kernel(update.vector, right, *states)
    assert float(right @ result) == pytest.approx(float(left @ other), rel=1e-2, abs=1e-2)
    assert float(left @ result) > 0


def test_conjugate_gradient(benchmark: BenchmarkFixture, problem: Problem) -> None:
    """One linearisation and ten products."""
    update, samples = problem.update, problem.update.samples(problem.batch)
    gradient, _ = update.gradient(update.vector, samples.batch)

    def kernel(vector: jax.Array, b: jax.Array, observations: jax.Array, weights: jax.Array) -> Any:
        product = update.product(vector, observations, weights)
        return conjugate_gradient(product, b, max_iterations=10, tolerance=0.0)

    states = (samples.fisher_observations, samples.fisher_weights)
    result = timed(benchmark, kernel, update.vector, gradient, *states)
    assert int(result.iterations) == 10
    error = jnp.linalg.norm(update.product(update.vector, *states)(result.solution) - gradient)
    assert float(error) < 0.1 * float(jnp.linalg.norm(gradient))


def test_line_search(benchmark: BenchmarkFixture, problem: Problem) -> None:
    update, samples = problem.update, problem.update.samples(problem.batch)
    gradient, old = update.gradient(update.vector, samples.batch)
    full = update.solve(update.vector, gradient, samples)
    result = timed(benchmark, update.search, update.vector, full, old, samples.batch)
    assert 1 <= int(result.trials) <= SETTINGS.line_search_steps
    assert float(result.evaluation.kl_mean) <= SETTINGS.max_kl


def test_trust_region_step(benchmark: BenchmarkFixture, problem: Problem) -> None:
    """Gradient, conjugate gradient and line search."""
    result = timed(
        benchmark,
        lambda policy, batch: trust_region_step(problem.networks.distribution, policy, batch, SETTINGS),
        problem.policy,
        problem.batch,
    )
    assert float(result.evaluation.kl_mean) <= SETTINGS.max_kl
    assert float(result.evaluation.improvement) >= 0


def test_critic_fit(benchmark: BenchmarkFixture, problem: Problem) -> None:
    """Five passes over eight minibatches."""
    networks, observations = problem.networks, problem.batch.observations
    critic, optimizer = networks.initial_critic(KEY).network, optax.flatten(optax.adam(1e-3))
    targets = jnp.sum(observations, axis=-1)

    def kernel(parameters: Any, state: Any, inputs: jax.Array, wanted: jax.Array, valid: jax.Array) -> Any:
        return fit_critic(
            networks.normalized_value, optimizer, parameters, state, inputs, wanted, valid, epochs=5, minibatches=8
        )

    valid = jnp.ones(targets.shape, bool)
    result = timed(benchmark, kernel, critic, optimizer.init(critic), observations, targets, valid)
    before = jnp.mean(jnp.square(networks.normalized_value(critic, observations) - targets))
    after = jnp.mean(jnp.square(networks.normalized_value(result.parameters, observations) - targets))
    assert float(after) < float(before)
