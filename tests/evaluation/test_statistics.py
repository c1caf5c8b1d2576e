"""Figures of many episodes against NumPy, SciPy and arithmetic by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from tests.contract import EVALUATION_KEYS
from trpo_brax.evaluation import Episodes, summarize


def made(returns: list[float] | np.ndarray, seed: int = 0) -> Episodes:
    """Return episodes with these returns and arbitrary ends."""
    generator = np.random.default_rng(seed)
    count = len(returns)
    return Episodes(
        np.asarray(returns, np.float32),
        generator.integers(0, 1001, count).astype(np.int32),
        generator.random(count) < 0.3,
        generator.random(count) < 0.2,
    )


def test_twenty_episodes_by_hand() -> None:
    """Returns 1 to 20: the worst 5% is one episode, the middle half is 6 to 15, the 5% quantile lies at 1.95."""
    report = summarize(made(np.random.default_rng(0).permutation(np.arange(1.0, 21.0))))
    assert report.episodes == 20
    assert report.return_mean == 10.5
    assert report.return_std == pytest.approx(math.sqrt(35.0))
    assert report.return_iqm == 10.5
    assert report.return_min == report.return_cvar_05 == 1.0
    assert report.return_quantile_05 == pytest.approx(1.95)


def test_one_outlier_moves_the_mean_and_not_the_interquartile_mean() -> None:
    report = summarize(made([0.0] * 7 + [800.0]))
    assert (report.return_mean, report.return_iqm) == (100.0, 0.0)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 19, 20, 21, 100, 101, 1000])
def test_against_numpy_and_scipy(count: int) -> None:
    episodes = made(np.random.default_rng(count).normal(300.0, 1000.0, count), seed=count)
    report = summarize(episodes)
    returns = episodes.returns.astype(np.float64)
    worst = np.sort(returns)[: math.ceil(count / 20)]
    assert report.episodes == count
    assert report.return_mean == pytest.approx(np.mean(returns), rel=1e-12)
    assert report.return_std == (pytest.approx(np.std(returns, ddof=1), rel=1e-12) if count > 1 else 0.0)
    assert report.return_iqm == pytest.approx(stats.trim_mean(returns, 0.25), rel=1e-12)
    assert report.return_min == returns.min()
    assert report.return_quantile_05 == pytest.approx(np.quantile(returns, 0.05), rel=1e-12)
    assert report.return_cvar_05 == pytest.approx(worst.mean(), rel=1e-12)
    assert report.length_mean == pytest.approx(episodes.lengths.mean(dtype=np.float64))
    assert report.failure_rate == pytest.approx(np.count_nonzero(episodes.terminated | episodes.nonfinite) / count)
    assert report.nonfinite_rate == pytest.approx(np.count_nonzero(episodes.nonfinite) / count)
    for share in (25, 50, 75, 95):
        wanted = np.quantile(returns, share / 100)
        assert getattr(report, f"return_quantile_{share}") == pytest.approx(wanted, rel=1e-12)
    assert report.return_max == returns.max()
    assert (report.length_min, report.length_max) == (min(episodes.lengths), max(episodes.lengths))
    assert report.return_min <= report.return_cvar_05 <= report.return_mean


def test_an_episode_that_both_ended_and_broke_fails_once() -> None:
    flags = np.array([True, True, False, False]), np.array([True, False, True, False])
    report = summarize(Episodes(np.zeros(4, np.float32), np.ones(4, np.int32), *flags))
    assert report.failure_rate == 0.75


def test_order_and_precision_do_not_matter() -> None:
    """A million float32 returns near 16,777,216 would not add up in float32."""
    returns = np.full(100_000, 16_777_216.0, np.float32)
    returns[::2] += 2.0
    assert summarize(made(returns)).return_mean == 16_777_217.0
    assert summarize(made(returns[::-1])).return_mean == 16_777_217.0


def test_the_dictionary_has_the_promised_keys_and_is_json() -> None:
    report = summarize(made([1.0, 2.0, 3.0]))
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert list(told) == EVALUATION_KEYS
    assert type(told["episodes"]) is int
    whole, words = {"episodes", "length_min", "length_max"}, {"failure"}
    for name, value in told.items():
        assert type(value) is (int if name in whole else str if name in words else float), name


def test_the_episodes_come_along() -> None:
    episodes = made([3.0, 1.0, 2.0])
    report = summarize(episodes)
    assert report.details is episodes
    np.testing.assert_array_equal(episodes.returns, [3.0, 1.0, 2.0])
