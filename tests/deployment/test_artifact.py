"""An export on disk: read back as written, whole or not at all, and never through a link."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_runs import contents
from trpo_brax.deployment.artifact import Artifact, write_artifact
from trpo_brax.deployment.description import ArtifactError, Description
from trpo_brax.deployment.findings import finite_or_none
from trpo_brax.errors import RunFolderError, UserError


def test_it_is_read_back_as_it_was_written(onnx: Artifact) -> None:
    found, wanted = Artifact.load(onnx.folder).description, onnx.description
    for field in dataclasses.fields(Description):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype == np.float32 and ours.tobytes() == theirs.tobytes()
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize("name", ["", "policy.onnx"])
def test_by_folder_or_by_file(onnx: Artifact, name: str) -> None:
    found = Artifact.load(onnx.folder / name)
    assert found.file == onnx.file and found.model() == onnx.file.read_bytes()


def test_a_missing_bound_is_null_and_stays_so(onnx: Artifact, tmp_path: Path) -> None:
    unbounded = dataclasses.replace(
        onnx.description, action=({"name": "push", "low": finite_or_none(-np.inf), "high": 2.0},)
    )
    write_artifact(tmp_path / "out", unbounded, b"model", None)
    assert json.loads((tmp_path / "out/policy.json").read_text())["action"] == [
        {"name": "push", "low": None, "high": 2.0}
    ]
    assert Artifact.load(tmp_path / "out").description.action == unbounded.action


def test_a_list_of_numbers_is_one_line_and_text_stays_as_it_is(onnx: Artifact, tmp_path: Path) -> None:
    odd = dataclasses.replace(onnx.description, certificate={"text": "[\n 1,\n 2\n]", "list": [1, 2.5, -1e-30]})
    write_artifact(tmp_path / "out", odd, b"model", None)
    text = (tmp_path / "out/policy.json").read_text()
    assert '"list": [1, 2.5, -1e-30]' in text
    assert json.loads(text)["certificate"] == odd.certificate


class TestWriting:
    """The place an export goes to."""

    def test_an_export_of_the_same_format_is_replaced_as_a_whole(self, onnx: Artifact, tmp_path: Path) -> None:
        folder = tmp_path / "deep/out"
        write_artifact(folder, onnx.description, b"first", b"verify")
        write_artifact(folder, onnx.description, b"second", None)
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "policy.json"} == {
            "policy.onnx": b"second"
        }
        assert [path.name for path in folder.parent.iterdir()] == ["out"]

    def occupy(self, place: Path, how: str) -> None:
        """Put something else at a place."""
        if how == "file":
            place.write_text("mine")
        elif how == "folder in use":
            place.mkdir()
            (place / "notes.txt").write_text("mine")
        elif how == "the other format":
            place.mkdir()
            (place / "policy.stablehlo").write_text("mine")
        elif how == "link to a folder":
            (place.parent / "elsewhere").mkdir()
            place.symlink_to(place.parent / "elsewhere")
        elif how == "link to nowhere":
            place.symlink_to(place.parent / "nowhere")
        elif how == "link inside":
            place.mkdir()
            (place / "policy.json").symlink_to(place.parent / "elsewhere.json")
        else:
            os.mkfifo(place)

    @pytest.mark.parametrize(
        "how",
        ["file", "folder in use", "the other format", "link to a folder", "link to nowhere", "link inside", "pipe"],
    )
    def test_what_is_somebody_elses_stays_as_it_is(self, onnx: Artifact, tmp_path: Path, how: str) -> None:
        self.occupy(tmp_path / "out", how)
        before = contents(tmp_path) if how != "pipe" else {}
        with pytest.raises(ArtifactError, match=r"output .*out (is already used|cannot be used)"):
            write_artifact(tmp_path / "out", onnx.description, b"model", None)
        assert how == "pipe" or contents(tmp_path) == before

    @pytest.mark.parametrize("when", ["write", "rename"])
    def test_a_disk_that_fails_leaves_the_old_export(
        self, onnx: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        write_artifact(tmp_path / "out", onnx.description, b"first", b"verify")
        before = contents(tmp_path)
        rename = Path.rename

        def fail(path: Any, target: Any = None) -> Any:
            if when == "write" or path.name == "new":
                raise OSError(28, "No space left on device")
            return rename(path, target)

        monkeypatch.setattr(*(("os.fsync", fail) if when == "write" else (Path, "rename", fail)))
        with pytest.raises(UserError, match="cannot be written: No space left"):
            write_artifact(tmp_path / "out", onnx.description, b"second", None)
        monkeypatch.undo()
        assert contents(tmp_path) == before


class TestReading:
    """What may be anybody's."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"format_version": 2},
            {"format": "pickle"},
            {"artifact": "../../secret"},
            {"artifact_sha256": "short"},
            {"policy_sha256": None},
            {"observation": 3},
            {"observation": []},
            {"golden": {"observations": [[1.0]], "actions": [[1.0]]}},
            {"golden": {"observations": [[1.0, 2.0]], "actions": []}},
            {"checkpoint_iteration": "many"},
            {"action_range": None},
            {"certificate": 7},
            {"versions": None},
        ],
        ids=lambda fields: str(fields)[:40],
    )
    def test_a_description_of_something_else_is_refused(
        self, fields: dict[str, Any], changed: Callable[..., Artifact]
    ) -> None:
        with pytest.raises(ArtifactError, match=r"policy\.json is not the description of an exported policy\.$"):
            changed(**fields)

    @pytest.mark.parametrize("text", ["[]", "3", "{", "NaN", '"text"', ""])
    def test_what_is_no_description_is_refused(self, text: str, onnx: Artifact, tmp_path: Path) -> None:
        shutil.copytree(onnx.folder, tmp_path / "out")
        (tmp_path / "out/policy.json").write_text(text)
        with pytest.raises(UserError, match=r"policy\.json"):
            Artifact.load(tmp_path / "out")

    @pytest.mark.parametrize("name", ["policy.json", "policy.onnx"])
    def test_a_link_is_not_followed(self, name: str, onnx: Artifact, tmp_path: Path) -> None:
        shutil.copytree(onnx.folder, tmp_path / "out")
        (tmp_path / "out" / name).rename(tmp_path / "elsewhere")
        (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RunFolderError, match="it is a link"):
            Artifact.load(tmp_path / "out").model()

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="there is no exported policy"):
            Artifact.load(tmp_path / "nowhere")
        with pytest.raises(ArtifactError, match=r"there is no policy\.json beside it"):
            Artifact.load(tmp_path)

    def test_another_file_of_the_folder(self, onnx: Artifact) -> None:
        with pytest.raises(ArtifactError, match=r"is not the model that"):
            Artifact.load(onnx.folder / "verify.py")
