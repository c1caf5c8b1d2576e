"""What the README promises of whole runs on Brax; minutes each."""

from __future__ import annotations

from pathlib import Path

import pytest

import trpo_brax as tb


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "least", "most_failures"),
    [
        ("inverted_pendulum", 999.0, 0.01),
        ("inverted_double_pendulum", 9250.0, 0.02),
        ("reacher", -40.0, 0.0),
        ("hopper", 2000.0, 0.1),
        ("walker2d", 2000.0, 0.2),
    ],
)
def test_a_preset_reaches_its_return_on_two_seeds(
    task: str, least: float, most_failures: float, tmp_path: Path
) -> None:
    """Of 128 episodes by the mean action; an untrained reacher gets about -540, a double pendulum 250, a hopper 50."""
    run = tb.train(tb.override(tb.preset(task), num_seeds=2), run_dir=tmp_path / "run")
    for seed in run.summary["seeds"]:
        assert seed["evaluation"]["return_mean"] >= least
        assert seed["evaluation"]["failure_rate"] <= most_failures
