"""A policy from observation to action, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.references import Array, mean_of_clipped
from trpo_brax.config import NetworkConfig
from trpo_brax.policy import ActionBounds, ObservationStatistics, Policy, PolicySpecification

OBSERVATION = 4
BOUNDS = ActionBounds((-0.4, 0.0), (0.4, 10.0))
CLIP = 3.0


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A policy with large weights and statistics of observations far from 0 and 1."""
    network = NetworkConfig(
        policy_hidden_sizes=(8,), initial_log_std=-2.0, policy_output_scale=2.0, observation_clip=CLIP
    )
    specification = PolicySpecification(network, OBSERVATION, BOUNDS)
    parameters = jax.jit(specification.networks().initial_policy)(jax.random.PRNGKey(0))
    seen = np.random.default_rng(0).normal([1, -2, 50, 0], [1, 3, 10, 0.1], (100, 2, OBSERVATION))
    empty = ObservationStatistics.empty(OBSERVATION)
    statistics = empty.updated(jnp.asarray(seen, jnp.float32), jnp.ones((100, 2), bool))
    return Policy(specification, parameters, statistics)


def observations_of(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal([1, -2, 50, 0], [2, 6, 20, 0.2], (*shape, OBSERVATION)).astype(np.float32)


def raw_mean(policy: Policy, observations: Array) -> Array:
    """Return the network's mean in float64 NumPy, before scaling to the bounds."""
    layers = jax.tree.map(np.float64, policy.parameters["params"]["MultilayerPerceptron_0"])
    mean = np.float64(policy.statistics.mean)
    std = np.sqrt(np.float64(policy.statistics.squares) / float(policy.statistics.count))
    normalized = np.clip((np.float64(observations) - mean) / std, -CLIP, CLIP)
    hidden = np.tanh(normalized @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    return np.tanh(hidden @ layers["output"]["kernel"] + layers["output"]["bias"])


def to_bounds(raw: Array) -> Array:
    return np.clip([0.0, 5.0] + np.asarray([0.4, 5.0]) * raw, BOUNDS.low, BOUNDS.high)


def test_mean_action_is_the_forward_pass_by_hand(policy: Policy) -> None:
    observations = observations_of(1, 200)
    raw = raw_mean(policy, observations)
    assert 0.1 < np.mean(np.abs(raw) > 0.8) < 0.9  # tanh bends some, and some it does not
    acted = to_bounds(mean_of_clipped(raw, np.exp(-2.0)))
    assert np.max(np.abs(acted - to_bounds(raw))) > 0.01  # near a bound what clipping leaves is not the mean
    np.testing.assert_allclose(policy(observations), acted, rtol=1e-4, atol=1e-4)


def test_batched_is_one_by_one_compiled_or_not(policy: Policy) -> None:
    observations = observations_of(2, 3, 5)
    batched = np.asarray(policy(observations))
    assert batched.shape == (3, 5, 2)
    for place in np.ndindex(3, 5):
        np.testing.assert_allclose(policy(observations[place]), batched[place], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(policy)(observations), batched, rtol=1e-5, atol=1e-5)
    mapped = jax.jit(jax.vmap(jax.vmap(policy)))(jnp.asarray(observations))
    np.testing.assert_allclose(mapped, batched, rtol=1e-5, atol=1e-5)


def test_float64_input_is_taken_as_single_precision(policy: Policy) -> None:
    observations = observations_of(3, 6)
    result = policy(observations.astype(np.float64))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, policy(observations))


def test_samples_spread_around_the_mean_action(policy: Policy) -> None:
    # One observation whose mean is well inside the bounds; 100,000 draws, tolerance 5 standard errors.
    draws = 100_000
    candidates = observations_of(4, 200)
    inside = candidates[np.argmin(np.abs(raw_mean(policy, candidates)).max(axis=-1))]
    mean, std = to_bounds(raw_mean(policy, inside)), np.exp(-2.0) * np.asarray([0.4, 5.0])
    assert np.all(np.abs(raw_mean(policy, inside)) < 0.3)  # five standard deviations of 0.135 from the bounds
    keys = jax.random.split(jax.random.PRNGKey(1), draws)
    one_by_one = np.asarray(jax.jit(jax.vmap(policy, in_axes=(None, 0)))(jnp.asarray(inside), keys), np.float64)
    together = np.asarray(policy(np.broadcast_to(inside, (draws, OBSERVATION)), jax.random.PRNGKey(2)), np.float64)
    for samples in (one_by_one, together):
        assert np.all(np.abs(samples.mean(axis=0) - mean) < 5 * std / np.sqrt(draws))
        assert np.all(np.abs(samples.std(axis=0) / std - 1) < 5 / np.sqrt(2 * draws))
        assert abs(np.corrcoef(samples.T)[0, 1]) < 5 / np.sqrt(draws)


def test_a_key_decides_the_draw_and_bounds_hold(policy: Policy) -> None:
    observations = observations_of(5, 1000)
    first, again, other = (np.asarray(policy(observations, jax.random.PRNGKey(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    for actions in (first, other):
        assert np.all(actions >= np.float32(BOUNDS.low))
        assert np.all(actions <= np.float32(BOUNDS.high))


def test_a_specification_alone_rebuilds_the_policy(policy: Policy) -> None:
    rebuilt = PolicySpecification(
        NetworkConfig(policy_hidden_sizes=(8,), initial_log_std=-2.0, policy_output_scale=2.0, observation_clip=CLIP),
        OBSERVATION,
        ActionBounds(BOUNDS.low, BOUNDS.high),
    )
    assert rebuilt == policy.specification
    observations = observations_of(6, 10)
    np.testing.assert_array_equal(
        Policy(rebuilt, policy.parameters, policy.statistics)(observations), policy(observations)
    )
