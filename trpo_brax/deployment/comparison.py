"""Two policies' episodes compared pair by pair: both met the same starting states.

Each function takes figures of the same E episodes under a reference and under another policy, and returns a two-sided
confidence interval of what the other has more. Pairs are independent of one another; nothing is assumed of how the two
of a pair depend on each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trpo_brax.evaluation.statistics import conditional_value_at_risk

_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 4_000_000
"""Resampled episodes in memory at a time."""
_NEXT_TO_NOTHING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A difference, other - reference, and where it lies at the stated confidence."""

    difference: float
    low: float
    high: float

    def within(self, margin: float) -> bool:
        """Return whether all of it is inside +-margin."""
        return -margin <= self.low and self.high <= margin


def mean_difference(reference: npt.ArrayLike, other: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the interval of the difference in means: the paired t interval.

    Args:
        reference: [E]
        other: [E], of the same episodes.
        confidence: two-sided.
    """
    from scipy import stats

    differences = np.asarray(other, np.float64) - np.asarray(reference, np.float64)
    middle = float(differences.mean())
    if differences.size < 2:
        return Interval(middle, -math.inf, math.inf)
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    reach = float(stats.t.ppf(0.5 + confidence / 2, differences.size - 1)) * error
    return Interval(middle, middle - reach, middle + reach)


def failure_rate_difference(reference: npt.ArrayLike, other: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the interval of the difference in failure rates: the score interval of Tango (1998, Stat. Med. 17:891).

    It keeps its coverage where failures are rare: with no failure in E episodes it still reaches z^2 / (E + z^2).

    Args:
        reference: bool [E], which episodes failed.
        other: bool [E], of the same episodes.
        confidence: two-sided.
    """
    ours, theirs = np.asarray(reference, bool), np.asarray(other, bool)
    more, fewer = int(np.sum(theirs & ~ours)), int(np.sum(ours & ~theirs))
    z, count = _z(confidence), ours.size
    high, low = _tango_upper(more, fewer, count, z), -_tango_upper(fewer, more, count, z)
    return Interval((more - fewer) / count, low, high)


def least_failure_margin(episodes: int, confidence: float = 0.95) -> float:
    """Return the least margin that `failure_rate_difference` of E episodes keeps where the policies never differ."""
    return _z(confidence) ** 2 / (episodes + _z(confidence) ** 2)


def episodes_for_failure_margin(margin: float, confidence: float = 0.95) -> int:
    """Return how many episodes it takes for `least_failure_margin` to be at most `margin`."""
    return math.ceil(_z(confidence) ** 2 * (1.0 - margin) / margin)


def cvar_difference(
    reference: npt.ArrayLike, other: npt.ArrayLike, alpha: float = 0.05, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return the interval of the difference in CVaR, the mean of the worst share: the paired percentile bootstrap.

    Args:
        reference: [E]
        other: [E], of the same episodes.
        alpha: the share, rounded up to whole episodes.
        confidence: two-sided.
        seed: of the resamples.
    """
    from scipy import stats

    ours, theirs = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    middle = conditional_value_at_risk(theirs, alpha) - conditional_value_at_risk(ours, alpha)
    if ours.size < 2:
        return Interval(middle, -math.inf, math.inf)
    found = stats.bootstrap(
        (ours, theirs),
        lambda ours, theirs, axis: _worst(theirs, alpha) - _worst(ours, alpha),
        paired=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _RESAMPLES_AT_ONCE // ours.size),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(middle, float(found.low), float(found.high))


def _worst(values: np.ndarray, alpha: float) -> np.ndarray:
    """Return the mean of the worst share along the last axis."""
    count = math.ceil(alpha * values.shape[-1])
    means: np.ndarray = np.partition(values, count - 1)[..., :count].mean(axis=-1)
    return means


def _z(confidence: float) -> float:
    """Return the standard normal quantile of a two-sided interval."""
    from scipy import stats

    return float(stats.norm.ppf(0.5 + confidence / 2))


def _tango_upper(more: int, fewer: int, count: int, z: float) -> float:
    """Return the largest difference of rates that the score test does not reject.

    Of pairs with `more` where only the other failed and `fewer` where only the reference did: the d above the estimate
    at which (more - fewer - E d)^2 = z^2 E (2 q + d (1 - d)), q being the maximum likelihood estimate of the second
    rate where the first is q + d.
    """
    from scipy import optimize

    estimate = (more - fewer) / count
    if estimate >= 1.0:
        return 1.0

    def excess(d: float) -> float:
        b = (2 * count - more + fewer) * d - (more + fewer)
        root = math.sqrt(max(b * b + 8 * count * fewer * d * (1 - d), 0.0))
        q = max((root - b) / (4 * count), 0.0, -d)
        return (more - fewer - count * d) ** 2 - z * z * count * (2 * q + d * (1 - d))

    return float(optimize.brentq(excess, estimate + _NEXT_TO_NOTHING, 1.0, xtol=1e-12))
