"""trpo-brax replay: from a run with --check-finite to the line of code that made the number."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from brax.envs import State

import trpo_brax as tb
from tests.tiny_environments import ZERO, TinyEnvironment
from tests.tiny_programs import tiny_config
from trpo_brax.cli import main
from trpo_brax.host.console import Console

NAME = "tests.cli.test_replay:Leaking"


class Leaking(TinyEnvironment):
    """A level that sinks by 1 a step from 3.5, and pays its logarithm: from the fourth step on there is none."""

    def reset(self, rng: object) -> State:
        level = jnp.full(1, 3.5)
        return State(level, level, ZERO, ZERO, {}, {})

    def step(self, state: State, action: object) -> State:
        level = state.pipeline_state - 1.0
        reward = jnp.log(level[0])
        return state.replace(pipeline_state=level, obs=level, reward=reward)


LINE = inspect.getsourcelines(Leaking.step)[1] + 2


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaking") / "run"
    config = tiny_config(total_steps=80, episode_length=100, check_finite=True, environment=NAME)
    told = io.StringIO()
    tb.train(config, run_dir=folder, console=Console(told))
    (path,) = (folder / "dumps").iterdir()
    assert f"trpo-brax replay {path} --environment {NAME}\n" in told.getvalue()
    return path


def test_the_operation_and_its_line_are_named(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All environments fault in their fourth step; the first is environment 0."""
    assert main(["replay", str(dump), "--environment", NAME]) == 0
    told = capsys.readouterr()
    assert "Iteration 1 of seed 0" in told.err
    lines = told.out.splitlines()
    assert re.match(r"rollout\s+not finite", lines[0])
    assert lines[1] == "In environment 0 at time step 3."
    assert lines[2].startswith("In the control step, log gave nan, at ")
    assert f"test_replay.py:{LINE} (step)." in lines[2]


def test_what_is_no_dump_or_lacks_its_environment_is_refused(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The environment is never imported from what the dump says."""
    assert main(["replay", str(dump)]) == 2
    assert NAME in capsys.readouterr().err
    assert main(["replay", str(dump.parent)]) == 2
    assert "is not a dump" in capsys.readouterr().err
    assert main(["replay"]) == 2
