"""--check-finite: the first iteration that meets a non-finite number is dumped, readable, and training goes on."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import trpo_brax as tb
from tests.tiny_environments import Fault, Faulty, PointMass
from tests.tiny_programs import assert_bit_identical, tiny_config
from tests.tiny_runs import without_clock
from trpo_brax.environments import own_task
from trpo_brax.errors import CheckpointError, RunFolderError
from trpo_brax.host.console import Console
from trpo_brax.learner.program import Program
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.dumps import Dump
from trpo_brax.runs.storage import named_leaves, read_arrays

# Few products: what ten of them leave of the residual is rounding.
CONFIG = tiny_config(episode_length=5, checkpoint_every=1, checkpoints_to_keep=9, cg_iterations=3)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[tb.Run, str]:
    """Return a checked run in which some episodes meet NaN at their third step, and what it told."""
    told = io.StringIO()
    run = tb.train(
        tb.override(CONFIG, check_finite=True, num_seeds=2),
        environment=Faulty(Fault("observation", step=3, one_in=7)),
        run_dir=tmp_path_factory.mktemp("faulty") / "run",
        console=Console(told),
    )
    return run, told.getvalue()


def program_of(dump: Dump) -> Program:
    task = own_task(Faulty(Fault("observation", step=3, one_in=7)), dump.config.rollout)
    return Program(dump.config, task, jax.devices()[:2])


def first_fault(run: tb.Run) -> dict[str, Any]:
    return next(row for row in run.metrics() if row["nonfinite_envs"])


def test_the_first_is_dumped_and_training_goes_on(faulty: tuple[tb.Run, str]) -> None:
    run, told = faulty
    assert run.summary["status"] == "finished"
    assert len({row["iteration"] for row in run.metrics() if row["nonfinite_envs"]}) > 1
    (path,) = (run.path / "dumps").iterdir()
    row, dump = first_fault(run), Dump.load(path)
    assert (dump.iteration, dump.seed) == (row["iteration"], row["seed"])
    assert f"{row['nonfinite_envs']} environments" in dump.seen
    assert told.count("trpo-brax replay") == 1
    assert (
        f"Iteration {row['iteration']}: {dump.seen}. To find out where: trpo-brax replay {path} --environment " in told
    )


def test_its_state_is_that_of_the_checkpoint_before(faulty: tuple[tb.Run, str]) -> None:
    run, _ = faulty
    (path,) = (run.path / "dumps").iterdir()
    dump = Dump.load(path)
    program = program_of(dump)
    if dump.iteration == 1:
        before = program.initial_state()
    else:
        checkpoints = Checkpoints(run.path / "checkpoints", run.config)
        before = checkpoints.restore(dump.iteration - 1, program.abstract_state, program.shardings)
    position = run.config.seeds.index(dump.seed)
    assert_bit_identical(dump.state(program), jax.tree.map(lambda leaf: leaf[position], before))


def test_its_batch_is_the_one_that_met_it(faulty: tuple[tb.Run, str]) -> None:
    """The batch says which transitions were cut off: as many environments as the record counted."""
    run, _ = faulty
    (path,) = (run.path / "dumps").iterdir()
    dump, row = Dump.load(path), first_fault(run)
    program = program_of(dump)
    _, _, shapes = jax.eval_shape(jax.vmap(program.iteration.with_batch), program.abstract_state)
    arrays = read_arrays(path / "batch", named_leaves(shapes), f"dump {path}")
    valid = np.asarray(arrays["transitions.valid"])[run.config.seeds.index(dump.seed)]
    assert valid.shape == (8, 10)
    assert np.sum(~valid.all(axis=1)) == row["nonfinite_envs"]
    assert np.mean(~valid) == pytest.approx(row["nonfinite_share"])


def test_a_sound_run_leaves_no_dump_and_is_the_same_run(tmp_path: Path) -> None:
    runs = [
        tb.train(
            tb.override(CONFIG, check_finite=check),
            environment=PointMass(),
            run_dir=tmp_path / f"{check}",
            console=Console(io.StringIO()),
        )
        for check in (False, True)
    ]
    assert not (runs[1].path / "dumps").exists()
    for ours, theirs in zip(*map(without_clock, runs), strict=True):
        for name, value in ours.items():
            if isinstance(value, float):
                np.testing.assert_allclose(value, theirs[name], rtol=2e-2, atol=1e-5, err_msg=name)


def test_a_damaged_or_foreign_dump_is_refused(faulty: tuple[tb.Run, str], tmp_path: Path) -> None:
    run, _ = faulty
    with pytest.raises(RunFolderError, match=r"dump\.json"):
        Dump.load(run.path)
    (path,) = (run.path / "dumps").iterdir()
    file = path / "dump.json"
    before = file.read_bytes()
    file.write_bytes(before.replace(b'"seed"', b'"sead"'))
    try:
        with pytest.raises(CheckpointError, match=r"damaged: dump\.json"):
            Dump.load(path)
    finally:
        file.write_bytes(before)


def test_a_folder_that_is_gone_gets_no_dump_and_training_goes_on(tmp_path: Path) -> None:
    """The dump is told as lost; the run fails in the end for not being saved, and the folder is not made again."""

    class Removing(Console):
        def training(self, total_iterations: int, done: int) -> Any:
            shutil.rmtree(tmp_path / "run")
            return super().training(total_iterations, done)

    told = io.StringIO()
    with pytest.raises(tb.UserError, match="could not be saved") as caught:
        tb.train(
            tb.override(CONFIG, check_finite=True),
            environment=Faulty(Fault("observation", step=3, one_in=7)),
            run_dir=tmp_path / "run",
            console=Removing(told),
        )
    assert caught.value.exit_status == 1
    assert "the dump could not be written" in told.getvalue()
    assert not (tmp_path / "run").exists()
