"""Curves of several seeds on a common grid, by hand; and which runs are seeds of one group."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trpo_brax.config import Config, override
from trpo_brax.errors import UserError
from trpo_brax.evaluation.interquartile import bootstrap_interval, interquartile_mean
from trpo_brax.views.curves import Axis, Curve, CurveGroup, RecordedRun, band, group_runs, write_bands

NAN = float("nan")


def records(returns: list[float | None], steps: int = 10, **more: Any) -> list[dict[str, Any]]:
    """Return what a curve reads of metrics.jsonl; an iteration takes `steps` steps and two seconds."""
    return [
        {
            "iteration": i,
            "env_steps": steps * i,
            "wall_time_s": 2.0 * i,
            "episodes": 0 if value is None else 4,
            "episode_return_mean": value,
            **more,
        }
        for i, value in enumerate(returns, 1)
    ]


def group(*curves: list[dict[str, Any]]) -> CurveGroup:
    return CurveGroup("hopper", "", tuple(Curve.of(rows) for rows in curves))


def run(name: str, returns: list[float | None], config: Config | None = None, **values: Any) -> RecordedRun:
    return RecordedRun(name, override(config or Config(), **values), records(returns))


def test_seeds_of_different_iterations_meet_by_linear_interpolation() -> None:
    """One seed tells at 10, 20, 30, 40, the other at 15 and 30."""
    one = band(group(records([0.0, 10.0, 20.0, 30.0]), records([100.0, 400.0], steps=15)))
    np.testing.assert_array_equal(one.x, [10, 15, 20, 30, 40])
    np.testing.assert_array_equal(one.present, [1, 2, 2, 2, 1])
    np.testing.assert_allclose(one.iqm, [0.0, (5 + 100) / 2, (10 + 200) / 2, (20 + 400) / 2, 30.0])
    np.testing.assert_allclose(one.low, [NAN, 5, 10, 20, NAN])  # of two, the interval is their range
    np.testing.assert_allclose(one.high, [NAN, 100, 200, 400, NAN])


def test_iterations_without_an_episode_are_bridged_inside_and_absent_outside() -> None:
    """At the start and the end nothing is made up, in the middle the neighbours speak."""
    one = band(group(records([None, 1.0, None, None, 4.0, None]), records([7.0] * 6)))
    np.testing.assert_array_equal(one.present, [1, 2, 2, 2, 2, 1])
    np.testing.assert_allclose(one.iqm, [7.0, 4.0, 4.5, 5.0, 5.5, 7.0])
    np.testing.assert_allclose(one.low, [NAN, 1.0, 2.0, 3.0, 4.0, NAN])
    np.testing.assert_array_equal(band(group(records([None, 1.0, None, None, 4.0, None]))).x, [20, 50])


def test_across_time_is_of_each_seed_by_itself() -> None:
    """Changes 4, -1, 5, 0 and -10, 20, -7 by hand, 1 and 10 below the best; a seed of one return says nothing."""
    seeds = records([0.0, 4.0, 3.0, 8.0, 8.0]), records([None, 10.0, 0.0, 20.0, 13.0]), records([None, 5.0])
    assert group(*seeds).across_time() == pytest.approx(((4.5 + 15.0) / 2, (1.0 + 10.0) / 2))
    assert group(records([7.0, None])).across_time() is None


def test_interquartile_mean_and_interval_at_every_place() -> None:
    returns = np.random.default_rng(0).normal(size=(9, 20))
    one = band(group(*(records(list(row)) for row in returns)))
    np.testing.assert_allclose(one.iqm, interquartile_mean(returns), rtol=1e-12)
    np.testing.assert_array_equal((one.low, one.high), bootstrap_interval(returns))


def test_the_order_of_seeds_and_of_records_does_not_matter() -> None:
    generator = np.random.default_rng(0)
    curves = [records(list(generator.normal(size=generator.integers(5, 30))), steps=i + 3) for i in range(6)]
    first = band(group(*curves), window=3)
    shuffled = [list(generator.permutation(np.array(rows, object))) for rows in curves]
    second = band(group(*(shuffled[i] for i in generator.permutation(6))), window=3)
    for name in ("x", "iqm", "low", "high", "present"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_identical_seeds_have_a_band_of_no_width() -> None:
    one = band(group(*[records([0.1, 0.7, 1.0 / 3.0])] * 5))
    np.testing.assert_array_equal(one.low, one.high)
    np.testing.assert_allclose(one.iqm, one.low, rtol=1e-15)


def test_one_seed_is_itself_and_has_no_band() -> None:
    one = band(group(records([1.0, 5.0])))
    np.testing.assert_array_equal(one.iqm, [1.0, 5.0])
    assert np.isnan(one.low).all() and np.isnan(one.high).all()


@pytest.mark.parametrize("axis, places", [("env_steps", [10, 20, 30]), ("wall_time", [2, 4, 6])])
def test_axes(axis: Axis, places: list[float]) -> None:
    np.testing.assert_array_equal(band(group(records([1.0, 2.0, 3.0])), axis).x, places)


def test_a_window_counts_episodes() -> None:
    """Three iterations of 4, no and 1 episodes, then 5: every episode weighs the same, the first windows are short."""
    rows = records([10.0, None, 20.0, 50.0])
    for row, episodes in zip(rows, (4, 0, 1, 5), strict=True):
        row["episodes"] = episodes
    np.testing.assert_allclose(Curve.of(rows).smoothed(2).returns, [10.0, 10.0, 20.0, 45.0])
    np.testing.assert_allclose(Curve.of(rows).smoothed(3).returns, [10.0, 10.0, 12.0, 45.0])
    np.testing.assert_array_equal(Curve.of(rows).smoothed(1).returns, [10.0, NAN, 20.0, 50.0])
    assert np.isnan(Curve.of(records([None, None, 1.0])).smoothed(2).returns).tolist() == [True, True, False]
    assert Curve.of(records([1.0, 2.0])).smoothed(9).returns.tolist() == [1.0, 1.5]


def test_thousands_of_places_become_even_ones_over_the_same_range() -> None:
    one = band(group(records(list(np.linspace(0.0, 1.0, 7001))), records(list(np.linspace(0.0, 1.0, 7001)))))
    assert one.x.size == 2000 and (one.x[0], one.x[-1]) == (10.0, 70010.0)
    np.testing.assert_allclose(one.iqm, np.linspace(0.0, 1.0, 2000), atol=1e-12)


@pytest.mark.parametrize("curves", [(), ([],), ([None, None],), ([None], [1.0])], ids=["none", "empty", "null", "one"])
def test_little_or_nothing_known_is_no_error(curves: tuple[list[float | None], ...]) -> None:
    for window in (1, 3):
        one = band(group(*(records(returns) for returns in curves)), window=window)
        assert one.x.size == (1 if len(curves) == 2 else 0)
        assert np.isnan(one.low).all()


def test_runs_that_differ_in_seed_or_in_what_shapes_nothing_are_one_group() -> None:
    runs = [run("a", [1.0], seed=4), run("b", [2.0], seed=2, total_steps=77, checkpoint_every=3)]
    (one,) = group_runs(runs)
    assert (one.task, one.label) == ("inverted_pendulum", "")
    assert [curve.returns.tolist() for curve in one.curves] == [[2.0], [1.0]]  # by seed


def test_labels_tell_configurations_of_a_task_apart() -> None:
    runs = [
        run("a", [1.0]),
        run("b", [1.0], max_kl=0.02, seed=1),
        run("c", [1.0], task="hopper", discount=0.9),
        run("d", [1.0], policy_hidden_sizes=(8,)),
        run("e", [1.0], seed=3),
    ]
    told = [(one.task, one.label, len(one.curves)) for one in group_runs(runs)]
    assert told == [
        ("inverted_pendulum", "policy_hidden_sizes (64, 64), max_kl 0.01", 2),
        ("inverted_pendulum", "policy_hidden_sizes (64, 64), max_kl 0.02", 1),
        ("hopper", "", 1),
        ("inverted_pendulum", "policy_hidden_sizes (8,), max_kl 0.01", 1),
    ]


def test_an_environment_of_the_users_own_is_its_own_task() -> None:
    assert [one.task for one in group_runs([run("a", []), run("b", [], environment="mine:World")])] == [
        "inverted_pendulum",
        "mine:World",
    ]


def test_several_seeds_of_one_run_are_several_curves() -> None:
    rows = [row for pair in zip(records([1.0, 2.0], seed=5), records([3.0, 4.0], seed=6), strict=True) for row in pair]
    (one,) = group_runs([RecordedRun("many", override(Config(), seed=5), rows), run("single", [9.0], seed=7)])
    assert [curve.returns.tolist() for curve in one.curves] == [[1.0, 2.0], [3.0, 4.0], [9.0]]


def test_a_seed_counts_once() -> None:
    with pytest.raises(UserError, match=r"^a and b both hold seed 0 of one configuration"):
        group_runs([run("a", [1.0]), run("b", [1.0])])
    assert len(group_runs([run("a", [1.0]), run("b", [1.0], max_kl=0.02)])) == 2


def test_the_table_holds_what_is_drawn(tmp_path: Path) -> None:
    one = band(group(records([1.0, 2.0, 3.0]), records([3.0, 5.0])))
    write_bands([one], tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["task", "group", "env_steps", "iqm", "low", "high", "seeds"],
        ["hopper", "", "10", "2", "1", "3", "2"],
        ["hopper", "", "20", "3.5", "2", "5", "2"],
        ["hopper", "", "30", "3", "", "", "1"],
    ]
    write_bands([one], tmp_path / "seconds.csv", "wall_time")
    assert (tmp_path / "seconds.csv").read_text().splitlines()[0].split(",")[2] == "wall_time_s"
