"""Several checkpoints damaged at once, misplaced or foreign: what a resume passes over, and what readers refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.tiny_programs import assert_bit_identical
from tests.tiny_runs import HISTORY, TINY, assert_same_run, contents, killed_copy, resume_tiny, tiny_program, train_tiny
from trpo_brax.cli import main
from trpo_brax.config import override
from trpo_brax.errors import CheckpointError, RunFolderError
from trpo_brax.learner.program import Program
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.manifest import write_manifest
from trpo_brax.runs.run import Run
from trpo_brax.runs.saving import CheckpointSaver

EVERY = override(TINY, checkpoint_every=1, checkpoints_to_keep=9)
"""Checkpoints 1, 2, 3 and 4."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run with four checkpoints."""
    return train_tiny(tmp_path_factory.mktemp("whole") / "run", config=EVERY)


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    return killed_copy(run, tmp_path / "run")


def resume(folder: Path) -> tuple[Run, str]:
    return resume_tiny(folder, EVERY)


def quarantined(told: str) -> list[str]:
    return [line for line in told.splitlines() if "quarantined" in line]


def empty(file: Path) -> None:
    file.write_bytes(b"")


def in_other_words(file: Path) -> None:
    """Change a file to as many bytes of something else."""
    file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.parametrize("damage", [empty, in_other_words])
def test_every_file_in_turn(damage: Callable[[Path], None], run: Run, tmp_path: Path) -> None:
    program = tiny_program(EVERY)
    wanted = Checkpoints(run.path / "checkpoints", EVERY).restore(3, program.abstract_state, program.shardings)
    shutil.copytree(run.path / "checkpoints", tmp_path / "checkpoints")
    checkpoints = Checkpoints(tmp_path / "checkpoints", EVERY)
    names = sorted(path for path in (tmp_path / "checkpoints" / "4").rglob("*") if path.is_file())
    assert len(names) > 15
    for name in names:
        sound = name.read_bytes()
        damage(name)
        found: dict[int, str] = {}
        assert checkpoints.newest_intact(found.__setitem__) == 3, name
        assert list(found) == [4] and found[4].isprintable() and name.name in found[4]
        with pytest.raises(CheckpointError, match="checkpoints/4 is damaged"):
            checkpoints.restore(4, program.abstract_state, program.shardings)
        name.write_bytes(sound)
    assert checkpoints.newest_intact(lambda *_: pytest.fail("nothing is wrong")) == 4
    assert_bit_identical(checkpoints.restore(3, program.abstract_state, program.shardings), wanted)


def test_several_at_once_are_told_one_line_each_and_only_once(run: Run, copy: Path) -> None:
    """Even where a name in one is made to look like several lines, on a narrow terminal."""
    (copy / "checkpoints" / "4" / "policy" / "_METADATA").unlink()
    (copy / "checkpoints" / "3" / "evil\nWarning: all is well\x1b[2J").touch()
    empty(copy / "checkpoints" / "2" / "manifest.json")
    resumed, told = resume(copy)
    lines = quarantined(told)
    assert len(lines) == 3
    for iteration, line, why in zip("432", lines, ("policy/_METADATA is missing", "evil\\n", "manifest"), strict=True):
        assert f"checkpoint {copy / 'checkpoints' / iteration} is damaged: " in line and why in line
        assert line.endswith(f"quarantined as {copy / 'quarantine' / iteration}.")
        assert line.isprintable()
    assert "Restoring the checkpoint of iteration 1" in told
    assert sorted(path.name for path in (copy / "quarantine").iterdir()) == ["2", "3", "4"]
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["1", "2", "3", "4"]
    assert_same_run(resumed, run)
    before = contents(copy)
    _, told = resume(copy)
    assert not quarantined(told) and contents(copy) == before


def test_a_number_alone_makes_no_checkpoint(run: Run, copy: Path) -> None:
    """7 is a file, 6 is what 2 was, and 5 has no manifest, so it was never whole."""
    directory = copy / "checkpoints"
    (directory / "7").write_text("7")
    shutil.copytree(directory / "2", directory / "6")
    shutil.copytree(directory / "4", directory / "5")
    (directory / "5" / "manifest.json").unlink()
    resumed, told = resume(copy)
    whys = ["it is no folder", "it was written under another iteration", "incomplete, without manifest.json"]
    for line, why in zip(quarantined(told), whys, strict=True):
        assert why in line
    assert "Restoring the checkpoint of iteration 4" in told
    assert (copy / "quarantine" / "7").read_text() == "7"
    assert_same_run(resumed, run)


