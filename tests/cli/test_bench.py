"""trpo-brax bench: one JSON object, or a table, and what cannot be measured in one sentence."""

from __future__ import annotations

import json
import shlex

import jax
import pytest

from tests.contract import BENCH_KEYS
from tests.tiny_environments import PointMass
from trpo_brax.cli import main
from trpo_brax.environments.quiet import quiet

with quiet():
    from brax.envs import State

TINY = shlex.split(
    "bench --environment tests.cli.test_bench:Talkative --num-envs 8 --unroll-length 10 --policy-hidden-sizes 8 "
    "--critic-hidden-sizes 8 --critic-minibatches 2 --cpu-devices 2 --skip-start --repeats 1"
)


class Talkative(PointMass):
    """Says something whenever it is traced."""

    def step(self, state: State, action: jax.Array) -> State:
        print("stepping")
        return super().step(state, action)


def test_json_is_one_object_with_the_promised_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= BENCH_KEYS
    assert report["num_envs"] == 8
    ratio = report["training_steps_per_second"] / report["physics_steps_per_second"]
    assert report["training_to_physics"] == pytest.approx(ratio, rel=0.5)
    assert report["first_iteration_seconds"] is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--repeats 0", "repeats must be at least 1"),
        ("--run-dir here", "unknown option --run-dir"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *words.split()]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_an_unknown_task_gets_the_nearest_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "hoper"]) == 2
    assert "hopper" in capsys.readouterr().err
