"""trpo-brax certify: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_runs import HISTORY, train_tiny
from trpo_brax.cli import main

FEW = ["--episodes", "40", "--choice-episodes", "20"]
KEYS = ("failure_probability_upper", "return_quantile_05_lower", "return_mean_lower", "return_cvar_lower")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run's folder."""
    return train_tiny(tmp_path_factory.mktemp("certify") / "run").path


def test_json_is_the_file_and_nothing_else_and_the_page_lies_beside_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", str(folder), "--environment", HISTORY, *FEW, "--json"]) == 0
    told = capsys.readouterr()
    assert told.out.count("\n") == 1
    certificate = json.loads(told.out)
    assert certificate == json.loads((folder / "certificate.json").read_text())
    assert {"episodes", "confidence", *KEYS} <= certificate.keys()
    page = (folder / "certificate.html").read_text()
    assert all(statement["sentence"].split(" (")[0] in page for statement in certificate["statements"])


def test_without_json_it_prints_the_sentences(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["certify", str(folder), "--environment", HISTORY, *FEW, "--output", str(tmp_path / "new" / "folder")]
    assert main([*words, "--confidence", "0.8", "--failure", "length < 4"]) == 0
    told = capsys.readouterr()
    certificate = json.loads((tmp_path / "new" / "folder" / "certificate.json").read_text())
    lines = told.out.splitlines()
    assert lines[0] == "Together with 80% confidence, of 40 episodes:"
    assert [line.strip() for line in lines[1:5]] == [one["sentence"] for one in certificate["statements"]]
    assert lines[5] == str(tmp_path / "new" / "folder" / "certificate.html")
    assert "length < 4 or non-finite" in told.out and "40 episodes in" in told.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--episodes", "3"], ["episodes", "at least 20"]),
        (["--confidence", "95"], ["confidence", "at most 0.999999999"]),
        (["--failure", "bad luck"], ["failure", "return < 500"]),
        (["--checkpoint", "3"], ["no checkpoint 3", "2, 4"]),
        (["--policy-seed", "7"], ["policy_seed"]),
        (["--output", "/proc/nowhere"], ["/proc/nowhere/certificate.html cannot be written: "]),
        (["--output", "{folder}/config.json/new"], ["certificate.html cannot be written: Not a directory"]),
        (["--output", "{folder}/checkpoints/taken"], ["taken/certificate.json cannot be written: Is a directory"]),
    ],
)
def test_what_cannot_be_is_one_sentence(
    folder: Path, options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "checkpoints/taken/certificate.json").mkdir(parents=True, exist_ok=True)
    options = [option.format(folder=folder) for option in options]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["certify", str(folder), "--environment", HISTORY, *FEW, *options]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and all(word in told.err for word in words), told.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
