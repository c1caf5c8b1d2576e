"""trpo-brax bench: one JSON object, or a table, and what cannot be measured in one sentence."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.contract import BENCH_KEYS
from trpo_brax.cli import main

TINY = shlex.split(
    "bench --environment tests.tiny_environments:PointMass --num-envs 8 --unroll-length 10 --policy-hidden-sizes 8 "
    "--critic-hidden-sizes 8 --critic-minibatches 2 --cpu-devices 2 --skip-start --repeats 1"
)


def test_json_is_one_object_with_the_promised_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "sweep.png"
    assert main([*TINY, "--json", "--sweep-envs", "4,16", "--picture", str(picture)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= BENCH_KEYS
    assert report["num_envs"] == 8
    ratio = report["training_steps_per_second"] / report["physics_steps_per_second"]
    assert report["training_to_physics"] == pytest.approx(ratio, rel=0.5)
    assert report["first_iteration_seconds"] is None
    assert [row["num_envs"] for row in report["sweep"]] == [4, 16]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--sweep-envs 3,8", "sweep_envs must be whole numbers of at least 4"),
        ("--repeats 0", "repeats must be at least 1"),
        ("--memory-gib -1", "memory_gib must be"),
        ("--run-dir here", "Unrecognized options: --run-dir"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *words.split()]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_an_unknown_task_gets_the_nearest_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "hoper"]) == 2
    assert "hopper" in capsys.readouterr().err
