"""The interquartile mean and its bootstrap interval (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_TRIMMED = 0.25
_RESAMPLES, _AT_ONCE = 2000, 100
_SEED = 0


def interquartile_mean(values: npt.ArrayLike) -> Floats:
    """Return the mean of the middle half along the first axis.

    The lowest int(n / 4) and the highest int(n / 4) of n values are left out, so of one to three values none is: there
    the interquartile mean is the mean.

    Args:
        values: [n, ...], n at least 1.
    """
    from scipy import stats  # a second to import, which training should not pay

    mean: Floats = stats.trim_mean(np.asarray(values, np.float64), _TRIMMED, axis=0)
    return mean


def bootstrap_interval(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """Return the percentile bootstrap interval of the interquartile mean over the first axis.

    The same values give the same interval, in whatever order they come. With two to four values a 95% interval is
    their range, and with ten from a normal distribution it covers in about nine cases of ten: few seeds say little.

    Args:
        values: [n, X], n at least 2, resampled along n in the same way at every X.
        confidence: of the interval, between 0 and 1.

    Returns:
        Its lower and upper end, [X] each.
    """
    from scipy import stats

    ordered = np.sort(np.asarray(values, np.float64), axis=0)
    # Distances from the lowest value: where all values are equal they are exactly 0, and so is the interval's width.
    found = stats.bootstrap(
        (ordered - ordered[0],),
        lambda sample, axis: stats.trim_mean(sample, _TRIMMED, axis=axis),
        n_resamples=_RESAMPLES,
        batch=_AT_ONCE,
        axis=0,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return ordered[0] + found.low, ordered[0] + found.high
