"""Starts of the trainer in processes of their own."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from tests.tiny_programs import tiny_config
from trpo_brax.benchmark import start
from trpo_brax.cli.train import _parse_training
from trpo_brax.config import Config, override
from trpo_brax.errors import UserError
from trpo_brax.presets import preset


@pytest.mark.parametrize(
    "config",
    [
        preset("hopper"),
        tiny_config(),
        override(preset("ant"), num_envs=64, cpu_devices=2, spread_initial_steps=False, max_kl=0.3, backend="mjx"),
        override(Config(), environment="a.b:C", action_low=-2.0, action_high=0.5, policy_hidden_sizes=(7, 5, 3)),
    ],
)
def test_the_trainer_reads_the_options_as_the_same_configuration(config: Config) -> None:
    read = _parse_training(start.training_options(config))
    again = Config(**{field.name: getattr(read, field.name) for field in dataclasses.fields(Config)})
    same = {"total_steps": 1, "final_evaluation_episodes": 0}
    assert override(again, **same) == override(config, **same)


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
