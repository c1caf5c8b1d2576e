"""verify.py in a process of its own, with nothing but NumPy and onnxruntime."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trpo_brax.deployment import Artifact

# What a robot's computer has: every other import fails, as if the package were not installed.
RUNNER = """
import runpy, sys
blocked = {"jax", "jaxlib", "trpo_brax", "brax", "flax", "onnx", "jax2onnx", "scipy", "mujoco"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def checked_alone(folder: Path, *words: str) -> tuple[int, str]:
    """Return exit status and the one line that verify.py prints in an export's folder, in a process of its own."""
    command = [sys.executable, "-I", "-c", RUNNER, str(folder / "verify.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.stderr == "" and done.stdout.count("\n") == 1, done
    return done.returncode, done.stdout


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return what does the same in this process, which takes less time."""

    def run(folder: Path, *words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(folder / "verify.py"), *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(sys.argv[0], run_name="__main__")
        told = capsys.readouterr()
        assert told.err == "" and told.out.count("\n") == 1
        assert isinstance(stop.value.code, int)
        return stop.value.code, told.out

    return run


@pytest.fixture
def copied(onnx: Artifact, tmp_path: Path) -> Path:
    """Return a copy of the export that a test may change."""
    shutil.copytree(onnx.folder, tmp_path / "robot")
    return tmp_path / "robot"


def edit(folder: Path, **fields: object) -> None:
    """Change fields of the description."""
    data = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(data | fields))


def test_an_untouched_export_passes(copied: Path) -> None:
    assert checked_alone(copied) == (0, "passed: the golden pairs agree, one by one and all at once\n")


def test_another_file_than_the_one_exported_fails(copied: Path) -> None:
    model = (copied / "policy.onnx").read_bytes()
    (copied / "policy.onnx").write_bytes(model + b"\0")
    status, line = checked_alone(copied)
    assert status == 1 and line.startswith("FAILED: ") and "SHA-256" in line


def test_an_action_that_is_off_fails_by_how_much(copied: Path, checked: Callable[..., tuple[int, str]]) -> None:
    golden = json.loads((copied / "policy.json").read_text())["golden"]
    golden["actions"][5][0] += 0.0075  # a hundredth of the range
    edit(copied, golden=golden)
    status, line = checked(copied)
    assert status == 1 and line == "FAILED: at batch 1 actions differ by 1.00e-02 of their range, more than 1e-05\n"
    assert checked(copied, "--tolerance", "0.011")[0] == 0
    assert checked(copied, "--tolerance", "0.009")[0] == 1


@pytest.mark.parametrize("what", ["input", "output"])
def test_other_names_fail(copied: Path, what: str, checked: Callable[..., tuple[int, str]]) -> None:
    edit(copied, **{what: {"name": "other", "dtype": "float32", "shape": ["batch", 1]}})
    status, line = checked(copied)
    assert status == 1 and what in line and "other" in line


@pytest.mark.parametrize("name", ["policy.json", "policy.onnx"])
def test_a_missing_file_fails_in_one_line(copied: Path, name: str, checked: Callable[..., tuple[int, str]]) -> None:
    (copied / name).unlink()
    status, line = checked(copied)
    assert status == 1 and line.startswith("FAILED: FileNotFoundError") and name in line
