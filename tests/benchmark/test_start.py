"""Starts of the trainer in processes of their own."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_programs import tiny_config
from trpo_brax.benchmark import start
from trpo_brax.cli.train import _parse_training
from trpo_brax.config import Config, override
from trpo_brax.errors import UserError
from trpo_brax.presets import preset
from trpo_brax.runs.folder import RunFolder


def test_the_trainer_is_given_the_configuration_and_an_environment_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = override(preset("ant"), num_seeds=3, max_kl=0.3, spread_initial_steps=False, environment="a.b:C")
    seen: list[list[str]] = []

    def trainer(words: list[str], **_: Any) -> contextlib.nullcontext[None]:
        seen.append(words)
        RunFolder(tmp_path / "run").metrics_file.write_text("a record")
        return contextlib.nullcontext()

    monkeypatch.setattr(subprocess, "Popen", trainer)
    start._start(config, tmp_path / "run", tmp_path / "cache")
    given = {"num_seeds": 1, "total_steps": 1, "final_evaluation_episodes": 0}
    assert RunFolder(tmp_path / "run").read_config() == override(config, **given)
    read = _parse_training(seen[0][4:])
    assert read.resume and (read.environment, read.runtime.compilation_cache) == ("a.b:C", str(tmp_path / "cache"))


def test_the_first_start_is_cold_and_the_others_share_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, caches, folders = iter([31.0, 9.0, 4.0, 5.0]), [], []

    def fake(config: Config, folder: Any, cache: Any) -> float:
        caches.append(cache)
        folders.append(folder)
        return next(seconds)

    monkeypatch.setattr(start, "_start", fake)
    assert start.first_iteration_seconds(Config()) == {"cold": 31.0, "warm": 5.0}
    assert len(set(caches)) == 1
    assert all(one != other for one, other in itertools.combinations(folders, 2))


@pytest.mark.slow
def test_the_trainer_starts_and_leaves_a_record() -> None:
    seconds = start.first_iteration_seconds(tiny_config(environment="tests.tiny_environments:PointMass"))
    assert set(seconds) == {"cold", "warm"}


@pytest.mark.slow
def test_what_the_trainer_refuses_is_told_in_its_own_sentence() -> None:
    with pytest.raises(UserError, match=r"^[^:]*tests\.nothing"):
        start.first_iteration_seconds(tiny_config(environment="tests.nothing:Environment"))
