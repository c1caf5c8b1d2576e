"""Generalised advantage estimation and the standardisation of its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.references import Array, generalized_advantages
from trpo_brax.algorithm import (
    generalized_advantage_estimation,
    sample_weights,
    standardize,
    successor_values,
    weighted_moments,
)

Inputs = dict[str, Any]


@pytest.fixture(scope="module")
def estimate() -> Callable[..., tuple[Array, Array]]:
    """The compiled estimator, discount and trace decay traced so that one program serves every value of them."""
    compiled = jax.jit(
        lambda inputs, discount, trace_decay: generalized_advantage_estimation(
            **inputs, discount=discount, trace_decay=trace_decay
        )
    )

    def call(inputs: Inputs, discount: float, trace_decay: float) -> tuple[Array, Array]:
        advantages, targets = compiled(jax.tree.map(jnp.asarray, inputs), discount, trace_decay)
        return np.asarray(advantages), np.asarray(targets)

    return call


def random_inputs(seed: int, length: int = 20, environments: int = 7) -> Inputs:
    """Return trajectories with time limits, terminations and invalid transitions."""
    rng = np.random.default_rng(seed)
    shape = (length, environments)
    dones = rng.uniform(size=shape) < 0.25
    return {
        "rewards": rng.standard_normal(shape),
        "values": 3 * rng.standard_normal(shape),
        "next_values": 3 * rng.standard_normal(shape),
        "terminations": dones & (rng.uniform(size=shape) < 0.5),
        "dones": dones,
        "valid": rng.uniform(size=shape) > 0.1,
    }


def column(**values: list[float]) -> Inputs:
    """Return one environment's trajectory as [T, 1] arrays."""
    booleans = {"terminations", "dones", "valid"}
    return {name: np.asarray(row, bool if name in booleans else np.float32)[:, None] for name, row in values.items()}


@pytest.mark.parametrize(("discount", "trace_decay"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.7), (0.5, 1.0)])
def test_matches_a_plain_loop(estimate: Callable[..., Any], float64: None, discount: float, trace_decay: float) -> None:
    inputs = random_inputs(seed=0)
    expected = generalized_advantages(**inputs, discount=discount, trace_decay=trace_decay)
    for result, reference in zip(estimate(inputs, discount, trace_decay), expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-12, atol=1e-12)


def test_matches_a_plain_loop_in_single_precision(estimate: Callable[..., Any]) -> None:
    inputs = random_inputs(seed=1, length=128, environments=3)
    inputs = {name: value.astype(np.float32) if value.dtype == float else value for name, value in inputs.items()}
    expected = generalized_advantages(**inputs, discount=0.99, trace_decay=0.95)
    for result, reference in zip(estimate(inputs, 0.99, 0.95), expected, strict=True):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, reference, atol=2e-5)


def test_by_hand_with_a_time_limit_and_a_termination(estimate: Callable[..., Any]) -> None:
    # gamma = lambda = 1/2. Step 1 runs into the time limit in a state of value 32 (the reset state has 30); step 3 is a
    # real end, whose next value 99 must not be used.
    #   delta = 1 + 10 - 10 = 1,  2 + 16 - 20 = -2,  3 + 20 - 30 = -7,  4 - 40 = -36,  5 + 30 - 50 = -15
    #   A_4 = -15,  A_3 = -36,  A_2 = -7 + -36/4 = -16,  A_1 = -2,  A_0 = 1 - 2/4 = 1/2
    inputs = column(
        rewards=[1, 2, 3, 4, 5],
        values=[10, 20, 30, 40, 50],
        next_values=[20, 32, 40, 99, 60],
        terminations=[0, 0, 0, 1, 0],
        dones=[0, 1, 0, 1, 0],
    )
    advantages, targets = estimate(inputs, 0.5, 0.5)
    np.testing.assert_array_equal(advantages[:, 0], [0.5, -2, -16, -36, -15])
    np.testing.assert_array_equal(targets[:, 0], [10.5, 18, 14, 4, 35])


