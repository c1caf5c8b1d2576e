"""The whole benchmark on a tiny task."""

from __future__ import annotations

import io
import json

import jax

from tests.contract import BENCH_KEYS
from tests.tiny_programs import tiny_config
from trpo_brax.benchmark.measure import bench
from trpo_brax.benchmark.parts import PARTS
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.config import Config
from trpo_brax.environments.making import make_task
from trpo_brax.host.console import Console


def config(**values: int) -> Config:
    return tiny_config(environment="tests.tiny_environments:PointMass", **values)


def test_a_report_has_everything_in_it_and_tells_it_in_columns() -> None:
    progress = io.StringIO()
    report = bench(config(), repeats=1, skip_start=True, console=Console(progress))
    result = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert result.keys() >= BENCH_KEYS
    assert result["num_envs"] == 8
    assert tuple(result["parts_ms"]) == PARTS
    assert result["first_iteration_seconds"] is None
    assert "Measuring physics" in progress.getvalue()
    table = report.table()
    for name in PARTS:
        assert f"\n{name.replace('_', ' ')} " in table
    columns, _, rest = table.split("\n\n")
    # Numbers stand under each other: every line of a table ends in the same column.
    assert len({len(line) for line in columns.splitlines()[1:]}) == 1
    assert len({len(line) for line in rest.splitlines()}) == 1


def test_several_seeds_are_measured_as_one() -> None:
    several = config(num_seeds=3)
    workbench = Workbench.build(several, make_task(several), jax.devices()[:2])
    assert workbench.state.environments.observation.shape == (8, 2)


def test_the_plan_holds_the_state_and_the_trajectory_of_all_devices(workbench: Workbench) -> None:
    """At least every array that an iteration begins with and records, by their shapes."""
    trajectory = jax.eval_shape(workbench.gather, workbench.state)[1]
    least = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((workbench.state, trajectory)))
    assert least < workbench.planned_bytes() < 100 * least
