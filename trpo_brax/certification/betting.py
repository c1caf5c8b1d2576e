"""Confidence bounds on the mean of bounded values, by betting.

Both assume independent values of one distribution that lives in [floor, cap], and nothing else. Each is
one-sided and holds with probability at least `confidence` over the draw of the values, at every sample size.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_LARGEST_STAKE = 0.75
"""c of the betting bound: the largest share of the capital that one value can lose. Any c in [0, 1) is valid: a larger
one tightens the bound of nearly constant values, and loosens it where catastrophes are rare."""

_BISECTIONS = 60


def mean_lower_betting(
    values: npt.ArrayLike, *, floor: float, cap: float, confidence: float, anytime: bool = False
) -> float:
    """Return a lower bound on the mean of the distribution that the values `[n]` come from.

    With values scaled to [0, 1] and delta = 1 - confidence, a gambler who doubts the mean m starts with capital 1 and
    bets on each value that it lies above m:

        K_t(m) = prod over i <= t of (1 + lambda_i(m) (X_i - m)),
        lambda_i(m) = min(sqrt(2 log(1 / delta) / (n sigma_{i-1}^2)), c / m),

    where sigma_{i-1}^2 is the running variance of the values before the i-th; `anytime` puts i log(1 + i) in place of
    n, for values that are looked at while they come, until they say enough. At the true mean K_t is a nonnegative
    martingale, so its maximum over t reaches 1 / delta with probability at most delta (Ville). The bound is the
    smallest m at which it stays below. K_t falls as m grows; bisection returns the lower end of its last bracket.
    The bound depends on the order of the values, and is `floor` where they are too few to say more.

    Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", arXiv 2010.09686:
    the upward half of the hedged capital process of their Theorem 3, with the predictable plug-in bets for a fixed
    sample size, or for all of them. Being one-sided it needs no share of delta for the other half.

    Raises ValueError where there is no value, a value is outside [floor, cap] or not a number, the range is not finite
    or turned round, or the confidence is not inside (0, 1).
    """
    scaled, failure = _scaled(values, floor, cap, confidence), 1.0 - confidence
    if floor == cap:
        return floor
    bets = _predictable_bets(scaled, failure, anytime)
    rejected, kept = 0.0, 1.0
    for _ in range(_BISECTIONS):
        mean = 0.5 * (rejected + kept)
        log_capital = np.cumsum(np.log1p(np.minimum(bets, _LARGEST_STAKE / mean) * (scaled - mean)))
        if log_capital.max() >= math.log(1.0 / failure):
            rejected = mean
        else:
            kept = mean
    # Never outside the range, whatever rounding does.
    return min(max(floor + rejected * (cap - floor), floor), cap)


def mean_upper_betting(
    values: npt.ArrayLike, *, floor: float, cap: float, confidence: float, anytime: bool = False
) -> float:
    """Return an upper bound on the mean: `mean_lower_betting` of the values `[n]` reflected; errors as there."""
    reflected = -np.asarray(values, np.float64)
    return -mean_lower_betting(reflected, floor=-cap, cap=-floor, confidence=confidence, anytime=anytime)


def _predictable_bets(scaled: npt.NDArray[np.float64], failure: float, anytime: bool) -> npt.NDArray[np.float64]:
    """Return lambda `[n]` before truncation; each depends on earlier values only.

    Mean and variance start from one imagined value: mean 1/2, variance 1/4.
    """
    counts = np.arange(1, scaled.size + 1) + 1.0
    means = (0.5 + np.cumsum(scaled)) / counts
    variances = (0.25 + np.cumsum((scaled - means) ** 2)) / counts
    earlier = np.concatenate([[0.25], variances[:-1]])
    sizes = (counts - 1.0) * np.log(counts) if anytime else scaled.size
    return np.sqrt(2.0 * math.log(1.0 / failure) / (sizes * earlier))


def _scaled(values: npt.ArrayLike, floor: float, cap: float, confidence: float) -> npt.NDArray[np.float64]:
    """Return the values scaled to [0, 1]; zeros where floor and cap are one."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"a bound on the mean needs one value at least, in one axis; the shape is {array.shape}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie inside (0, 1), not {confidence}")
    if not (math.isfinite(cap - floor) and floor <= cap):
        raise ValueError(f"floor and cap must be finite, and the floor not above the cap: {floor}, {cap}")
    if not np.all((array >= floor) & (array <= cap)):
        raise ValueError(f"every value must lie in [{floor}, {cap}]; these reach from {array.min()} to {array.max()}")
    return (array - floor) / (cap - floor) if cap > floor else np.zeros_like(array)
