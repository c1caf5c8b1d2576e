"""The parts of an iteration."""

from __future__ import annotations

from trpo_brax.benchmark.parts import PARTS, measure_parts
from trpo_brax.benchmark.workbench import Workbench


def test_every_part_is_timed_on_what_an_iteration_does(workbench: Workbench) -> None:
    parts = measure_parts(workbench, 2)
    assert tuple(parts.times) == PARTS
    assert {len(samples.seconds) for samples in parts.times.values()} == {2}
    # The program's own account of the same iteration.
    _, metrics = workbench.program.run(workbench.program.copy(workbench.state), 1)
    assert parts.cg_iterations == int(metrics["cg_iterations"][0])
    assert parts.line_search_trials == int(metrics["line_search_trials"][0])
    # One of ten time steps of eight environments.
    assert parts.fisher_samples == 8
