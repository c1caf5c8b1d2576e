"""Distribution-free bounds on what a policy does: how often it fails, and how low its returns reach.

All of them assume that the episodes are independent draws of one distribution (fresh keys, one policy, one
environment), and no shape of it: ties, atoms and heavy tails are allowed. Each is one-sided and holds with probability
at least `confidence` over the draw of the episodes. Several hold jointly at 1 - (the sum of their 1 - confidence).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from trpo_brax.certification.betting import mean_upper_betting


def failure_probability_upper(failures: int, episodes: int, confidence: float) -> float:
    """Return the largest failure probability p with P(Binomial(episodes, p) <= failures) >= 1 - confidence.

    The one-sided bound of Clopper and Pearson 1934: at no failure it is 1 - (1 - confidence)^(1 / episodes), and 1
    where all episodes failed. Raises ValueError where failures is outside [0, episodes] or there is no episode.
    """
    from scipy.stats import binomtest

    _check_inside_unit_interval("confidence", confidence)
    if not 0 <= failures <= episodes or episodes < 1:
        raise ValueError(f"failures must lie in [0, episodes] and episodes be positive: {failures} of {episodes}")
    interval = binomtest(int(failures), int(episodes), alternative="less").proportion_ci(confidence, method="exact")
    return float(interval.high)


def quantile_lower(values: npt.ArrayLike, probability: float, confidence: float) -> float | None:
    """Return a lower bound on the quantile q of the distribution that the values `[n]` come from.

    q = inf {x: P(X <= x) >= probability}. The bound is the k-th smallest value, k the largest with
    P(Binomial(n, probability) >= k) >= confidence: the k-th smallest is above q only where fewer than k values fall at
    or below q. It is exact up to the step from k to k + 1, ties included. None where (1 - probability)^n is above
    1 - confidence: so few values bound nothing. Values may be -inf, and so may the bound. Raises ValueError for a value
    that is not a number.

    Source: David and Nagaraja 2003, "Order Statistics", section 7.1.
    """
    from scipy.stats import binom

    _check_inside_unit_interval("probability", probability)
    _check_inside_unit_interval("confidence", confidence)
    array = np.sort(np.asarray(values, np.float64).reshape(-1))
    if np.isnan(array).any():
        raise ValueError("a quantile needs values that are numbers; one of them is not")
    below = binom.cdf(np.arange(array.size), array.size, probability)
    rank = int(np.count_nonzero(below <= 1.0 - confidence))
    return float(array[rank - 1]) if rank else None


def cvar_lower(
    values: npt.ArrayLike, alpha: float, *, floor: float, confidence: float, choosing_share: float = 0.2
) -> float:
    """Return a lower bound on CVaR_alpha, the mean of the worst share alpha of the distribution of the values `[n]`.

        CVaR_alpha = max over nu of nu - E[(nu - X)+] / alpha

    (Rockafellar and Uryasev 2000, Theorem 1, for gains in place of losses), so every nu gives a lower bound. The first
    `choosing_share` of the values chooses nu, their alpha quantile, where the maximum is. The others, independent of
    nu, bound E[(nu - X)+] from above by betting (`mean_upper_betting`): (nu - X)+ lies in [0, nu - floor]. No cap on
    the values is needed. The floor must hold for the distribution; the bound is never below it, and is the floor for
    one value alone.

    Raises ValueError where there is no value, one is below the floor or not finite, or alpha, confidence or
    choosing_share is not inside (0, 1).
    """
    for name, number in (("alpha", alpha), ("confidence", confidence), ("choosing_share", choosing_share)):
        _check_inside_unit_interval(name, number)
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"CVaR needs one value at least, in one axis; the shape is {array.shape}")
    if not (np.isfinite(array).all() and math.isfinite(floor) and array.min() >= floor):
        raise ValueError(f"every value must be finite and not below the floor {floor}; the lowest is {array.min()}")
    chosen = max(1, round(choosing_share * array.size))
    choosing, betting = array[:chosen], array[chosen:]
    if betting.size == 0:
        return float(floor)
    threshold = float(np.quantile(choosing, alpha, method="inverted_cdf"))
    largest = threshold - floor
    shortfalls = np.clip(threshold - betting, 0.0, largest)
    shortfall = mean_upper_betting(shortfalls, floor=0.0, cap=largest, confidence=confidence)
    return max(float(floor), threshold - shortfall / alpha)


def _check_inside_unit_interval(name: str, number: float) -> None:
    if not 0.0 < number < 1.0:
        raise ValueError(f"{name} must lie inside (0, 1), not {number}")
