"""What a comparison with peers is reduced to, by hand."""

import numpy as np
import pytest

from experiments.peers.compare import at, probability_of_improvement
from experiments.peers.train import Unit, clock, spread
from trpo_brax.views.curves import Curve


@pytest.mark.parametrize(
    ("ours", "theirs", "probability"),
    [([1, 2], [0, 1], 0.875), ([2, 3], [0, 1], 1.0), ([0.0], [1, 2, 3], 0.0), ([5, 5], [5, 5, 5], 0.5)],
)
def test_a_pair_of_runs_counts_as_one_and_a_tie_as_a_half(
    ours: list[float], theirs: list[float], probability: float
) -> None:
    assert probability_of_improvement(ours, theirs) == probability


def test_a_curve_is_read_between_its_policies_and_beyond_its_ends_as_they_are() -> None:
    seconds = np.array([10.0, 20.0])
    curve = Curve(100 * seconds, seconds, np.array([1.0, 3.0]), np.ones(2))
    assert [at(curve, curve.wall_time, place) for place in (5, 10, 15, 20, 90)] == [1, 1, 2, 3, 3]
    assert at(curve, curve.env_steps, 1750) == 2.5


def test_the_unit_that_compiles_lasts_as_long_as_the_others_and_points_are_evenly_spread() -> None:
    seconds = clock([Unit(index, lasted, None) for index, lasted in enumerate((60.0, 2.0, 3.0, 2.5))])
    assert seconds == [2.5, 4.5, 7.5, 10.0]
    assert spread(seconds, 2) == [1, 3] and spread(seconds, 20) == [0, 1, 2, 3] and spread([4.0], 5) == [0]
