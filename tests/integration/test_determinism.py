"""Determinism by level, as far as a CPU can tell: D0 to D2 to the last bit, D3 to rounding.

D0: one executable, run twice; from the beginning in tests/learner/test_program.py, from under way here.
D1: a new process, which compiles or loads the executable for itself.
D2: resuming is never having stopped; in one process in tests/training/test_loop.py, over new processes here.
D3: another number of devices; whole states after six iterations in tests/learner/test_program.py and, resumed, in
test_loop.py and test_processes.py; here the first iteration, quantity by quantity.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import trpo_brax as tb
from tests.tiny_programs import assert_bit_identical
from tests.tiny_runs import TINY, last_state, tiny_program, train_tiny
from tests.trainers import OPTIMISED, finish, steps, succeed, trainer
from trpo_brax.cli import main
from trpo_brax.config import override
from trpo_brax.forensics.difference import compare


class Processes(NamedTuple):
    """Runs of four iterations by processes of their own."""

    whole: Path
    """By one process, which compiled for itself."""
    half: Path
    """The first two iterations, by a process that may have found its executables in the cache."""
    resumed: Path
    """`half`, taken to the end by a third process."""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """Train, optimised as for a user: the uninterrupted run beside the two halves of the other, on two cores."""
    folder = tmp_path_factory.mktemp("processes")
    runs = Processes(folder / "whole", folder / "half", folder / "resumed")
    alone = f"{steps(4)} --cpu-devices 2 --compilation-cache none"
    with trainer(runs.whole, alone, environment=OPTIMISED) as whole:
        finish(runs.resumed, f"{steps(2)} --cpu-devices 2", OPTIMISED)
        shutil.copytree(runs.resumed, runs.half)
        finish(runs.resumed, f"{steps(4)} --cpu-devices 2 --resume", OPTIMISED)
        succeed(whole)
    return runs


def test_d0_an_executable_gives_the_same_bits_twice_from_one_state() -> None:
    """From a state under way, whose statistics, optimiser and environments have left where they begin."""
    program = tiny_program()
    state, _ = program.run(program.initial_state(), 2)
    outcomes = [jax.device_get(program.run(program.copy(state), 3)) for _ in range(2)]
    assert_bit_identical(*outcomes)


def test_d1_a_new_process_gives_the_same_bits(processes: Processes, tmp_path: Path) -> None:
    difference = compare(processes.whole, processes.half)
    assert difference.first is None and difference.compared == 2
    until_two = tmp_path / "run"
    shutil.copytree(processes.whole, until_two)
    shutil.rmtree(until_two / "checkpoints" / "4")
    assert_bit_identical(last_state(tb.Run.load(until_two)), last_state(tb.Run.load(processes.half)))


def test_d2_resuming_in_a_new_process_is_never_having_stopped(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(processes.whole), str(processes.resumed)]) == 0, capsys.readouterr().out
    assert_bit_identical(*(last_state(tb.Run.load(path)) for path in (processes.whole, processes.resumed)))


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> tb.Run:
    return train_tiny(tmp_path_factory.mktemp("one") / "run", config=override(TINY, cpu_devices=1))


@pytest.mark.parametrize("count", [2, 4])
def test_d3_device_counts_agree_to_rounding(on_one: tb.Run, count: int, tmp_path: Path) -> None:
    """In every quantity of the first iteration that takes a step; later ones go on from parameters that differ in bits.

    But for what is left when most of it has cancelled, of 1 or of nats, and a checksum, which has no size.
    """
    other = train_tiny(tmp_path / "run", config=override(TINY, cpu_devices=count))
    ours, theirs = on_one.metrics(), other.metrics()
    assert len(ours) == len(theirs) == 4
    assert ours[1]["step_outcome"] == "accepted"
    for name, value in ours[1].items():
        # Rounding may decide in which iteration a residual meets its tolerance.
        if name not in ("wall_time_s", "steps_per_second", "parameter_fingerprint", "cg_iterations"):
            left_of_one = name.startswith(("cg_relative_residual", "explained_variance"))
            left = 1e-3 if left_of_one else 1e-9 if name == "normalisation_kl" else 0.0
            wanted = pytest.approx(value, rel=1e-3, abs=left) if isinstance(value, (float, dict)) else value
            assert theirs[1][name] == wanted, name
    difference = compare(on_one.path, other.path)
    assert not difference.alone
    causes = {one.name for one in (*difference.configuration, *difference.provenance)}
    # Whoever edits the checkout between two runs does not fail the test.
    assert causes - {"git/commit", "git/diff"} == {"cpu_devices", "devices"}
