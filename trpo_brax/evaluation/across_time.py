"""How steadily a return grows: dispersion and risk across time (Chan et al. 2020, arXiv 1912.05663, section 4)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_WORST = 0.05


def detrended_spread(returns: npt.ArrayLike) -> float:
    """Return the interquartile range of the changes from one place of a curve to the next.

    Differences take the trend away: a curve that rises evenly has 0, however steep it is. It is of the whole curve,
    where the paper looks through a window.

    Args:
        returns: [T], T at least 2, of one seed, in time's order.
    """
    lower, upper = np.quantile(np.diff(np.asarray(returns, np.float64)), (0.25, 0.75))
    return float(upper - lower)


def worst_drawdowns(returns: npt.ArrayLike) -> float:
    """Return the mean of the worst 5% of drawdowns (rounded up to whole ones), as a positive loss of return.

    A drawdown is how far a curve lies below the highest that it has been: 0 for one that never falls.

    Args:
        returns: [T], T at least 1, of one seed, in time's order.
    """
    values = np.asarray(returns, np.float64)
    drawdowns = np.sort(np.maximum.accumulate(values) - values)[::-1]
    return float(drawdowns[: math.ceil(_WORST * len(drawdowns))].mean())
