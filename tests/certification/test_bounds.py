"""Failure probability, quantile and CVaR bounds against closed forms, exact fractions and hand-worked cases."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import beta, binom, binomtest

from trpo_brax.certification.betting import mean_upper_betting
from trpo_brax.certification.bounds import (
    cvar_lower,
    failure_probability_upper,
    quantile_lower,
)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.9875])
@pytest.mark.parametrize(("failures", "episodes"), [(1, 10), (3, 1000), (17, 200), (9999, 10_000)])
def test_failure_bound_is_the_beta_quantile_and_the_root_of_the_binomial(
    failures: int, episodes: int, confidence: float
) -> None:
    bound = failure_probability_upper(failures, episodes, confidence)
    assert bound == pytest.approx(beta.ppf(confidence, failures + 1, episodes - failures), rel=1e-9)
    root = brentq(lambda p: binom.cdf(failures, episodes, p) - (1.0 - confidence), 1e-9, 1.0 - 1e-12, xtol=1e-14)
    assert bound == pytest.approx(root, rel=1e-8)
    two_sided = binomtest(failures, episodes).proportion_ci(confidence, method="exact").high
    assert bound < two_sided


@pytest.mark.parametrize("episodes", [1, 30, 10_000])
def test_failure_bound_with_no_failure_and_with_nothing_else(episodes: int) -> None:
    """The rule of three: 1 - 0.05^(1/n) is about 3 / n."""
    assert failure_probability_upper(0, episodes, 0.95) == pytest.approx(1.0 - 0.05 ** (1.0 / episodes), rel=1e-9)
    assert failure_probability_upper(episodes, episodes, 0.95) == 1.0


@pytest.mark.parametrize(("failures", "episodes"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts_are_refused(failures: int, episodes: int) -> None:
    with pytest.raises(ValueError, match="failures must lie in"):
        failure_probability_upper(failures, episodes, 0.95)


def exact_rank(count: int, probability: Fraction, failure: Fraction) -> int:
    """Return the largest k with P(Binomial(count, probability) < k) <= failure, in exact arithmetic."""
    below, rank = Fraction(0), 0
    for k in range(count):
        below += math.comb(count, k) * probability**k * (1 - probability) ** (count - k)
        if below > failure:
            break
        rank = k + 1
    return rank


@pytest.mark.parametrize("failure", [Fraction(1, 10), Fraction(1, 20), Fraction(1, 80), Fraction(1, 3)])
@pytest.mark.parametrize("probability", [Fraction(1, 20), Fraction(1, 4), Fraction(1, 2), Fraction(4, 5)])
def test_quantile_rank_in_exact_fractions(probability: Fraction, failure: Fraction) -> None:
    rng = np.random.default_rng(0)
    for count in [*range(1, 30), 58, 59, 60, 92, 93, 200, 333]:
        rank = exact_rank(count, probability, failure)
        bound = quantile_lower(rng.permutation(count) + 1.0, float(probability), 1.0 - float(failure))
        assert bound == (rank if rank else None), count
        assert (rank > 0) == ((1 - probability) ** count <= failure)


def test_quantile_rank_counts_an_exact_tie() -> None:
    """P(Binomial(2, 1/2) < 1) = 1/4 exactly: the smallest of two is a bound on the median with confidence 3/4."""
    assert quantile_lower([5.0, 4.0], 0.5, 0.75) == 4.0
    assert quantile_lower([5.0, 4.0], 0.5, 0.7500001) is None
    assert quantile_lower(np.ones(59), 0.05, 0.95) == 1.0 and quantile_lower(np.ones(58), 0.05, 0.95) is None


def test_quantile_bound_is_an_observed_value_with_ties_and_infinities() -> None:
    values = np.full(1000, 7.0)
    assert quantile_lower(values, 0.05, 0.95) == 7.0
    values[:100] = -np.inf
    assert quantile_lower(values, 0.05, 0.95) == -np.inf
    values[:100] = 7.0
    values[0] = -np.inf
    assert quantile_lower(values, 0.05, 0.95) == 7.0
    assert quantile_lower([], 0.05, 0.95) is None
    with pytest.raises(ValueError, match="numbers"):
        quantile_lower([1.0, float("nan")], 0.5, 0.5)


def test_cvar_bound_by_its_parts() -> None:
    """The first fifth chooses nu, its 5% order statistic; the rest bounds the shortfall below it."""
    values = np.random.default_rng(1).normal(1000.0, 100.0, 1000).clip(0.0)
    nu = np.sort(values[:200])[9]
    shortfall = mean_upper_betting(np.maximum(nu - values[200:], 0.0), floor=0.0, cap=nu, confidence=0.95)
    assert cvar_lower(values, 0.05, floor=0.0, confidence=0.95) == pytest.approx(nu - shortfall / 0.05, rel=1e-12)
    median = np.sort(values[:500])[249]
    shortfall = mean_upper_betting(np.maximum(median - values[500:], 0.0), floor=0.0, cap=median, confidence=0.9)
    bound = cvar_lower(values, 0.5, floor=0.0, confidence=0.9, choosing_share=0.5)
    assert bound == pytest.approx(median - shortfall / 0.5, rel=1e-12)


def test_cvar_bound_uses_each_value_once() -> None:
    """The values that choose nu say nothing about the shortfall: below nu, they may be anything."""
    values = np.random.default_rng(2).normal(1000.0, 100.0, 1000).clip(0.0)
    changed = values.copy()
    changed[np.argsort(values[:200])[:9]] = 0.0
    assert cvar_lower(changed, 0.05, floor=0.0, confidence=0.95) == cvar_lower(values, 0.05, floor=0.0, confidence=0.95)


def test_cvar_bound_stays_between_the_floor_and_the_sample() -> None:
    rng = np.random.default_rng(3)
    values = rng.beta(8, 1, 2000)
    worst = np.sort(values)[:100].mean()
    assert 0.0 < cvar_lower(values, 0.05, floor=0.0, confidence=0.95) < worst
    assert cvar_lower(values[:20], 0.05, floor=0.0, confidence=0.95) == 0.0
    assert cvar_lower([3.0], 0.05, floor=-2.0, confidence=0.95) == -2.0
    assert cvar_lower(np.full(50, -2.0), 0.05, floor=-2.0, confidence=0.95) == -2.0
    assert cvar_lower(np.concatenate([np.full(50, -2.0), np.full(200, 5.0)]), 0.05, floor=-2.0, confidence=0.9) == -2.0


def test_cvar_bound_follows_shift_scale_and_confidence() -> None:
    values = np.random.default_rng(4).beta(8, 1, 2000)
    plain = cvar_lower(values, 0.05, floor=0.0, confidence=0.95)
    moved = cvar_lower(300.0 * values - 1000.0, 0.05, floor=-1000.0, confidence=0.95)
    assert moved == pytest.approx(300.0 * plain - 1000.0, abs=1e-8)
    bounds = [cvar_lower(values, 0.05, floor=0.0, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert bounds[0] > bounds[1] > bounds[2]
    lower_floor = cvar_lower(values, 0.05, floor=-5.0, confidence=0.95)
    assert -5.0 < lower_floor < plain


@pytest.mark.parametrize(
    ("values", "alpha", "floor", "words"),
    [
        ([], 0.05, 0.0, "one value at least"),
        ([1.0, -1.0], 0.05, 0.0, "floor"),
        ([1.0, float("-inf")], 0.05, 0.0, "finite"),
        ([1.0, float("nan")], 0.05, 0.0, "finite"),
        ([1.0, 2.0], 0.05, float("-inf"), "not below the floor"),
        ([1.0, 2.0], 0.0, 0.0, "alpha"),
        ([1.0, 2.0], 1.0, 0.0, "alpha"),
    ],
)
def test_what_has_no_cvar_bound_is_refused(values: list[float], alpha: float, floor: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cvar_lower(values, alpha, floor=floor, confidence=0.95)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_must_be_inside_the_unit_interval(confidence: float) -> None:
    for bound in (
        lambda: failure_probability_upper(0, 10, confidence),
        lambda: quantile_lower([1.0], 0.5, confidence),
        lambda: cvar_lower([1.0, 2.0], 0.5, floor=0.0, confidence=confidence),
    ):
        with pytest.raises(ValueError, match="confidence must lie inside"):
            bound()
