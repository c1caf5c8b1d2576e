"""Initialisation, the forward pass by hand, and the critic's change of units."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.references import Array
from trpo_brax.config import NetworkConfig
from trpo_brax.policy import ActionBounds, CriticParameters, Networks, ObservationStatistics

OBSERVATION, ACTION = 5, 3
BOUNDS = ActionBounds((-1.0, -2.0, -np.inf), (1.0, 2.0, np.inf))
"""The last component has none."""
CONFIG = NetworkConfig(policy_hidden_sizes=(16, 8), critic_hidden_sizes=(12, 12), initial_log_std=-0.7)
NETWORKS = Networks.build(CONFIG, OBSERVATION, BOUNDS)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "swish": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


@pytest.fixture(scope="module")
def policy() -> Any:
    return jax.jit(NETWORKS.initial_policy)(jax.random.PRNGKey(0))


@pytest.fixture(scope="module")
def critic() -> CriticParameters:
    return jax.jit(NETWORKS.initial_critic)(jax.random.PRNGKey(1))


def layers_of(parameters: Any) -> list[dict[str, Array]]:
    """Return kernels and biases in order, the output layer last."""
    inner = parameters["params"]
    inner = inner.get("MultilayerPerceptron_0", inner)
    names = [*sorted(name for name in inner if name.startswith("Dense_")), "output"]
    return [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), inner[name]) for name in names]


def forward(layers: list[dict[str, Array]], inputs: Array, activation: str) -> Array:
    """Return the network's output in float64 NumPy."""
    hidden = inputs
    for layer in layers[:-1]:
        hidden = ACTIVATIONS[activation](hidden @ layer["kernel"] + layer["bias"])
    return hidden @ layers[-1]["kernel"] + layers[-1]["bias"]


def assert_orthogonal(kernel: Array, scale: float) -> None:
    """The shorter side's vectors are orthogonal and of length `scale`."""
    gram = kernel.T @ kernel if kernel.shape[0] >= kernel.shape[1] else kernel @ kernel.T
    np.testing.assert_allclose(gram, scale**2 * np.eye(len(gram)), atol=1e-5 * scale**2)


def test_initialisation_is_orthogonal(policy: Any, critic: CriticParameters) -> None:
    for parameters, sizes, output_scale in (
        (policy, [(OBSERVATION, 16), (16, 8), (8, ACTION)], CONFIG.policy_output_scale),
        (critic.network, [(OBSERVATION, 12), (12, 12), (12, 1)], 1.0),
    ):
        layers = layers_of(parameters)
        assert [layer["kernel"].shape for layer in layers] == sizes
        for layer in layers[:-1]:
            assert_orthogonal(layer["kernel"], 2**0.5)
        assert_orthogonal(layers[-1]["kernel"], output_scale)
        for layer in layers:
            np.testing.assert_array_equal(layer["bias"], 0.0)
    assert (float(critic.mean), float(critic.std)) == (0.0, 1.0)


def test_keys_draw_different_networks(policy: Any) -> None:
    again, other = (jax.jit(NETWORKS.initial_policy)(jax.random.PRNGKey(seed)) for seed in (0, 2))
    for ours, same, different in zip(layers_of(policy), layers_of(again), layers_of(other), strict=True):
        np.testing.assert_array_equal(ours["kernel"], same["kernel"])
        assert np.all(ours["kernel"] != different["kernel"])


def test_first_policy_acts_near_mid_range_with_the_spread_asked_for(policy: Any) -> None:
    observations = jnp.asarray(np.random.default_rng(0).standard_normal((50, OBSERVATION)), jnp.float32)
    distribution = NETWORKS.distribution(policy, observations)
    assert distribution.mean.shape == (50, ACTION)
    assert distribution.log_std.shape == (ACTION,)  # all states share it
    # The last hidden layer of 8 tanh units has length at most sqrt(8), which the last layer scales by 0.01.
    length = np.linalg.norm(distribution.mean, axis=-1)
    assert 0 < length.max() <= 0.01 * 8**0.5
    np.testing.assert_array_equal(distribution.log_std, np.float32(-0.7))


