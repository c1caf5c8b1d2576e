"""How often the bounds miss the truth, over many repetitions on distributions whose truth is known, and how far off."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom, norm

from trpo_brax.certification.betting import mean_lower_betting
from trpo_brax.certification.bounds import cvar_lower, failure_probability_upper, quantile_lower
from trpo_brax.certification.paired import difference_bounds

ALPHA = 0.05
EPISODES = 500
REPETITIONS = 600
MISCOVERAGE = 0.1
FALSE_ALARM = 1e-4


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Returns with a known truth; failure is a return below `failure_below`."""

    name: str
    from_uniform: Callable[[np.ndarray], np.ndarray]
    """The quantile function, so of a uniform draw it is a draw."""
    floor: float
    cap: float
    mean: float
    quantile: float
    cvar: float
    failure_below: float
    failure_probability: float


def rare_catastrophe(probability: float) -> Distribution:
    """Return 1000, but -500 with a probability below alpha."""
    return Distribution(
        name="rare catastrophe",
        from_uniform=lambda u: np.where(u < probability, -500.0, 1000.0),
        floor=-500.0,
        cap=1000.0,
        mean=1000.0 - 1500.0 * probability,
        quantile=1000.0,
        cvar=1000.0 - 1500.0 * probability / ALPHA,
        failure_below=0.0,
        failure_probability=probability,
    )


def skewed() -> Distribution:
    """1000 Beta(8, 1): P(X <= x) = (x / 1000)^8."""
    return Distribution(
        name="skewed",
        from_uniform=lambda u: 1000.0 * u ** (1 / 8),
        floor=0.0,
        cap=1000.0,
        mean=1000.0 * 8 / 9,
        quantile=1000.0 * ALPHA ** (1 / 8),
        cvar=1000.0 * 8 / 9 * ALPHA ** (1 / 8),
        failure_below=500.0,
        failure_probability=0.5**8,
    )


def heavy_lower_tail() -> Distribution:
    """1000 - 100 min(Y, 90) with P(Y > y) = (1 + y)^-1.5: infinite variance, were it not for the floor."""
    at_floor = 91.0**-1.5
    worst_loss = (at_floor * 90.0 + 3.0 * (ALPHA ** (1 / 3) - at_floor ** (1 / 3)) - (ALPHA - at_floor)) / ALPHA
    return Distribution(
        name="heavy lower tail",
        from_uniform=lambda u: 1000.0 - 100.0 * np.minimum(u ** (-2 / 3) - 1.0, 90.0),
        floor=-8000.0,
        cap=1000.0,
        mean=1000.0 - 100.0 * 2.0 * (1.0 - 91.0**-0.5),
        quantile=1000.0 - 100.0 * (ALPHA ** (-2 / 3) - 1.0),
        cvar=1000.0 - 100.0 * worst_loss,
        failure_below=0.0,
        failure_probability=11.0**-1.5,
    )


def nearly_constant() -> Distribution:
    """1000 and a thousandth either way, in a range of 2000; nothing ever fails."""
    return Distribution(
        name="nearly constant",
        from_uniform=lambda u: 999.999 + 0.002 * u,
        floor=0.0,
        cap=2000.0,
        mean=1000.0,
        quantile=999.999 + 0.002 * ALPHA,
        cvar=999.999 + 0.001 * ALPHA,
        failure_below=999.0,
        failure_probability=0.0,
    )


def bell(mean: float, deviation: float) -> Distribution:
    """A normal distribution cut off at 4 deviations."""
    below = norm.cdf(-4.0)
    inside = 1.0 - 2.0 * below
    at_alpha = norm.ppf(below + ALPHA * inside)
    return Distribution(
        name="bell",
        from_uniform=lambda u: mean + deviation * norm.ppf(below + u * inside),
        floor=mean - 4.0 * deviation,
        cap=mean + 4.0 * deviation,
        mean=mean,
        quantile=mean + deviation * at_alpha,
        cvar=mean + deviation * (norm.pdf(-4.0) - norm.pdf(at_alpha)) / (ALPHA * inside),
        failure_below=mean - 2.0 * deviation,
        failure_probability=(norm.cdf(-2.0) - below) / inside,
    )


DISTRIBUTIONS = (rare_catastrophe(0.006), skewed(), heavy_lower_tail(), nearly_constant(), bell(4500.0, 500.0))


