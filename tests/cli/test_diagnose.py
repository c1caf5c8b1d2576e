"""trpo-brax diagnose: a run folder in, what went wrong in it out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.diagnosis.test_findings import FLAT, from_, rows
from tests.forensics.test_difference import write
from tests.tiny_runs import TINY, contents
from trpo_brax.cli.diagnose import diagnose
from trpo_brax.config import override
from trpo_brax.errors import UserError

LARGEST = "The largest reward of a step was 2 in absolute value."


def of_seed(seed: int, **columns: Any) -> list[dict[str, Any]]:
    return [{**row, "seed": seed, "env_steps": 64 * row["iteration"]} for row in rows(**columns)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: a healthy run, one of two seeds, the second of them ill, one not begun, and none."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "healthy", of_seed(0))
    ill = of_seed(1, cg_relative_residual=from_(41, 1.5, 0.5), **FLAT)
    write(tmp_path / "pair", of_seed(0) + ill, override(TINY, num_seeds=2))
    write(tmp_path / "begun", [])
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_healthy_run_has_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(here)
    assert diagnose(["healthy"]) == 0
    assert capsys.readouterr().out == f"Nothing found in 60 iterations.\n{LARGEST}\n"
    assert diagnose(["begun"]) == 0
    assert capsys.readouterr().out == "Nothing found in 0 iterations.\n"
    assert contents(here) == before


def test_findings_are_told_by_seed_and_are_no_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(["pair"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "Seed 0:",
        "Nothing found in 60 iterations.",
        LARGEST,
        "Seed 1:",
        "problem: cg residual high from iteration 41 to 60 (cg_relative_residual 1.5)",
    ]
    assert lines[7].startswith("problem: return flat from iteration 1 to 60") and len(lines) == 11
    assert diagnose(["pair", "--policy-seed", "0"]) == 0
    assert capsys.readouterr().out == f"Seed 0:\nNothing found in 60 iterations.\n{LARGEST}\n"


def test_json_is_one_object(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert diagnose(["pair", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == "pair"
    assert [(one["seed"], one["iterations"], len(one["findings"])) for one in told["seeds"]] == [(0, 60, 0), (1, 60, 2)]
    assert [one["reward_max_abs"] for one in told["seeds"]] == [2.0, 2.0]
    finding = told["seeds"][1]["findings"][0]
    assert finding.keys() == {
        *("name", "level", "metric", "iteration", "value", "last_iteration", "explanation", "advice"),
    }
    assert (finding["name"], finding["level"], finding["iteration"]) == ("cg_residual_high", "problem", 41)
    assert diagnose(["pair", "--json", "--policy-seed", "1"]) == 0
    assert [one["seed"] for one in json.loads(capsys.readouterr().out)["seeds"]] == [1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "RUN"),
        (["nowhere"], "there is no run folder nowhere"),
        (["empty"], "empty is not a run folder"),
        (["pair", "--policy-seed", "2"], "policy_seed must be one of the run's seeds, 0 to 1, not 2"),
        (["healthy", "--policy-seed", "2"], "policy_seed must be one of the run's seeds, 0, not 2"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_sentence(words: list[str], sentence: str, here: Path) -> None:
    with pytest.raises(UserError) as caught:
        diagnose(words)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_it_does_not_wait_for_jax(here: Path) -> None:
    code = "import sys; from trpo_brax.cli.diagnose import diagnose; diagnose(['pair']); sys.exit('jax' in sys.modules)"
    root = str(Path(__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": root}).returncode == 0
