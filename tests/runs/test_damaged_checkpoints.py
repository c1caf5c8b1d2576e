"""Every file of a checkpoint damaged in every way: it is found, named, moved away, and the run goes on unharmed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.tiny_environments import History
from tests.tiny_programs import assert_bit_identical
from tests.tiny_runs import TINY, assert_same_run, contents, killed_copy, resume_tiny, tiny_program, train_tiny
from trpo_brax.config import override
from trpo_brax.environments import own_task
from trpo_brax.errors import CheckpointError
from trpo_brax.learner.program import Program
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.run import Run
from trpo_brax.runs.saving import CheckpointSaver


def flipped(at: float) -> Callable[[Path], None]:
    """Return what flips one bit at a share of a file."""

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        if not data:
            data = bytearray(b"x")
        place = min(int(at * len(data)), len(data) - 1)
        data[place] ^= 1 << (place % 8)
        file.write_bytes(data)

    return flip


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def link(file: Path) -> None:
    """Put a link to the same content in a file's place."""
    moved = file.parents[3] / "moved"
    file.rename(moved)
    file.symlink_to(moved)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "first byte": flipped(0.0),
    "middle byte": flipped(0.5),
    "last byte": flipped(1.0),
    "half": cut,
    "one byte more": grow,
    "gone": Path.unlink,
    "a link": link,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run with checkpoints 2 and 4."""
    return train_tiny(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    return killed_copy(run, tmp_path / "run")


def files(checkpoint: Path) -> list[Path]:
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_file_in_turn_is_found_and_named(damage: str, run: Run, tmp_path: Path) -> None:
    names = files(run.path / "checkpoints" / "4")
    assert len(names) > 15
    for number, name in enumerate(names):
        directory = tmp_path / str(number) / "checkpoints"
        shutil.copytree(run.path / "checkpoints", directory)
        before = contents(directory / "2")
        DAMAGE[damage](directory / "4" / name)
        found: dict[int, str] = {}
        assert Checkpoints(directory, run.config).newest_intact(found.__setitem__) == 2, name
        assert list(found) == [4] and "\n" not in found[4]
        assert f"{directory / '4'} is damaged" in found[4]
        # A digest changed in the manifest accuses the file that it was of.
        assert name.name in found[4] or name.name == "manifest.json", found[4]
        assert contents(directory / "2") == before
        with pytest.raises(CheckpointError, match="damaged"):
            Checkpoints(directory, run.config).verify(4)
        shutil.rmtree(directory)


def test_sound_checkpoints_are_left_alone(run: Run) -> None:
    before = contents(run.path)
    checkpoints = Checkpoints(run.path / "checkpoints", run.config)
    assert checkpoints.newest_intact(lambda *_: pytest.fail("nothing is wrong")) == 4
    assert contents(run.path) == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [("policy/manifest.ocdbt", "middle byte"), ("manifest.json", "gone"), ("training/_METADATA", "half")],
)
def test_a_resume_moves_it_away_and_ends_where_the_whole_run_did(name: str, damage: str, run: Run, copy: Path) -> None:
    checkpoint = copy / "checkpoints" / "4"
    DAMAGE[damage](checkpoint / name)
    damaged = contents(checkpoint)
    resumed, told = resume_tiny(copy)
    (line,) = [line for line in told.splitlines() if "quarantined" in line]
    assert "checkpoint" in line and str(checkpoint) in line and str(copy / "quarantine" / "4") in line
    assert Path(name).name in line
    assert "Restoring the checkpoint of iteration 2" in told
    assert contents(copy / "quarantine" / "4") == damaged
    assert_same_run(resumed, run)


def test_where_all_are_damaged_it_begins_again_and_loses_none(run: Run, copy: Path) -> None:
    for iteration in ("2", "4"):
        DAMAGE["last byte"](copy / "checkpoints" / iteration / "manifest.json")
    shutil.copytree(copy / "checkpoints" / "4", copy / "quarantine" / "4")  # of an earlier time
    metrics = (copy / "metrics.jsonl").read_bytes()
    resumed, told = resume_tiny(copy)
    assert told.count("quarantined") == 2
    assert f"There is no sound checkpoint: training begins again; its metrics so far are {copy}/quarantine" in told
    assert sorted(path.name for path in (copy / "quarantine").iterdir()) == ["2", "4", "4.2", "metrics.jsonl"]
    assert (copy / "quarantine" / "metrics.jsonl").read_bytes() == metrics
    assert_same_run(resumed, run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "provenance.json", "task.json"])
def test_other_files_that_are_broken_stop_no_resume(name: str, run: Run, copy: Path) -> None:
    """The state is in the checkpoints: what describes the run is told, set aside or written anew."""
    shutil.rmtree(copy / "checkpoints" / "4")
    lines = (copy / name).read_bytes().splitlines(keepends=True)
    lines[-1] = b"}" + lines[-1]
    (copy / name).write_bytes(b"".join(lines))
    resumed, told = resume_tiny(copy)
    assert ("Warning" in told) == (name != "task.json")
    assert name in told or name == "task.json"
    assert_same_run(resumed, run)


def test_a_summary_that_is_broken_is_written_anew(run: Run, copy: Path) -> None:
    (copy / "summary.json").write_text('{"status": "fini')
    resumed, _ = resume_tiny(copy)
    assert resumed.summary["status"] == "finished"
    assert_same_run(resumed, run)


def test_metrics_that_were_lost_are_told(copy: Path) -> None:
    """A disk may have taken a checkpoint, and not the lines before it."""
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:3]))
    _, told = resume_tiny(copy)
    assert "metrics.jsonl holds nothing after iteration 3: some iterations are missing from it" in told


@pytest.mark.parametrize("fault", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_disk_that_fails_says_nothing_of_its_checkpoints(
    fault: OSError, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would all be moved away, one after the other, and the run begun again."""

    def fail(*_: object) -> None:
        raise fault

    before = contents(copy)
    monkeypatch.setattr("trpo_brax.runs.manifest._digest", fail)
    with pytest.raises(CheckpointError, match=f"cannot be read: {fault.strerror}"):
        resume_tiny(copy)
    assert contents(copy) == before