def misses_failure(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    failures = int((returns < truth.failure_below).sum())
    return failure_probability_upper(failures, returns.size, confidence) < truth.failure_probability


def misses_quantile(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    bound = quantile_lower(returns, ALPHA, confidence)
    assert bound is not None
    return bound > truth.quantile


def misses_betting(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    return mean_lower_betting(returns, floor=truth.floor, cap=truth.cap, confidence=confidence) > truth.mean


def misses_cvar(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    return cvar_lower(returns, ALPHA, floor=truth.floor, confidence=confidence) > truth.cvar


def misses_jointly(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    """Return whether any of the four statements of a certificate fails, each with a quarter of the miscoverage."""
    each = 1.0 - (1.0 - confidence) / 4.0
    return any(
        misses(returns, truth, each) for misses in (misses_failure, misses_quantile, misses_betting, misses_cvar)
    )


def misses_bootstrap(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    """Return whether the lower bound of a percentile bootstrap of the mean fails."""
    rng = np.random.default_rng(returns.size)
    means = returns[rng.integers(0, returns.size, (100, returns.size))].mean(axis=1)
    return float(np.quantile(means, 1.0 - confidence)) > truth.mean


def misses_sample_mean(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    return float(returns.mean()) > truth.mean


def misses_worst_share(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    """Return whether the mean of the worst share of the sample, taken for a bound on CVaR, fails."""
    return float(np.sort(returns)[: int(ALPHA * returns.size)].mean()) > truth.cvar


def misses_difference(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    """Return whether somebody who looks after every difference, of mean 0 here, ever takes one policy for the better.

    Bounds at the end are the tightest of all looks.
    """
    largest = max(truth.cap - truth.mean, truth.mean - truth.floor)
    bounds = difference_bounds(returns - truth.mean, largest, confidence)
    return bounds is None or not bounds[0] <= 0.0 <= bounds[1]


def misses_repeated_test(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
    """Return whether he does who repeats a test for a fixed sample size, once in 50."""
    counts = np.arange(50, returns.size + 1, 50)
    found = returns - truth.mean
    scores = [abs(found[:n].mean()) / (found[:n].std(ddof=1) / math.sqrt(n)) for n in counts]
    return bool(max(scores) > norm.ppf(0.5 + confidence / 2.0))


Misses = Callable[[np.ndarray, Distribution, float], bool]


def count_misses(misses: Misses, truth: Distribution) -> int:
    """Return in how many of the repetitions the bound misses the truth."""
    draws = truth.from_uniform(np.random.default_rng(20).random((REPETITIONS, EPISODES)))
    return sum(misses(returns, truth, 1.0 - MISCOVERAGE) for returns in draws)


def most_misses_allowed() -> int:
    """Return what a bound that misses exactly as often as it may exceeds with probability 1e-4."""
    return int(binom.ppf(1.0 - FALSE_ALARM, REPETITIONS, MISCOVERAGE))


@pytest.mark.parametrize("truth", DISTRIBUTIONS, ids=lambda d: d.name)
def test_the_truths_are_those_of_the_quantile_functions(truth: Distribution) -> None:
    """Integrals over the quantile function by the midpoint rule."""
    grid = (np.arange(4_000_000) + 0.5) / 4_000_000
    values = truth.from_uniform(grid)
    worst = values[: int(ALPHA * grid.size)]
    assert np.all(np.diff(values) >= 0.0)
    assert values[0] >= truth.floor
    assert values[-1] <= truth.cap
    assert values.mean() == pytest.approx(truth.mean, rel=1e-6)
    assert worst[-1] == pytest.approx(truth.quantile, rel=1e-5)
    assert worst.mean() == pytest.approx(truth.cvar, rel=1e-5)
    assert (values < truth.failure_below).mean() == pytest.approx(truth.failure_probability, abs=1e-6)


@pytest.mark.parametrize("truth", DISTRIBUTIONS, ids=lambda d: d.name)
@pytest.mark.parametrize(
    "misses",
    [misses_failure, misses_quantile, misses_betting, misses_cvar, misses_jointly, misses_difference],
)
def test_bounds_miss_no_more_often_than_they_say(misses: Misses, truth: Distribution) -> None:
    assert count_misses(misses, truth) <= most_misses_allowed()


@pytest.mark.parametrize(
    ("misses", "truth"),
    [
        (misses_failure, heavy_lower_tail()),
        (misses_quantile, skewed()),
        (misses_quantile, bell(4500.0, 500.0)),
    ],
)
def test_exact_bounds_miss_almost_as_often_as_they_may(misses: Misses, truth: Distribution) -> None:
    """A binomial bound is conservative only by its steps: at least half of the misses it may have."""
    assert count_misses(misses, truth) >= 0.5 * MISCOVERAGE * REPETITIONS


def test_cvar_bound_of_the_worse_half_misses_as_it_may() -> None:
    """Where the worst share is half of the episodes the bound is close enough to miss: some, and not too many."""
    truth = bell(0.0, 1.0)
    worse_half = (norm.pdf(-4.0) - norm.pdf(0.0)) / (0.5 * (1.0 - 2.0 * norm.cdf(-4.0)))

    def misses(returns: np.ndarray, truth: Distribution, confidence: float) -> bool:
        return cvar_lower(returns, 0.5, floor=truth.floor, confidence=confidence) > worse_half

    assert 0.1 * MISCOVERAGE * REPETITIONS <= count_misses(misses, truth) <= most_misses_allowed()


@pytest.mark.parametrize(
    ("misses", "truth"),
    [
        (misses_sample_mean, skewed()),
        (misses_bootstrap, rare_catastrophe(0.002)),
        (misses_worst_share, heavy_lower_tail()),
        (misses_repeated_test, bell(0.0, 1.0)),
    ],
)
def test_the_check_finds_wrong_bounds(misses: Misses, truth: Distribution) -> None:
    assert count_misses(misses, truth) > most_misses_allowed()


def cvar_lower_dkw(returns: np.ndarray, floor: float, confidence: float) -> float:
    """Return the CVaR of the empirical distribution with a share epsilon moved to the floor (DKW, one-sided)."""
    ordered = np.sort(returns)
    epsilon = math.sqrt(math.log(1.0 / (1.0 - confidence)) / (2.0 * ordered.size))
    taken = np.clip((ALPHA - epsilon) * ordered.size - np.arange(ordered.size), 0.0, 1.0)
    return float((epsilon * floor + (taken * ordered).sum() / ordered.size) / ALPHA)


@pytest.mark.parametrize(
    ("truth", "floor", "share_of_dkw_gap"),
    [
        (bell(4500.0, 161.3), 0.0, 0.06),
        (bell(4500.0, 500.0), 2500.0, 0.12),
        (skewed(), 0.0, 0.08),
        (heavy_lower_tail(), -8000.0, 0.15),
        (rare_catastrophe(0.001), -500.0, 0.12),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_cvar_bound_of_ten_thousand_episodes_is_far_closer_than_dkw(
    truth: Distribution, floor: float, share_of_dkw_gap: float
) -> None:
    draws = truth.from_uniform(np.random.default_rng(21).random((10, 10_000)))
    gap = truth.cvar - np.mean([cvar_lower(returns, ALPHA, floor=floor, confidence=0.95) for returns in draws])
    dkw_gap = truth.cvar - np.mean([cvar_lower_dkw(returns, floor, 0.95) for returns in draws])
    assert 0.0 < gap < share_of_dkw_gap * dkw_gap


def test_certificate_of_a_walking_robot_says_something() -> None:
    """True CVaR 4167 with a floor of 0: DKW promises about 3130, the split bound more than 4100."""
    truth = bell(4500.0, 161.3)
    returns = truth.from_uniform(np.random.default_rng(22).random(10_000))
    assert truth.cvar == pytest.approx(4167.0, abs=2.0)
    assert 3000.0 < cvar_lower_dkw(returns, 0.0, 0.95) < 3200.0
    assert 4100.0 < cvar_lower(returns, ALPHA, floor=0.0, confidence=0.95) < truth.cvar
    assert 4480.0 < mean_lower_betting(returns, floor=0.0, cap=9000.0, confidence=0.95) < truth.mean


def empirical_bernstein(returns: np.ndarray, truth: Distribution, confidence: float) -> float:
    """Return a lower bound on the mean that is looser and closed: Maurer and Pontil 2009, Theorem 4."""
    logarithm, count = math.log(2.0 / (1.0 - confidence)), returns.size
    spread = math.sqrt(2.0 * returns.var(ddof=1) * logarithm / count)
    bound = returns.mean() - spread - 7.0 * (truth.cap - truth.floor) * logarithm / (3.0 * (count - 1))
    return max(float(bound), truth.floor)


@pytest.mark.parametrize("episodes", [300, 1000, 10_000])
@pytest.mark.parametrize("truth", [*DISTRIBUTIONS, rare_catastrophe(0.001)], ids=lambda d: d.name)
def test_betting_is_closer_than_empirical_bernstein(truth: Distribution, episodes: int) -> None:
    returns = truth.from_uniform(np.random.default_rng(episodes).random(episodes))
    span = truth.cap - truth.floor
    betting = mean_lower_betting(returns, floor=truth.floor, cap=truth.cap, confidence=0.95)
    assert empirical_bernstein(returns, truth, 0.95) < betting < returns.mean()
    central_limit = 1.645 * returns.std() / math.sqrt(episodes)
    assert returns.mean() - betting < 1.6 * central_limit + 6.0 * span / episodes


def test_ten_catastrophes_in_ten_thousand_episodes_are_bounded_closely() -> None:
    """Of 1000 and -500: at most 0.17% fail, the mean of 998.5 is at least 996.5, and the CVaR of 970 at least 920."""
    returns = np.full(10_000, 1000.0)
    returns[np.random.default_rng(23).choice(10_000, 10, replace=False)] = -500.0
    assert 0.001 < failure_probability_upper(10, 10_000, 0.95) < 0.0017
    assert 996.5 < mean_lower_betting(returns, floor=-500.0, cap=1000.0, confidence=0.95) < 998.5
    assert 920.0 < cvar_lower(returns, ALPHA, floor=-500.0, confidence=0.95) < 970.0
    assert quantile_lower(returns, ALPHA, 0.95) == 1000.0
