"""The interquartile mean and its interval against arithmetic by hand, NumPy, all resamples and a known law."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trpo_brax.evaluation.interquartile import bootstrap_interval, interquartile_mean


@pytest.mark.parametrize(
    "values, expected",
    [
        ([7.0], 7.0),
        ([1.0, 4.0], 2.5),
        ([0.0, 0.0, 9.0], 3.0),  # nothing is trimmed of three
        ([0.0, 1.0, 3.0, 100.0], 2.0),
        ([-50.0, 1.0, 2.0, 6.0, 100.0], 3.0),
        ([0.0, 0.0, 1.0, 2.0, 3.0, 6.0, 90.0, 90.0], 3.0),
    ],
)
def test_by_hand(values: list[float], expected: float) -> None:
    assert interquartile_mean(values) == expected
    assert interquartile_mean(values[::-1]) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 10, 31])
def test_against_numpy(count: int) -> None:
    values = np.random.default_rng(count).normal(300.0, 1000.0, (count, 6))
    cut = count // 4
    expected = np.sort(values, axis=0)[cut : count - cut].mean(axis=0)
    np.testing.assert_allclose(interquartile_mean(values), expected, rtol=1e-12)


def test_few_values_by_hand() -> None:
    """Of n^n equally likely resamples more than 2.5% have a mean equal to the extreme, up to n = 4; not for 5.

    1/4 for two, 1/27 for three, 13/256 for four, where three of four at the extreme are enough, and 21/3125 for five.
    """
    for count in (2, 3, 4):
        values = np.arange(count, dtype=float)[:, None] ** 2
        low, high = bootstrap_interval(values)
        assert (low, high) == (0.0, (count - 1.0) ** 2)
    low, high = bootstrap_interval(np.arange(5.0)[:, None])
    assert 0.0 < low < high < 4.0


@pytest.mark.parametrize("count", [5, 6])
def test_against_every_resample(count: int) -> None:
    """All n^n of them, equally likely: of 2000 drawn, 2.5% are 50 with a standard deviation of 7."""
    values = np.random.default_rng(count).gamma(2.0, 100.0, (count, 3))
    low, high = bootstrap_interval(values)
    every = interquartile_mean(values[np.array(list(itertools.product(range(count), repeat=count))).T])
    for below, at in ((every < low - 1e-9, every < low + 1e-9), (every > high + 1e-9, every > high - 1e-9)):
        assert below.mean(axis=0).max() < 0.035 and at.mean(axis=0).min() > 0.015


def test_coverage_of_a_known_centre() -> None:
    """Ten normal seeds, 4000 times: the t distribution puts a mean's coverage at P(|t_9| < 1.96 sqrt(0.9)) = 0.904.

    The interquartile mean's is not known in closed form; it lies near, and its Monte Carlo error is 0.005.
    """
    low, high = bootstrap_interval(np.random.default_rng(0).normal(5.0, 2.0, (10, 4000)))
    assert 0.87 < np.mean((low <= 5.0) & (high >= 5.0)) < 0.94
    low, high = bootstrap_interval(np.random.default_rng(0).normal(5.0, 2.0, (10, 4000)), confidence=0.5)
    assert 0.40 < np.mean((low <= 5.0) & (high >= 5.0)) < 0.52


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_equal_values_have_an_interval_of_exactly_no_width(count: int) -> None:
    values = np.tile([0.1, -1e300, 1.0 / 3.0, 0.0], (count, 1))
    low, high = bootstrap_interval(values)
    np.testing.assert_array_equal(low, values[0])
    np.testing.assert_array_equal(high, values[0])


def test_order_does_not_matter_and_a_second_call_says_the_same() -> None:
    values = np.random.default_rng(0).normal(size=(9, 50))
    first = bootstrap_interval(values)
    np.testing.assert_array_equal(first, bootstrap_interval(values))
    np.testing.assert_array_equal(first, bootstrap_interval(values[::-1]))
    assert np.all(first[0] <= interquartile_mean(values)) and np.all(interquartile_mean(values) <= first[1])
