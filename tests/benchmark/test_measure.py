"""The whole benchmark on a tiny task."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.contract import BENCH_KEYS
from tests.tiny_environments import PointMass
from tests.tiny_programs import tiny_config
from trpo_brax.benchmark import BenchmarkReport, BenchOptions, bench, run_bench
from trpo_brax.benchmark.parts import PARTS
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.config import Config
from trpo_brax.environments.making import make_task
from trpo_brax.environments.quiet import quiet
from trpo_brax.errors import ConfigError
from trpo_brax.host.console import Console

with quiet():
    from brax.envs import State


class Talkative(PointMass):
    """Says something whenever it is traced."""

    def step(self, state: State, action: jax.Array) -> State:
        print("stepping")
        return super().step(state, action)


def config(**values: Any) -> Config:
    return tiny_config(environment="tests.benchmark.test_measure:Talkative", **values)


def test_json_is_one_object_with_everything_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, progress = tmp_path / "sweep.png", io.StringIO()
    options = BenchOptions(repeats=1, sweep_envs="12,8", picture=str(picture), skip_start=True, json=True)
    report = run_bench(config(), options, Console(progress))
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= BENCH_KEYS
    assert result["num_envs"] == 8
    assert tuple(result["parts_ms"]) == PARTS
    assert result["first_iteration_seconds"] is None
    assert isinstance(result["peak_memory_bytes"], int)
    assert [row["num_envs"] for row in result["sweep"]] == [12, 8]
    assert [row["devices"] for row in result["sweep"]] == [4, 4]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Measuring 12 environments" in progress.getvalue()
    assert_table_tells(report)


def assert_table_tells(report: BenchmarkReport) -> None:
    table = report.table()
    for name in PARTS:
        assert f"\n{name.replace('_', ' ')} " in table
    columns, *others = table.split("\n\n")
    assert len(others) == 4
    # Numbers stand under each other: every line of a table ends in the same column.
    assert len({len(line) for line in columns.splitlines()[1:]}) == 1
    assert len({len(line) for line in others[-1].splitlines()}) == 1


def test_several_seeds_are_measured_as_one() -> None:
    several = config(num_seeds=3)
    workbench = Workbench.build(several, make_task(several), jax.devices()[:2])
    assert workbench.state.environments.observation.shape == (8, 2)


def test_a_sweep_that_the_devices_cannot_share_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match=r"cpu_devices.*4 does not divide 6"):
        bench(config(cpu_devices=4), BenchOptions(sweep_envs="8,6"), Console(io.StringIO()))


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    options = BenchOptions(sweep_envs="8", picture=str(tmp_path / "nowhere" / "sweep.png"))
    with pytest.raises(ConfigError, match="picture"):
        bench(config(), options, Console(io.StringIO()))
