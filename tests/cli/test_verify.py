"""trpo-brax verify: its exit status, its lines and its JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.deployment.conftest import exported, trained
from tests.tiny_environments import History
from tests.tiny_runs import HISTORY, contents
from trpo_brax.cli.verify import verify
from trpo_brax.deployment import Artifact, Verification, export
from trpo_brax.deployment.artifact import sha256
from trpo_brax.deployment.findings import ClosedLoop, OpenLoop
from trpo_brax.errors import UserError
from trpo_brax.evaluation import Episodes
from trpo_brax.runs.run import Run


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny run, its export, and one of its earlier checkpoint that claims to be the last."""
    folder = tmp_path_factory.mktemp("verify")
    shutil.copytree(trained(tmp_path_factory).path, folder / "run")
    shutil.copytree(exported(tmp_path_factory).folder, folder / "out")
    run = Run.load(folder / "run")
    false = export(run, folder / "false", checkpoint=2, environment=History())
    data = json.loads((false.folder / "policy.json").read_text())
    claims = {"checkpoint_iteration": 4, "policy_sha256": run.policy(4).fingerprint()}
    (false.folder / "policy.json").write_text(json.dumps(data | claims))
    assert sha256(false.model()) == data["artifact_sha256"]
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


OWN = ["--run", "run", "--environment", HISTORY]


def test_the_whole_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All 100,000 observations and 1,000 episodes."""
    before = contents(here)
    assert verify(["out/policy.onnx", *OWN, "--json"]) == 0
    told = capsys.readouterr()
    data = json.loads(told.out)
    assert told.out.count("\n") == 1
    assert data["passed"] is True and 0 <= data["max_action_difference"] <= 1e-5
    assert (data["observations"], data["episodes"], data["certified"]) == (100_000, 1000, False)
    assert contents(here) == before


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Verify over fewer observations, each artifact once, and return what was asked for."""
    import trpo_brax.deployment

    asked: list[dict[str, Any]] = []
    found: dict[Path, Verification] = {}
    real = trpo_brax.deployment.verify

    def quick(artifact: Artifact, run: Run, **options: Any) -> Any:
        asked.append(options)
        if artifact.folder not in found:
            found[artifact.folder] = real(artifact, run, observations=500, **options)
        return found[artifact.folder]

    monkeypatch.setattr("trpo_brax.deployment.verify", quick)
    return asked


def test_what_passes_in_words(few: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--episodes", "400", "--margin", "0.2", "--failure-margin", "0.02", "--tolerance", "0.001"]
    assert verify(["out", *OWN, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "passed" and not any("FAILED" in line for line in lines)
    assert any("max_action_difference" in line for line in lines)
    options = {name: few[0][name] for name in ("episodes", "margin", "failure_margin", "tolerance", "checkpoint")}
    assert options == {
        "episodes": 400,
        "margin": 0.2,
        "failure_margin": 0.02,
        "tolerance": 0.001,
        "checkpoint": None,
    }


def test_what_fails_is_named_and_the_exit_status_is_1(
    few: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--episodes", "40", "--failure-margin", "0.09"]
    assert verify(["false", *OWN, *words]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "FAILED"
    assert any(line.startswith("FAILED") and "max_action_difference" in line for line in lines)
    assert verify(["false", *OWN, *words, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert (
        data["passed"] is False and "max_action_difference" in data["failed"] and data["max_action_difference"] > 1e-5
    )


def test_what_could_not_be_told_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Statements that were not checked."""
    nothing = Episodes(*np.zeros((2, 5), np.float32), *np.zeros((2, 5), bool))
    note = "not checked: the certificate's statements come of 500 episodes, and 5 were run"
    loop = ClosedLoop(nothing, nothing, (), (), note)

    def found(artifact: Artifact, run: Run, **options: Any) -> Verification:
        return Verification(artifact, OpenLoop(9, {"corner, batch 1": 0.0}, {}), loop, ())

    monkeypatch.setattr("trpo_brax.deployment.verify", found)
    assert verify(["out", *OWN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith(note) and "certificate" in line for line in lines)
    assert lines[-1] == "passed"
    assert verify(["out", *OWN, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["statements"], data["statements_note"]) == ({}, note)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["out"], ["run"]),
        (["nowhere", *OWN], ["nowhere"]),
        (["run", *OWN], ["run", "policy.json"]),
        (["out", "--run", "nowhere"], ["nowhere"]),
        (["out", "--run", "run"], [HISTORY]),
        (["out", *OWN, "--episodes", "0"], ["episodes", "at least 1"]),
        (["out", *OWN, "--episodes", "100"], ["at least 381", "--failure-margin at least 0.0370"]),
        (["out", *OWN, "--tolerance", "-1"], ["tolerance", "greater than 0"]),
        (["out", *OWN, "--checkpoint", "2"], ["another policy", "checkpoint 2"]),
    ],
)
def test_what_cannot_work_is_one_sentence(words: list[str], fragments: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        verify(words)
    sentence = str(refusal.value)
    assert refusal.value.exit_status == 2 and "\n" not in sentence and sentence.endswith(".")
    assert all(fragment in sentence for fragment in fragments), sentence