def with_nan(state: Any, part: str) -> Any:
    """Return a state with NaN in the first number of a part."""

    def spoil(leaf: jax.Array) -> jax.Array:
        array = np.array(leaf)
        if np.issubdtype(array.dtype, np.floating):
            array.reshape(-1)[0] = np.nan
        return jax.device_put(array, leaf.sharding)

    return state.replace(**{part: jax.tree.map(spoil, getattr(state, part))})


@pytest.mark.parametrize("part", ["policy", "critic", "critic_optimizer", "statistics"])
def test_numbers_that_are_not_finite_are_damage_too(part: str, run: Run, copy: Path, tmp_path: Path) -> None:
    """Saved whole, with a manifest that is right: what is wrong is what it says."""
    if part == "critic_optimizer":  # Gauss-Newton steps have none
        run = train_tiny(tmp_path / "adam", config=override(TINY, critic="adam"))
        copy = killed_copy(run, tmp_path / "adam-copy")
    program = Program(run.config, own_task(History(), run.config.rollout), jax.devices()[:1])
    state = Checkpoints(copy / "checkpoints", run.config).restore(4, program.abstract_state, program.shardings)
    assert program.sound(state) and not program.sound(with_nan(state, part))
    shutil.rmtree(copy / "checkpoints" / "4")
    saver = CheckpointSaver(RunFolder(copy), run.config)
    assert saver.save(4, with_nan(state, part), {}) is None
    saver.close()
    resumed, told = resume_tiny(copy, run.config)
    (line,) = [line for line in told.splitlines() if "quarantined" in line]
    assert "not finite" in line and "checkpoint" in line
    assert_same_run(resumed, run)


def test_what_a_killed_save_or_removal_left_is_no_checkpoint(run: Run, copy: Path) -> None:
    for name in ("6.unsealed", "6.unsealed.orbax-checkpoint-tmp", "2.removed"):
        shutil.copytree(copy / "checkpoints" / "2", copy / "checkpoints" / name)
    shutil.rmtree(copy / "checkpoints" / "4")
    resumed, told = resume_tiny(copy)
    assert "quarantined" not in told
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["2", "4"]
    assert_same_run(resumed, run)


def test_a_reader_refuses_a_damaged_latest_and_changes_nothing(run: Run, copy: Path) -> None:
    """Another policy than the one asked for would be a wrong answer."""
    DAMAGE["middle byte"](copy / "checkpoints" / "4" / "policy" / "_METADATA")
    before = contents(copy)
    for which in ("latest", 4):
        with pytest.raises(
            CheckpointError, match=r"checkpoints/4 is damaged: policy/_METADATA is not what was written"
        ):
            Run.load(copy).policy(which)
    assert contents(copy) == before
    assert_bit_identical(Run.load(copy).policy(2).parameters, run.policy(2).parameters)


def test_a_latest_that_was_never_whole_is_not_passed_over_either(copy: Path) -> None:
    (copy / "checkpoints" / "4" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoints/4 is damaged: it has no manifest\.json"):
        Run.load(copy).policy("latest")


def test_a_checkpoint_of_another_run_with_the_same_shapes_is_refused_and_kept(run: Run, tmp_path: Path) -> None:
    """Not damaged, but not this run's: nothing is moved, nothing is trained."""
    other = train_tiny(tmp_path / "other", config=override(TINY, seed=1))
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    shutil.copytree(other.path / "checkpoints" / "4", tmp_path / "run" / "checkpoints" / "4")
    before = contents(tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"does not belong to this run's config\.json: it was written under seed 1, not 0"
    ):
        resume_tiny(tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_written_over_four_devices_it_is_read_on_one(tmp_path: Path) -> None:
    program = tiny_program()
    four = Program(TINY, program.task, jax.devices()[:4])
    one = Program(TINY, program.task, jax.devices()[:1])
    state = four.initial_state()
    folder = RunFolder(tmp_path / "run")
    folder.create(TINY)
    saver = CheckpointSaver(folder, TINY)
    assert saver.save(0, state, {}) is None
    saver.close()
    restored = Checkpoints(folder.checkpoints, TINY).restore(0, one.abstract_state, one.shardings)
    assert_bit_identical(restored, state)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {1}