@pytest.mark.parametrize(("activation", "bounded"), [*((name, True) for name in ACTIVATIONS), ("tanh", False)])
def test_forward_pass_by_hand(activation: Any, bounded: bool, critic: CriticParameters) -> None:
    config = dataclasses.replace(CONFIG, activation=activation, bounded_means=bounded, policy_output_scale=2.0)
    networks = Networks.build(config, OBSERVATION, BOUNDS)
    policy = jax.jit(networks.initial_policy)(jax.random.PRNGKey(0))
    observations = 2 * np.random.default_rng(1).standard_normal((4, 3, OBSERVATION))
    inputs = jnp.asarray(observations, jnp.float32)
    expected = forward(layers_of(policy), observations, activation)
    if bounded:  # a mean stays within bounds, where there are any
        expected[..., :2] = np.tanh(expected[..., :2])
    np.testing.assert_allclose(networks.distribution(policy, inputs).mean, expected, rtol=1e-4, atol=1e-6)
    value = forward(layers_of(critic.network), observations, activation)[..., 0]
    np.testing.assert_allclose(networks.normalized_value(critic.network, inputs), value, rtol=1e-4, atol=1e-5)
    scaled = critic.replace(mean=jnp.float32(-3.0), std=jnp.float32(20.0))
    np.testing.assert_allclose(networks.value(scaled, inputs), -3 + 20 * value, rtol=1e-4, atol=1e-3)
    for other, function in ACTIVATIONS.items():
        if other != activation:
            assert not np.allclose(ACTIVATIONS[activation](np.linspace(-2, 2, 9)), function(np.linspace(-2, 2, 9)))


def moved(critic: CriticParameters, seed: int) -> CriticParameters:
    """Return a critic with all parameters and units away from their initial values."""
    rng = np.random.default_rng(seed)
    network = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), critic.network)
    return CriticParameters(network, jnp.asarray(rng.normal(0, 50)), jnp.asarray(np.exp(rng.normal())))