def test_peer_defect_08_time_limit_is_neither_an_end_nor_bootstrapped_from_the_state_before(
    estimate: Callable[..., Any],
) -> None:
    """Peers bootstrap a time limit from V(s_t), or not at all as if the task had ended."""
    inputs = column(rewards=[1], values=[8], next_values=[4], terminations=[0], dones=[1])
    advantages, targets = estimate(inputs, 0.5, 1.0)
    assert (advantages.item(), targets.item()) == (1 + 0.5 * 4 - 8, 1 + 0.5 * 4)  # not 1 + 4 - 8, not 1 - 8


def test_lambda_zero_is_the_temporal_difference_error(estimate: Callable[..., Any], float64: None) -> None:
    inputs = random_inputs(seed=2)
    advantages, _ = estimate(inputs, 0.9, 0.0)
    bootstrap = 0.9 * np.where(inputs["terminations"], 0.0, inputs["next_values"])
    error = np.where(inputs["valid"], inputs["rewards"] + bootstrap - inputs["values"], 0.0)
    np.testing.assert_allclose(advantages, error, atol=1e-14)


def test_lambda_one_is_the_discounted_return_minus_the_value(estimate: Callable[..., Any], float64: None) -> None:
    inputs = random_inputs(seed=3)
    del inputs["valid"]
    inputs["next_values"][:-1] = np.where(inputs["dones"][:-1], inputs["next_values"][:-1], inputs["values"][1:])
    discount = 0.9
    advantages, targets = estimate(inputs, discount, 1.0)
    length, environments = inputs["rewards"].shape
    for n in range(environments):
        for t in range(length):
            end = t
            while not inputs["dones"][end, n] and end < length - 1:
                end += 1
            powers = discount ** np.arange(end - t + 1)
            total = powers @ inputs["rewards"][t : end + 1, n]
            if not inputs["terminations"][end, n]:
                total += discount ** (end - t + 1) * inputs["next_values"][end, n]
            assert targets[t, n] == pytest.approx(total, abs=1e-12)
            assert advantages[t, n] == pytest.approx(total - inputs["values"][t, n], abs=1e-12)


def test_exact_values_leave_no_advantage_across_time_limits(estimate: Callable[..., Any], float64: None) -> None:
    # A constant reward r for ever is worth r / (1 - gamma) everywhere, time limits or not.
    inputs = random_inputs(seed=4)
    inputs |= {name: np.full_like(inputs[name], 2.0 / (1 - 0.75)) for name in ("values", "next_values")}
    inputs |= {"rewards": np.full_like(inputs["rewards"], 2.0), "terminations": np.zeros_like(inputs["dones"])}
    np.testing.assert_array_equal(estimate(inputs, 0.75, 0.9)[0], 0.0)


NAN = float("nan")


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"rewards": NAN, "next_values": NAN},
        {"rewards": float("inf"), "next_values": -float("inf")},
        {"rewards": 1e6, "next_values": 1e6},
        {"terminations": True, "dones": True},
        {"dones": True},
    ],
    ids=str,
)
def test_invalid_transition_counts_as_the_end_of_the_data(estimate: Callable[..., Any], broken: Inputs) -> None:
    # gamma = lambda = 1/2 and step 2 is invalid: A_2 = 0, and step 1 bootstraps from V(s_2) = 30, its own next value.
    #   A_1 = 2 + 15 - 20 = -3,  A_0 = 1 + 10 - 10 - 3/4 = 1/4,  A_4 = 5 + 30 - 50 = -15,  A_3 = 4 + 25 - 40 - 15/4
    inputs = column(
        rewards=[1, 2, 0, 4, 5],
        values=[10, 20, 30, 40, 50],
        next_values=[20, 30, 40, 50, 60],
        terminations=[0, 0, 0, 0, 0],
        dones=[0, 0, 0, 0, 0],
        valid=[1, 1, 0, 1, 1],
    )
    for name, value in broken.items():
        inputs[name][2] = value
    advantages, targets = estimate(inputs, 0.5, 0.5)
    np.testing.assert_array_equal(advantages[:, 0], [0.25, -3, 0, -11 - 15 / 4, -15])
    np.testing.assert_array_equal(targets[:, 0], [10.25, 17, 30, 40 - 11 - 15 / 4, 35])


