"""The step taken apart is the step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithm.policies import as_jax, gaussian_policy, policy_batch, random_batch, random_network
from tests.references import flatten, gaussian_fisher, policy_gradient
from trpo_brax.algorithm import trust_region_step
from trpo_brax.benchmark.update import TimedUpdate
from trpo_brax.config import TrustRegionConfig


@pytest.fixture
def problem(float64: None) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    network = random_network(rng)
    return network, random_batch(rng, network)


@pytest.mark.parametrize("mode", ["trpo", "natural_gradient"])
def test_the_pieces_in_sequence_are_the_step(problem: tuple[Any, Any], mode: Any) -> None:
    network, batch = problem
    settings = TrustRegionConfig(mode=mode, max_kl=0.05)
    update = TimedUpdate(gaussian_policy, as_jax(network), settings)
    samples = update.samples(policy_batch(batch))
    gradient, old = update.gradient(update.vector, samples.batch)
    full = update.solve(update.vector, gradient, samples)
    kept = update.search(update.vector, full, old, samples.batch)
    step = trust_region_step(gaussian_policy, as_jax(network), policy_batch(batch), settings)
    np.testing.assert_allclose(kept.parameters, flatten(step.parameters), rtol=1e-12)
    assert (int(kept.trials), int(full.cg_iterations)) == (int(step.trials), int(step.cg_iterations))
    assert int(kept.outcome) == int(step.outcome) == 0


def test_gradient_and_products_against_an_explicit_matrix(problem: tuple[Any, Any]) -> None:
    network, batch = problem
    settings = TrustRegionConfig(fisher_fraction=0.5, damping=0.2)
    update = TimedUpdate(gaussian_policy, as_jax(network), settings)
    samples = update.samples(policy_batch(batch))
    np.testing.assert_allclose(
        update.gradient(update.vector, samples.batch)[0], policy_gradient(network, batch), atol=1e-12
    )
    matrix = gaussian_fisher(network, batch, stride=2) + 0.2 * np.eye(update.vector.size)
    direction = np.ones(update.vector.size)
    for _ in range(3):
        direction = matrix @ direction
        direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(update.products(update.vector, samples, 3), direction, atol=1e-10)


def test_forward_passes_are_of_the_policy_itself(problem: tuple[Any, Any]) -> None:
    network, batch = problem
    update = TimedUpdate(gaussian_policy, as_jax(network), TrustRegionConfig())
    samples = update.samples(policy_batch(batch))
    mean = update.forward_passes(update.vector, samples, 3).mean  # type: ignore[attr-defined]
    np.testing.assert_allclose(mean, gaussian_policy(as_jax(network), samples.fisher_observations).mean, rtol=1e-12)


@pytest.mark.parametrize("piece", ["products", "forward_passes"])
def test_what_is_repeated_stays_in_the_loop(piece: str) -> None:
    """A compiler that sees the same work in every round does it once, before the loop."""
    rng = np.random.default_rng(0)
    network = random_network(rng)
    update = TimedUpdate(gaussian_policy, as_jax(network, jnp.float32), TrustRegionConfig(fisher_fraction=1.0))
    samples = update.samples(jax.tree.map(jnp.float32, policy_batch(random_batch(rng, network, 64, 50))))
    compiled = jax.jit(getattr(update, piece), static_argnums=2).lower(update.vector, samples, 7).compile()
    text = compiled.as_text()
    assert text is not None
    # The computations that a loop calls stand under the name of its body in the metadata of what they hold.
    inside = [line for line in text.splitlines() if " dot(" in line and "while/body" in line]
    assert len(inside) >= (2 if piece == "forward_passes" else 6), text
