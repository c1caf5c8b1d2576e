"""Paired intervals against closed forms, brute force and known cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from trpo_brax.deployment.comparison import (
    Interval,
    cvar_difference,
    episodes_for_failure_margin,
    failure_rate_difference,
    least_failure_margin,
    mean_difference,
)

GENERATOR = np.random.default_rng(5)
RETURNS = GENERATOR.normal(1000.0, 200.0, 1000)


def pairs(more: int, fewer: int, both: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `count` episodes failed under the reference and under the other policy."""
    reference, other = np.zeros((2, count), bool)
    other[:more] = True
    reference[more : more + fewer] = True
    reference[more + fewer : more + fewer + both] = other[more + fewer : more + fewer + both] = True
    return reference, other


class TestMean:
    """The paired t interval."""

    def test_a_shift_by_a_constant_is_known_exactly(self) -> None:
        found = mean_difference(RETURNS, RETURNS - 25.0)
        assert found.difference == pytest.approx(-25.0)
        assert found.low == pytest.approx(-25.0) and found.high == pytest.approx(-25.0)
        assert not found.within(24.0) and found.within(26.0)

    def test_identical_policies_differ_by_nothing(self) -> None:
        assert mean_difference(RETURNS, RETURNS) == Interval(0.0, 0.0, 0.0)

    def test_the_interval_of_scipys_paired_test(self) -> None:
        other = RETURNS + GENERATOR.normal(3.0, 40.0, RETURNS.size)
        found, wanted = mean_difference(RETURNS, other, 0.9), stats.ttest_rel(other, RETURNS).confidence_interval(0.9)
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))

    def test_pairing_is_used(self) -> None:
        other = RETURNS + GENERATOR.normal(0.0, 1.0, RETURNS.size)
        paired, apart = mean_difference(RETURNS, other), mean_difference(RETURNS, GENERATOR.permutation(other))
        assert paired.high - paired.low < 0.02 * (apart.high - apart.low)

    def test_one_episode_says_nothing(self) -> None:
        assert mean_difference([1.0], [1.0]) == Interval(0.0, -math.inf, math.inf)


class TestFailureRate:
    """Tango's score interval."""

    def test_no_failure_at_all_leaves_what_that_many_episodes_can_hide(self) -> None:
        z = stats.norm.ppf(0.975)
        found = failure_rate_difference(*pairs(0, 0, 0, 1000))
        reach = z**2 / (1000 + z**2)
        assert (found.difference, found.low, found.high) == pytest.approx((0.0, -reach, reach))

    def test_failures_of_both_at_once_hide_nothing_less(self) -> None:
        assert failure_rate_difference(*pairs(0, 0, 500, 1000)) == failure_rate_difference(*pairs(0, 0, 0, 1000))

    @pytest.mark.parametrize("count", [1, 20, 380, 381, 10**6])
    def test_the_least_margin_is_what_they_can_hide(self, count: int) -> None:
        z = stats.norm.ppf(0.975)
        assert least_failure_margin(count) == pytest.approx(
            failure_rate_difference(*pairs(0, 0, 0, count)).high, rel=1e-6
        )
        assert least_failure_margin(count) == pytest.approx(z**2 / (count + z**2), rel=1e-6)

    @pytest.mark.parametrize(("margin", "confidence"), [(0.9, 0.95), (0.2, 0.95), (0.01, 0.95), (0.003, 0.99)])
    def test_episodes_for_a_margin(self, margin: float, confidence: float) -> None:
        needed = episodes_for_failure_margin(margin, confidence)
        assert least_failure_margin(needed, confidence) <= margin
        assert needed == 1 or least_failure_margin(needed - 1, confidence) > margin

    @pytest.mark.parametrize(
        ("more", "fewer", "count"), [(1, 0, 1000), (12, 3, 400), (0, 7, 90), (30, 30, 200), (5, 0, 5)]
    )
    def test_the_ends_are_where_the_likelihoods_score_is_z(self, more: int, fewer: int, count: int) -> None:
        """The restricted maximum found by search, not by the quadratic's root."""
        found = failure_rate_difference(*pairs(more, fewer, 0, count))
        z = stats.norm.ppf(0.975)
        for end in (found.low, found.high):
            if abs(end) > 1 - 1e-9:
                assert count in (more, fewer)
                continue

            def unlikely(q: float, end: float = end) -> float:
                same = count - more - fewer
                rates = (q + end, q, 1 - 2 * q - end)
                return -sum(n * math.log(max(p, 1e-300)) for n, p in zip((more, fewer, same), rates, strict=True) if n)

            low, high = max(0.0, -end), (1 - end) / 2
            q = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
            score = (more - fewer - count * end) / math.sqrt(count * (2 * q + end * (1 - end)))
            assert abs(score) == pytest.approx(z, rel=1e-3)

    def test_which_is_which(self) -> None:
        worse, better = failure_rate_difference(*pairs(40, 0, 5, 1000)), failure_rate_difference(*pairs(0, 40, 5, 1000))
        assert worse.difference == 0.04 and worse.low > 0.02
        assert (better.low, better.high) == pytest.approx((-worse.high, -worse.low))

    @pytest.mark.parametrize("rates", [(0.0, 0.02), (0.03, 0.03), (0.005, 0.0), (0.2, 0.1)])
    def test_coverage_by_enumerating_every_outcome(self, rates: tuple[float, float]) -> None:
        """With 60 episodes, over every count of discordant pairs: the interval holds the truth in nearly 95%."""
        count, truth, covered = 60, rates[0] - rates[1], 0.0
        probabilities = [*rates, 1 - sum(rates)]
        for more, fewer in itertools.product(range(31), repeat=2):
            weight = stats.multinomial.pmf([more, fewer, count - more - fewer], count, probabilities)
            if weight > 1e-7:
                found = failure_rate_difference(*pairs(more, fewer, 0, count))
                covered += weight * (found.low <= truth <= found.high)
        assert covered > 0.93

    def test_all_episodes_lost(self) -> None:
        """(50 - 50 d)^2 = z^2 50 (1 - d) (1 + d): the restricted maximum shares out what is left evenly."""
        z = stats.norm.ppf(0.975)
        found = failure_rate_difference(np.zeros(50, bool), np.ones(50, bool))
        assert found.difference == found.high == 1.0
        assert found.low == pytest.approx((50 - z**2) / (50 + z**2))


