"""The learning curve is a picture of the records, and the picture of groups one of their bands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from PIL import Image

from trpo_brax.errors import UserError
from trpo_brax.views.curves import Curve, CurveGroup, band
from trpo_brax.views.plots import COLOURS, groups_figure, learning_figure, save_figure

BLUE = (0x00, 0x72, 0xB2)


def records(returns: list[float | None]) -> list[dict[str, Any]]:
    """Return what the curve reads of metrics.jsonl."""
    return [
        {
            "iteration": i,
            "env_steps": 1000 * i,
            "episode_return_mean": value,
            "episode_return_std": None if value is None else 1.0,
        }
        for i, value in enumerate(returns, 1)
    ]


def drawn(file: Path) -> np.ndarray:
    """Return where the picture has the curve's colour: bool [height, width]."""
    with Image.open(file) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 300
    return np.abs(pixels - BLUE).max(axis=-1) < 12


def learning_curve(records: list[dict[str, Any]], file: Path, title: str) -> None:
    save_figure(learning_figure(records, title), file)


def test_a_rising_curve_rises(tmp_path: Path) -> None:
    learning_curve(records([float(i) for i in range(100)]), tmp_path / "curve.png", "hopper, seed 0")
    rows, columns = np.nonzero(drawn(tmp_path / "curve.png"))
    middle = len(columns) // 2
    order = np.argsort(columns)
    assert columns.max() - columns.min() > 250
    assert rows[order[: middle // 4]].mean() > rows[order[-middle // 4 :]].mean() + 50  # row 0 is the top
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png"}


def test_iterations_in_which_no_episode_ended_are_left_out(tmp_path: Path) -> None:
    """A null is neither 0 nor a gap's end: with the rest at 1000, nothing may be drawn far below."""
    learning_curve(records([None, 1000.0, None, 1000.0, None, 1000.0]), tmp_path / "with.png", "t")
    some = drawn(tmp_path / "with.png")
    only = [row for row in records([0, 1000.0, 0, 1000.0, 0, 1000.0]) if row["episode_return_mean"]]
    learning_curve(only, tmp_path / "only.png", "t")
    np.testing.assert_array_equal(some, drawn(tmp_path / "only.png"))
    assert some.any()


@pytest.mark.parametrize("returns", [[], [None, None], [5.0]], ids=["no records", "no episode", "one iteration"])
def test_little_or_nothing_to_draw_is_no_error(returns: list[float | None], tmp_path: Path) -> None:
    learning_curve(records(returns), tmp_path / "curve.png", "t")
    drawn(tmp_path / "curve.png")


def test_a_seed_has_the_spread_of_its_episodes() -> None:
    (panel,) = learning_figure(records([10.0, None, 20.0]), "hopper, seed 0").axes
    (spread,) = (one for one in panel.collections if isinstance(one, PolyCollection))
    corners = {tuple(corner) for path in spread.get_paths() for corner in path.vertices.tolist()}
    assert corners == {(1000, 9), (1000, 11), (3000, 19), (3000, 21)}


def test_seeds_of_a_run_have_their_interval() -> None:
    rows = [
        {**row, "seed": seed, "wall_time_s": 4.0 * row["iteration"], "episodes": 9}
        for seed, returns in ((0, [10.0, 20.0]), (1, [14.0, 28.0]))
        for row in records(returns)
    ]
    (panel,) = learning_figure(rows, "hopper, seeds 0 to 1").axes
    (interval,) = (one for one in panel.collections if isinstance(one, PolyCollection))
    corners = {tuple(corner) for path in interval.get_paths() for corner in path.vertices.tolist()}
    assert corners == {(1000, 10), (1000, 14), (2000, 20), (2000, 28)}
    (curve,) = (line for line in panel.lines if line.get_xydata().size)
    assert np.array(curve.get_xydata()).tolist() == [[1000, 12], [2000, 24]]
    assert "2 seeds" in panel.get_legend().get_texts()[0].get_text()


def group(task: str, label: str, *returns: list[float | None]) -> CurveGroup:
    """Return a group of seeds with a return every 1000 steps and 4 seconds."""
    curves = [[{**row, "wall_time_s": 4.0 * row["iteration"], "episodes": 1} for row in records(r)] for r in returns]
    return CurveGroup(task, label, tuple(Curve.of(rows) for rows in curves))


GROUPS = [
    group("hopper", "max_kl 0.01", [1.0, 2.0, 3.0, 4.0], [3.0, 4.0], [5.0, 9.0]),
    group("hopper", "max_kl 0.02", [7.0, 8.0, 9.0]),
    group("reacher", "", [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0]),
]


def plot_groups(groups: list[CurveGroup], file: Path) -> None:
    save_figure(groups_figure([band(one) for one in groups], "env_steps", 1), file)


def test_groups_have_a_panel_a_task_and_a_colour_a_configuration() -> None:
    figure = groups_figure([band(one) for one in GROUPS], "env_steps", 1)
    hopper, reacher = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["hopper", "reacher"]
    assert hopper.get_xlabel() == "control steps" and hopper.get_ylabel() == "return (sampled actions)"
    legends = [[text.get_text().replace("\n", " ") for text in panel.get_legend().get_texts()] for panel in figure.axes]
    steadily = "; across time: spread 0, worst drawdowns 0"
    assert legends[0] == [
        f"max_kl 0.01: interquartile mean of 3 seeds, 95% bootstrap interval{steadily}",
        f"max_kl 0.02: 1 seed, no interval{steadily}",
    ]
    assert legends[1] == [f"interquartile mean of 4 seeds, 95% bootstrap interval{steadily}"]
    drawn_lines = [
        (to_hex(str(line.get_color())).upper(), line.get_linestyle(), np.array(line.get_xydata()).tolist())
        for line in hopper.lines
        if line.get_xydata().size
    ]
    assert drawn_lines == [
        (COLOURS[0], "-", [[1000, 3], [2000, 5]]),
        (COLOURS[0], "--", [[3000, 3], [4000, 4]]),
        (COLOURS[1], "-", [[1000, 7], [2000, 8], [3000, 9]]),
    ]
    (area,) = (one for one in hopper.collections if isinstance(one, PolyCollection))
    corners = {tuple(corner) for path in area.get_paths() for corner in path.vertices.tolist()}
    assert corners == {(1000, 1), (1000, 5), (2000, 2), (2000, 9)}  # complete places alone
    assert len(reacher.collections) == 1


def test_notes_say_what_is_unusual_and_only_that() -> None:
    def notes(*groups: CurveGroup) -> str:
        return groups_figure([band(one) for one in groups], "env_steps", 1).get_supxlabel()

    assert "Dashed" in notes(GROUPS[0]) and "fewer than four seeds" in notes(GROUPS[0])
    assert notes(GROUPS[1]) == notes(GROUPS[2]) == ""


def test_axis_and_window_are_told() -> None:
    (panel,) = groups_figure([band(GROUPS[2], "wall_time", 5)], "wall_time", 5).axes
    assert panel.get_xlabel() == "wall-clock seconds"
    assert panel.get_ylabel() == "return (sampled actions, mean of 5 iterations)"
    assert panel.get_xlim()[0] == 0.0
    (nothing,) = groups_figure([band(group("hopper", ""))], "env_steps", 1).axes
    assert [text.get_text() for text in nothing.get_legend().get_texts()] == ["no iterations"]


def test_a_picture_is_written_and_nothing_else(tmp_path: Path) -> None:
    plot_groups(GROUPS, tmp_path / "groups.png")
    assert drawn(tmp_path / "groups.png").any()
    plot_groups(GROUPS, tmp_path / "groups.svg")
    assert {path.name for path in tmp_path.iterdir()} == {"groups.png", "groups.svg"}


def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"groups\.txt"):
        plot_groups(GROUPS, tmp_path / "groups.txt")
    many = [group("hopper", f"damping {i}", [1.0]) for i in range(9)]
    plot_groups(many[:8], tmp_path / "eight.png")
    with pytest.raises(UserError, match=r"9 configurations"):
        plot_groups(many, tmp_path / "nine.png")
    assert {path.name for path in tmp_path.iterdir()} == {"eight.png"}


@pytest.mark.parametrize("returns", [(), ([],), ([None],), ([5.0],)], ids=["no seed", "no record", "null", "one"])
def test_a_group_with_little_to_draw_is_no_error(returns: tuple[list[float | None], ...], tmp_path: Path) -> None:
    plot_groups([group("hopper", "", *returns)], tmp_path / "groups.png")
    assert (tmp_path / "groups.png").is_file()
