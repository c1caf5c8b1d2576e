"""Dispersion and risk across time against arithmetic by hand and against what must not change them."""

from __future__ import annotations

import numpy as np
import pytest

from trpo_brax.evaluation.across_time import detrended_spread, worst_drawdowns


@pytest.mark.parametrize(
    "returns, spread, drawdown",
    [
        ([5.0, 7.0, 9.0, 11.0, 13.0], 0.0, 0.0),  # however steep, it rises evenly and never falls
        ([13.0, 11.0, 9.0, 7.0, 5.0], 0.0, 8.0),  # evenly too, and it ends 8 below its best
        ([0.0, 4.0, 3.0, 8.0, 8.0], 4.25 - -0.25, 1.0),  # changes 4, -1, 5, 0
        ([10.0, 0.0, 20.0, 13.0], 6.5 - -8.5, 10.0),  # changes -10, 20, -7; 7 below the best at the end
        ([0.0] * 38 + [-3.0, -9.0], 0.0, 6.0),  # of 40 places the worst two
    ],
)
def test_by_hand(returns: list[float], spread: float, drawdown: float) -> None:
    assert detrended_spread(returns) == pytest.approx(spread)
    assert worst_drawdowns(returns) == drawdown


def test_what_does_not_change_them() -> None:
    returns = np.random.default_rng(0).normal(size=200).cumsum()
    rising = 3.0 * np.arange(200)
    assert detrended_spread(returns + rising) == pytest.approx(detrended_spread(returns))
    assert worst_drawdowns(returns - 50.0) == pytest.approx(worst_drawdowns(returns))
    for measure in (detrended_spread, worst_drawdowns):
        assert measure(7.0 * returns) == pytest.approx(7.0 * measure(returns))
