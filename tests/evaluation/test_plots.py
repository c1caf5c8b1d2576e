"""The learning curve is a picture of the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trpo_brax.evaluation import learning_curve

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