class TestWorstShare:
    """CVaR's paired bootstrap."""

    def test_a_shift_by_a_constant_is_known_exactly(self) -> None:
        found = cvar_difference(RETURNS, RETURNS + 7.0)
        assert (found.difference, found.low, found.high) == pytest.approx((7.0, 7.0, 7.0))

    def test_identical_policies_differ_by_nothing(self) -> None:
        assert cvar_difference(RETURNS, RETURNS) == Interval(0.0, 0.0, 0.0)

    def test_one_catastrophe_in_a_thousand_is_seen_here_and_not_in_the_mean(self) -> None:
        """It is one of the 50 worst; of resamples a share of (1 - 1/1000)^1000 has none, and 2.5% have 3 or more."""
        reference = np.full(1000, 1000.0)
        other = reference.copy()
        other[123] = -5000.0
        found = cvar_difference(reference, other)
        assert found.difference == pytest.approx(-120.0)
        assert found.low in (pytest.approx(-360.0), pytest.approx(-480.0)) and found.high == 0.0
        assert not found.within(50.0)
        assert mean_difference(reference, other).within(50.0)
        assert failure_rate_difference(reference < 0, other < 0).within(0.01)

    def test_whole_episodes_rounded_up(self) -> None:
        found = cvar_difference(np.zeros(30), np.arange(30.0), alpha=0.05)
        assert found.difference == pytest.approx(0.5)

    def test_in_resamples_as_well(self) -> None:
        """One episode of 30 is the worst: of two, its share is none in 36%, half in 37% and all in 26% of resamples."""
        found = cvar_difference(np.zeros(30), np.array([0.0, *[30.0] * 29]), alpha=0.05, confidence=0.2)
        assert (found.low, found.high) == (15.0, 15.0)

    def test_its_spread_is_that_of_fresh_samples(self) -> None:
        """Of a normal distribution, whose CVaR estimates are drawn again and again."""
        draws = GENERATOR.normal(0.0, 1.0, (2, 400, 1000))
        wanted = np.std(
            [np.sort(one)[:50].mean() - np.sort(other)[:50].mean() for one, other in zip(*draws, strict=True)]
        )
        found = cvar_difference(*draws[:, 0])
        assert (found.high - found.low) / (2 * 1.96) == pytest.approx(wanted, rel=0.35)

    def test_the_same_interval_every_time(self) -> None:
        other = RETURNS + GENERATOR.normal(0.0, 50.0, RETURNS.size)
        assert cvar_difference(RETURNS, other) == cvar_difference(RETURNS, other)

    def test_many_episodes_in_parts_of_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        other = RETURNS + GENERATOR.normal(0.0, 50.0, RETURNS.size)
        whole = cvar_difference(RETURNS, other)
        monkeypatch.setattr("trpo_brax.deployment.comparison._RESAMPLES_AT_ONCE", 3 * RETURNS.size)
        assert cvar_difference(RETURNS, other) == whole
