"""Whether something lasts, and whether a noisy sequence has risen: what findings are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SHORTEST_WINDOW = 5
"""Iterations: fewer say nothing of what is usual."""
_LONGEST_WINDOW = 50
"""Iterations: what went on for so long is told, however long the run."""
_NOISES = 4.0
"""A rise of less than so many standard errors may be chance; of twenty comparisons one in a thousand goes beyond."""
_TREND = 3.0
"""A rank correlation of less than so many standard errors may be chance; beyond is one in 700."""


@dataclass(frozen=True)
class Lasting:
    """A segment of the iterations in which something was usual."""

    first: int
    """Index of the first row where it was so."""
    last: int
    """Index of the last one."""
    share: float
    """Of the rows from first to last, those where it was so."""
    current: bool
    """It still was when the records end."""


def window(rows: int) -> int:
    """Return over how many iterations something must be usual: a tenth of the run, at least 5 and at most 50."""
    return min(max(rows // 10, _SHORTEST_WINDOW), _LONGEST_WINDOW)


def lasting(so: np.ndarray, known: np.ndarray, share: float) -> Lasting | None:
    """Return the last segment in which something was so in at least `share` of every window; None if there is none.

    Args:
        so: bool [rows].
        known: bool [rows]: where it can be told; other rows count as if they were not there.
        share: in (0, 1].
    """
    places = np.flatnonzero(known)
    size = window(places.size)
    if places.size < size:
        return None
    there = so[places]
    usual = np.flatnonzero(np.convolve(there, np.ones(size), "valid") >= share * size - 1e-9)
    if not usual.size:
        return None
    # Windows that touch are one segment.
    breaks = np.flatnonzero(np.diff(usual) > size)
    start, end = usual[breaks[-1] + 1 if breaks.size else 0], usual[-1] + size
    rows = start + np.flatnonzero(there[start:end])
    return Lasting(
        first=int(places[rows[0]]),
        last=int(places[rows[-1]]),
        share=float(there[rows[0] : rows[-1] + 1].mean()),
        current=bool(end == places.size or rows[-1] >= places.size - size // 2),
    )


def noise(values: Floats) -> float:
    """Return a sequence's standard deviation from one value to the next, robust against a trend and against outliers.

    1.4826 times the median absolute successive difference is the standard deviation of differences of normal noise,
    which is sqrt(2) times the noise's own (Hampel 1974; von Neumann 1941).
    """
    return float(1.4826 / np.sqrt(2.0) * np.median(np.abs(np.diff(values)))) if values.size > 1 else 0.0


def has_risen(values: Floats) -> bool | None:
    """Return whether a sequence has risen by more than its noise explains, for a while or slowly all along.

    For a while: a later block of a window's length lies above the first one. Blocks are compared by their medians,
    whose standard error is 1.2533 noise / sqrt(length) for normal noise. All along: values rank with time (Spearman's
    rho, whose standard error without a trend is 1 / sqrt(rows - 1)). None: there are fewer than two blocks, which say
    nothing.
    """
    size = window(values.size)
    later = values.size // size - 1
    if later < 1:
        return None
    medians = np.median(values[values.size - later * size :].reshape(later, size), axis=1)
    error = 1.2533 * noise(values) * np.sqrt(2.0 / size)
    for_a_while = medians.max() - np.median(values[:size]) > _NOISES * error
    if for_a_while or np.ptp(values) == 0:
        return bool(for_a_while)
    from scipy import stats  # a second to import, which training should not pay before its end

    rank_correlation = stats.spearmanr(np.arange(values.size), values).statistic
    return bool(rank_correlation * np.sqrt(values.size - 1) > _TREND)