def test_a_terminations_next_value_is_not_used_at_all(estimate: Callable[..., Any]) -> None:
    inputs = column(rewards=[1, 2], values=[3, 4], next_values=[4, NAN], terminations=[0, 1], dones=[0, 1])
    np.testing.assert_array_equal(estimate(inputs, 0.5, 0.5)[0][:, 0], [0 - 2 / 4, -2])


def test_environments_do_not_mix(estimate: Callable[..., Any]) -> None:
    inputs = random_inputs(seed=5)
    order = np.random.default_rng(6).permutation(inputs["rewards"].shape[1])
    permuted = estimate({name: value[:, order] for name, value in inputs.items()}, 0.99, 0.95)
    for result, reference in zip(permuted, estimate(inputs, 0.99, 0.95), strict=True):
        np.testing.assert_array_equal(result, reference[:, order])


def test_shapes_that_differ_are_refused() -> None:
    inputs = random_inputs(seed=0)
    with pytest.raises(AssertionError):
        generalized_advantage_estimation(
            **(inputs | {"next_values": inputs["next_values"][:, :1]}), discount=0.99, trace_decay=0.95
        )
    with pytest.raises(AssertionError):
        generalized_advantage_estimation(
            **{name: value[:, 0] for name, value in inputs.items()}, discount=0.99, trace_decay=0.95
        )


@pytest.mark.parametrize("filler", [0.0, NAN, float("inf"), 1e30])
def test_moments_see_only_what_has_weight(filler: float) -> None:
    rng = np.random.default_rng(0)
    values, valid = 5 + 2 * rng.standard_normal((40, 9)), rng.uniform(size=(40, 9)) > 0.3
    weights = sample_weights(jnp.asarray(valid))
    filled = jnp.asarray(np.where(valid, values, filler), jnp.float32)
    mean, std = jax.jit(weighted_moments)(filled, weights)
    assert float(mean) == pytest.approx(values[valid].mean(), rel=1e-6)
    assert float(std) == pytest.approx(values[valid].std(), rel=1e-6)

    standardized, same_mean, same_std = jax.jit(standardize)(filled, weights)
    assert (same_mean, same_std) == (mean, std)
    np.testing.assert_array_equal(np.asarray(standardized)[~valid], 0.0)
    expected = (values[valid] - values[valid].mean()) / values[valid].std()
    np.testing.assert_allclose(np.asarray(standardized)[valid], expected, atol=1e-5)


def test_moments_weigh_unequally(float64: None) -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.standard_normal((5, 3)), rng.uniform(size=(5, 3))
    weights /= weights.sum()
    mean, std = weighted_moments(jnp.asarray(values), jnp.asarray(weights))
    expected = np.average(values, weights=weights)
    assert float(mean) == pytest.approx(expected, rel=1e-13)
    assert float(std) == pytest.approx(np.sqrt(np.average((values - expected) ** 2, weights=weights)), rel=1e-13)


@pytest.mark.parametrize("shape", [(4, 4), (5, 7), (64, 511), (128, 512)])
def test_a_constant_batch_becomes_zeros(shape: tuple[int, int]) -> None:
    # Rounding of the mean must not be mistaken for spread: divided by itself it would be a full-size random advantage.
    compiled = jax.jit(standardize)
    for constant in (0.0, 3.3, -0.1, 1e6, 1e-20, 1 / 3):
        for share in (1.0, 0.9):
            valid = np.random.default_rng(2).uniform(size=shape) < share
            filled = jnp.asarray(np.where(valid, constant, NAN), jnp.float32)
            standardized, mean, std = compiled(filled, sample_weights(jnp.asarray(valid)))
            np.testing.assert_array_equal(standardized, 0.0, err_msg=f"{constant}, {share}")
            assert float(std) == 0.0
            assert float(mean) == pytest.approx(constant, rel=1e-5)