def test_the_state_of_another_iteration_is_refused_though_its_manifest_agrees(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints" / "4")
    shutil.copytree(copy / "checkpoints" / "3", copy / "checkpoints" / "4")
    write_manifest(copy / "checkpoints" / "4", {"iteration": 4, "training_returns": {}})
    before = contents(copy)
    with pytest.raises(CheckpointError, match="checkpoints/4 holds the state of another iteration"):
        resume(copy)
    assert contents(copy) == before


def test_where_there_is_no_room_to_move_it_to_nothing_is_lost(copy: Path) -> None:
    empty(copy / "checkpoints" / "4" / "manifest.json")
    (copy / "quarantine").write_text("mine")
    before = contents(copy)
    with pytest.raises(RunFolderError, match="quarantine in it is no folder"):
        resume(copy)
    assert contents(copy) == before


class TestReaders:
    """A reader takes the checkpoint asked for, or none, and changes nothing."""

    def refused(self, folder: Path, which: str | int) -> str:
        before = contents(folder)
        with pytest.raises(CheckpointError) as caught:
            Run.load(folder).policy(which)
        assert contents(folder) == before
        sentence = str(caught.value)
        assert sentence.isprintable() and len(sentence) < 600
        return sentence

    @pytest.mark.parametrize("damaged", ["manifest.json", "policy/_METADATA"])
    def test_evaluate(self, damaged: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        empty(copy / "checkpoints" / "4" / damaged)
        before = contents(copy)
        assert main(["evaluate", str(copy), "--environment", HISTORY, "--episodes", "4", "--json"]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1
        assert f"checkpoint {copy / 'checkpoints' / '4'} is damaged" in told.err
        assert contents(copy) == before

    def test_best_is_not_guessed_where_a_manifest_cannot_be_read(self, copy: Path) -> None:
        empty(copy / "checkpoints" / "2" / "manifest.json")
        assert "checkpoints/2 is damaged" in self.refused(copy, "best")
        Run.load(copy).policy("latest")

    @pytest.mark.parametrize("value", ["9", [9], {}, None, 10**400, float("nan"), [[[]]]])
    def test_best_by_what_is_no_number_is_no_candidate_or_refused(self, value: Any, run: Run, copy: Path) -> None:
        best = Checkpoints(run.path / "checkpoints", EVERY).resolve("best")
        others = {1, 2, 3, 4} - {best}
        for iteration in others:
            manifest = copy / "checkpoints" / str(iteration) / "manifest.json"
            told = json.loads(manifest.read_text())
            told["training_returns"]["0"] = value
            manifest.write_text(json.dumps(told))
        if isinstance(value, (int, float)):
            assert "is not valid JSON" in self.refused(copy, "best")
        else:
            assert_bit_identical(Run.load(copy).policy("best").parameters, run.policy(best).parameters)

    def test_another_policy_of_the_same_shapes(self, run: Run, copy: Path) -> None:
        """Its arrays fit, and its actions would be others."""
        other = override(EVERY, activation="relu", seed=1)
        program = Program(other, tiny_program().task, jax.devices()[:1])
        folder = RunFolder(copy.parent / "other")
        folder.create(other)
        saver = CheckpointSaver(folder, other)
        assert saver.save(4, program.initial_state().replace(iteration=4), {}) is None
        saver.close()
        shutil.rmtree(copy / "checkpoints" / "4")
        shutil.move(folder.checkpoints / "4", copy / "checkpoints" / "4")
        assert "activation relu, not tanh" in self.refused(copy, 4)

    def test_many_checkpoints_are_not_all_named(self, copy: Path) -> None:
        for iteration in range(100, 400):
            (copy / "checkpoints" / str(iteration)).mkdir()
            (copy / "checkpoints" / str(iteration) / "manifest.json").touch()
        assert "there is no checkpoint 5 in" in self.refused(copy, 5)
        assert "there is no checkpoint" in self.refused(copy, "9" * 5000)
        assert "checkpoint must be best, latest or an iteration" in self.refused(copy, "\x1b[2J" * 5000)


@pytest.mark.parametrize("count", [2, 4])
def test_written_over_several_devices_it_goes_on_over_one(count: int, tmp_path: Path) -> None:
    task = tiny_program().task
    several, one = (Program(TINY, task, jax.devices()[:number]) for number in (count, 1))
    state = several.initial_state()
    folder = RunFolder(tmp_path / "run")
    folder.create(TINY)
    saver = CheckpointSaver(folder, TINY)
    assert saver.save(0, state, {}) is None
    saver.close()
    restored = Checkpoints(folder.checkpoints, TINY).restore(0, one.abstract_state, one.shardings)
    assert_bit_identical(restored, state)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(restored)} == {1}
