"""The step's pieces, as the benchmark composes them, are the step's."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithm.policies import as_jax, gaussian_policy, policy_batch, random_batch, random_network
from tests.references import flatten, gaussian_fisher, policy_gradient
from trpo_brax.benchmark.update import full_step, line_search, of_vector, repeated_products, surrogate_gradient
from trpo_brax.config import TrustRegionConfig
from trpo_brax.learner.steps import policy_step


@pytest.fixture
def problem(float64: None) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    network = random_network(rng)
    return network, random_batch(rng, network)


@pytest.mark.parametrize("mode", ["trpo", "natural_gradient"])
def test_the_pieces_in_sequence_are_the_step(problem: tuple[Any, Any], mode: Any) -> None:
    network, batch = problem
    settings = TrustRegionConfig(mode=mode, max_kl=0.05)
    theta, policy = of_vector(gaussian_policy, as_jax(network))
    samples = policy_batch(batch, stride=2)
    full, solved = full_step(policy, settings, theta, samples, surrogate_gradient(policy, theta, samples))
    taken = line_search(policy, settings, theta, samples, full)
    step = policy_step(gaussian_policy, as_jax(network), samples, settings, max_kl=settings.max_kl)
    # The step's damping is a float32.
    np.testing.assert_allclose(taken.parameters, flatten(step.parameters), rtol=1e-6)
    assert (int(taken.trials), int(solved.iterations)) == (int(step.taken.trials), int(step.solved.iterations))
    assert int(taken.outcome) == int(step.taken.outcome) == 0


def test_gradient_and_products_against_an_explicit_matrix(problem: tuple[Any, Any]) -> None:
    network, batch = problem
    theta, policy = of_vector(gaussian_policy, as_jax(network))
    samples = policy_batch(batch, stride=2)
    np.testing.assert_allclose(surrogate_gradient(policy, theta, samples), policy_gradient(network, batch), atol=1e-12)
    matrix = gaussian_fisher(network, batch, stride=2) + 0.2 * np.eye(theta.size)
    direction = np.ones(theta.size)
    for _ in range(3):
        direction = matrix @ direction
        direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(repeated_products(policy, theta, samples, 0.2, 3), direction, atol=1e-10)


def test_what_is_repeated_stays_in_the_loop() -> None:
    """A compiler that sees the same work in every round does it once, before the loop."""
    rng = np.random.default_rng(0)
    network = random_network(rng)
    theta, policy = of_vector(gaussian_policy, as_jax(network, jnp.float32))
    batch = jax.tree.map(jnp.float32, policy_batch(random_batch(rng, network, 64, 50)))
    lowered = jax.jit(functools.partial(repeated_products, policy, damping=0.1, count=7)).lower(theta, batch)
    text = lowered.compile().as_text()
    assert text is not None
    # The computations that a loop calls stand under the name of its body in the metadata of what they hold.
    inside = [line for line in text.splitlines() if " dot(" in line and "while/body" in line]
    assert len(inside) >= 6, text