def test_a_large_batch_is_centred_and_scaled_in_single_precision() -> None:
    # Advantages with an offset a thousand times their spread, at the default batch size.
    values = 1000 + np.random.default_rng(3).standard_normal((128, 512)).astype(np.float32)
    exact = values.astype(np.float64)
    standardized, mean, std = jax.jit(standardize)(jnp.asarray(values), sample_weights(jnp.ones(values.shape, bool)))
    assert float(mean) == pytest.approx(exact.mean(), abs=1e-3)
    assert float(std) == pytest.approx(exact.std(), rel=1e-3)
    np.testing.assert_allclose(standardized, (exact - exact.mean()) / exact.std(), atol=2e-3)


@pytest.mark.parametrize("scale", [4.0, 2.0**-20, 7.3])
def test_standardising_forgets_scale_and_offset(scale: float) -> None:
    values = jnp.asarray(np.random.default_rng(4).standard_normal((16, 8)), jnp.float32)
    weights = sample_weights(jnp.ones(values.shape, bool))
    original, scaled = standardize(values, weights)[0], standardize(scale * values, weights)[0]
    if np.log2(scale) % 1 == 0:
        np.testing.assert_array_equal(scaled, original)  # a power of two changes no digit
    np.testing.assert_allclose(scaled, original, atol=2e-6)
    np.testing.assert_allclose(standardize(scale * values + 3, weights)[0], original, atol=3e-6 * max(1, 3 / scale))


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e18, 1e20, 1e38])
def test_a_spread_that_cannot_be_squared_is_infinite(scale: float) -> None:
    values = (scale * np.random.default_rng(5).uniform(-1, 1, (16, 8))).astype(np.float32)
    std = float(jax.jit(weighted_moments)(jnp.asarray(values), sample_weights(jnp.ones(values.shape, bool)))[1])
    variance, limits = values.astype(np.float64).var(), np.finfo(np.float32)
    if limits.tiny < variance < limits.max:
        assert std == pytest.approx(np.sqrt(variance), rel=1e-5)
    else:
        assert std == (0.0 if variance < 1 else np.inf)


@pytest.mark.parametrize("bad", [[np.inf], [-np.inf, np.inf], [NAN]])
def test_values_that_are_not_finite_have_no_spread_at_all(bad: list[float]) -> None:
    values = jnp.asarray([*bad, 1.0, 2.0], jnp.float32)
    assert np.isnan(weighted_moments(values, sample_weights(jnp.ones(values.shape, bool)))[1])


def test_nothing_valid_gives_zero_weights_and_zero_advantages() -> None:
    weights = sample_weights(jnp.zeros((3, 2), bool))
    np.testing.assert_array_equal(weights, 0.0)
    standardized, mean, std = standardize(jnp.full((3, 2), jnp.nan), weights)
    np.testing.assert_array_equal(standardized, 0.0)
    assert (float(mean), float(std)) == (0.0, 0.0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_successor_values_are_the_values_of_every_next_observation(share: float) -> None:
    """Against V of all of them at once, from a chain in which a reset replaces what follows an end."""
    rng = np.random.default_rng(0)
    seen, ended = rng.normal(size=(2, 6, 9, 3))
    dones = rng.random((6, 9)) < share
    # What follows a row is the next row's observation, or, after an end and after the last row, one of its own.
    following = np.concatenate([seen[:, 1:], ended[:, -1:]], axis=1)
    following = np.where(dones[..., None], ended, following)

    def value_of(observations: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(observations) * jnp.arange(1.0, 4.0), axis=-1)

    ours = jax.jit(lambda *given: successor_values(value_of, *given))(value_of(seen), following, dones)
    np.testing.assert_allclose(ours, value_of(following), rtol=1e-6)


def test_successor_values_evaluate_one_observation_an_environment_and_end() -> None:
    """Three ends in the busiest environment, the last row one of them: three passes of N, not one of N T."""
    dones = np.zeros((4, 5), bool)
    dones[2, [0, 3]] = True
    passes = []

    def value_of(observations: jax.Array) -> jax.Array:
        jax.debug.callback(lambda rows: passes.append(rows.shape), observations)
        return observations[:, 0]

    jax.block_until_ready(successor_values(value_of, jnp.zeros((4, 5)), jnp.zeros((4, 5, 2)), dones))
    jax.effects_barrier()
    assert passes == [(4, 2)] * 3
