"""trpo-brax diff: two run folders in, where they part and why out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forensics.test_difference import ORIGIN, row, write
from tests.tiny_runs import TINY, contents
from trpo_brax.cli import main
from trpo_brax.config import override


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: run `a`, its like, one that differs in iteration 2, one not begun, and no run."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", [row(1), row(2)])
    write(tmp_path / "like_a", [row(1), row(2)])
    other = [row(1), row(2, kl_mean=0.015, critic_loss=None)]
    write(tmp_path / "b", other, override(TINY, max_kl=0.02), {**ORIGIN, "xla_flags": "--xla_gpu_deterministic_ops"})
    write(tmp_path / "begun", [])
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_runs_that_do_not_differ_end_with_status_0(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(here)
    assert main(["diff", "a", "like_a"]) == 0
    assert capsys.readouterr().out == (
        "A  a\n"
        "B  like_a\n"
        "No difference: every quantity agrees bit for bit in the 2 rows of both.\n"
        "Configuration, code, versions, devices and flags are the same, as far as they are recorded.\n"
    )
    assert main(["diff", "a", "a"]) == 0
    assert contents(here) == before


def test_runs_that_differ_end_with_status_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "a", "b"]) == 1
    assert capsys.readouterr().out == (
        "A  a\n"
        "B  b\n"
        "First difference, iteration 2, seed 0: kl_mean: 0.0075 in A, 0.015 in B\n"
        "1 more quantities differ there: critic_loss.\n"
        "What could explain it:\n"
        "  max_kl: 0.01 in A, 0.02 in B, shapes learning\n"
        '  xla_flags: "" in A, "--xla_gpu_deterministic_ops" in B\n'
    )


@pytest.mark.parametrize("pair", [("a", "begun"), ("begun", "begun")])
def test_what_cannot_be_compared_is_not_called_the_same(pair: tuple[str, str], here: Path) -> None:
    assert main(["diff", *pair]) == 1


def test_json_is_one_object(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "a", "b", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["differ"] is True and told["compared"] == 2
    assert told["a"] == "a" and told["shaping"] == ["max_kl"]
    assert told["first"] == {
        "iteration": 2,
        "seed": 0,
        "values": [{"name": "kl_mean", "a": 0.0075, "b": 0.015}, {"name": "critic_loss", "a": 0.25, "b": None}],
    }
    assert [one["name"] for one in told["provenance"]] == ["xla_flags"]
    assert main(["diff", "a", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differ"] is False


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "diff needs two RUNs, not 0"),
        (["a"], "diff needs two RUNs, not 1"),
        (["a", "b", "a"], "diff needs two RUNs, not 3"),
        (["a", "nowhere"], "there is no run folder nowhere"),
        (["empty", "a"], "empty is not a run folder: it holds no config.json"),
        (["a", "b", "--jsno"], "unknown option --jsno; did you mean --json?"),
    ],
)
def test_what_is_no_pair_of_runs_is_one_sentence(
    words: list[str], sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *words]) == 2
    told = capsys.readouterr()
    assert sentence in told.err and told.err.count("\n") == 1 and not told.out


@pytest.mark.parametrize(("file", "text"), [("config.json", "{"), ("config.json", "3"), ("metrics.jsonl", "half\n")])
def test_a_damaged_run_folder_is_one_sentence(
    file: str, text: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "b" / file).write_text(text)
    assert main(["diff", "a", "b"]) == 2
    told = capsys.readouterr()
    assert file in told.err and told.err.count("\n") == 1 and not told.out


def test_it_does_not_wait_for_jax(here: Path) -> None:
    code = "import sys; from trpo_brax.cli import main; main(['diff', 'a', 'b']); sys.exit('jax' in sys.modules)"
    root = str(Path(__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": root}).returncode == 0