@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("units", [(0.0, 1.0), (123.0, 0.01), (-7.0, 4000.0)])
def test_values_are_the_same_in_any_units(critic: CriticParameters, units: tuple[float, float], double: bool) -> None:
    with jax.enable_x64(double):
        dtype = jnp.result_type(float)
        ours = jax.tree.map(lambda leaf: leaf.astype(dtype), moved(critic, 0))
        inputs = jnp.asarray(10 * np.random.default_rng(1).standard_normal((200, OBSERVATION)), dtype)
        changed = ours.in_units(jnp.asarray(units[0], dtype), jnp.asarray(units[1], dtype))
        before, after = NETWORKS.value(ours, inputs), NETWORKS.value(changed, inputs)
        normalized = NETWORKS.normalized_value(changed.network, inputs)
    scale = np.abs(before).max() + abs(units[0])
    np.testing.assert_allclose(after, before, atol=(1e-14 if double else 1e-6) * 10 * scale)
    assert (float(changed.mean), float(changed.std)) == tuple(float(np.asarray(unit, dtype)) for unit in units)
    np.testing.assert_allclose(normalized, (np.asarray(before) - units[0]) / units[1], rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_units_follow_the_mixture_of_old_and_new_targets(critic: CriticParameters, rate: float) -> None:
    """Its moments, of samples: a tenth of the batch's targets among nine tenths of the old units' distribution."""
    rng = np.random.default_rng(4)
    old, new = rng.normal(3.0, 2.0, 900_000), rng.normal(-5.0, 0.5, 900_000)
    mixed = np.where(rng.uniform(size=old.size) < rate, new, old)
    ours = moved(critic, 0).replace(mean=jnp.float32(3.0), std=jnp.float32(2.0))
    changed = ours.tracking(jnp.float32(-5.0), jnp.float32(0.5), jnp.float32(rate))
    assert (float(changed.mean), float(changed.std)) == pytest.approx((mixed.mean(), mixed.std()), rel=0.01)
    inputs = jnp.asarray(rng.standard_normal((20, OBSERVATION)))
    np.testing.assert_allclose(NETWORKS.value(changed, inputs), NETWORKS.value(ours, inputs), rtol=1e-4)


def test_units_never_shrink_to_the_noise_of_a_solved_task(critic: CriticParameters) -> None:
    changed = critic.tracking(jnp.float32(400.0), jnp.float32(1e-3), jnp.float32(1.0))
    assert float(changed.std) == pytest.approx(4.0)


def test_only_the_output_layer_changes_units(critic: CriticParameters) -> None:
    ours = moved(critic, 0)
    changed = ours.in_units(jnp.float32(5.0), jnp.float32(2.0))
    for before, after in zip(layers_of(ours.network)[:-1], layers_of(changed.network)[:-1], strict=True):
        np.testing.assert_array_equal(before["kernel"], after["kernel"])
        np.testing.assert_array_equal(before["bias"], after["bias"])


@pytest.mark.parametrize(
    ("mean", "std"),
    [(np.nan, 1.0), (np.inf, 1.0), (0.0, np.nan), (0.0, np.inf), (0.0, 0.0), (0.0, -1.0), (np.nan, np.nan)],
)
def test_units_that_cannot_be_are_refused(critic: CriticParameters, mean: float, std: float) -> None:
    ours = moved(critic, 0)
    changed = jax.jit(lambda parameters, mean, std: parameters.in_units(mean, std))(ours, mean, std)
    assert (float(changed.mean), float(changed.std)) == (float(ours.mean), float(ours.std))
    for before, after in zip(layers_of(ours.network), layers_of(changed.network), strict=True):
        np.testing.assert_allclose(after["kernel"], before["kernel"], rtol=1e-6)
        np.testing.assert_allclose(after["bias"], before["bias"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden_sizes", [(16, 8), ()])
def test_statistics_that_move_leave_the_functions_of_raw_observations(hidden_sizes: tuple[int, ...]) -> None:
    """Except for the two components that jump: their weights are what they were. In float64 NumPy, by hand."""
    config = dataclasses.replace(CONFIG, policy_hidden_sizes=hidden_sizes, critic_hidden_sizes=hidden_sizes)
    networks = Networks.build(config, OBSERVATION, BOUNDS)
    rng = np.random.default_rng(3)
    policy, critic = networks.initial_policy(jax.random.PRNGKey(0)), networks.initial_critic(jax.random.PRNGKey(1))
    policy, critic = jax.tree.map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), (policy, critic))
    mean, std = np.array([5.0, -1.0, 0.0, 300.0, 0.0]), np.array([0.1, 2.0, 1.0, 50.0, 1e-3])
    old = ObservationStatistics(jnp.float32(10.0), jnp.asarray(mean), jnp.asarray(10 * std**2))
    new_mean, new_std = mean + std * [0.5, -0.8, 0.0, -40.0, 0.1], std * [1.9, 0.8, 1.0, 1.2, 30.0]
    new = ObservationStatistics(jnp.float32(20.0), jnp.asarray(new_mean), jnp.asarray(20 * new_std**2))
    moved = networks.following(policy, critic, old, new)
    observations = mean + std * rng.standard_normal((50, OBSERVATION))
    before, after = (observations - mean) / std, (observations - new_mean) / new_std
    before[:, 3:] = after[:, 3:]
    for ours, theirs in ((moved[0], policy), (moved[1].network, critic.network)):
        expected = forward(layers_of(theirs), before, "tanh")
        np.testing.assert_allclose(forward(layers_of(ours), after, "tanh"), expected, atol=1e-5)
        assert np.std(expected) > 0.1
    jax.tree.map(np.testing.assert_array_equal, (moved[1].mean, moved[1].std), (critic.mean, critic.std))
    unready = ObservationStatistics.empty(OBSERVATION)
    huge = jax.tree.map(lambda leaf: 2.5e38 * jnp.ones_like(leaf), policy)
    for given, before_it, after_it in ((policy, unready, new), (policy, old, old), (huge, old, new)):
        kept = networks.following(given, critic, before_it, after_it)[0]
        jax.tree.map(np.testing.assert_array_equal, kept, given)
