"""What the README promises of whole runs on Brax; minutes each."""

from __future__ import annotations

from pathlib import Path

import pytest

import trpo_brax as tb


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "least"),
    [("inverted_pendulum", 900.0), ("hopper", 1000.0), ("inverted_double_pendulum", 8000.0), ("reacher", -80.0)],
)
def test_a_preset_reaches_its_return_on_two_seeds(task: str, least: float, tmp_path: Path) -> None:
    """Of 128 episodes by the mode; an untrained reacher gets about -540, a double pendulum 250, a hopper 50."""
    run = tb.train(tb.override(tb.preset(task), num_seeds=2), run_dir=tmp_path / "run")
    for seed in run.summary["seeds"]:
        assert seed["evaluation"]["return_mean"] >= least
