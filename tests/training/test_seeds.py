"""Several seeds in one program: each is the run of that seed alone, in training, on disk and in evaluation."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import trpo_brax as tb
from tests.tiny_environments import PointMass
from tests.tiny_programs import assert_bit_identical, leaves, shared_program, tiny_config
from tests.tiny_runs import without_clock
from trpo_brax.cli import main
from trpo_brax.environments import Task
from trpo_brax.errors import ConfigError
from trpo_brax.host.console import Console
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.saving import CheckpointSaver

SEEDS = (5, 6, 7)
CONFIG = tiny_config(seed=5, num_seeds=3, final_evaluation_episodes=6)


def own(index: int, tree: Any) -> Any:
    """Return one seed's part of a tree whose leaves lead with [K]."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def train(folder: Path, config: tb.Config = CONFIG, **options: Any) -> tb.Run:
    console = options.pop("console", Console(io.StringIO()))
    return tb.train(config, environment=PointMass(), run_dir=folder, console=console, **options)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tb.Run:
    return train(tmp_path_factory.mktemp("seeds") / "run")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tb.Run]:
    folder = tmp_path_factory.mktemp("alone")
    return {seed: train(folder / f"{seed}", tb.override(CONFIG, seed=seed, num_seeds=1)) for seed in SEEDS}


@pytest.mark.parametrize("devices", [1, 4])
def test_a_seed_among_others_is_that_seed_alone_to_rounding(point_mass: Task, devices: int) -> None:
    """Draws are the same bit for bit; two iterations of products in another order agree to rounding."""
    several = shared_program(CONFIG, point_mass, jax.devices()[:devices])
    start = several.initial_state()
    starts = jax.device_get(start)
    states, metrics = jax.device_get(several.run(start, 2))
    alone = [
        shared_program(tb.override(CONFIG, seed=s, num_seeds=1), point_mass, jax.devices()[:devices]) for s in SEEDS
    ]
    for index, single in enumerate(alone):
        first = single.initial_state()
        assert_bit_identical(own(index, starts.key), jax.device_get(first.key))
        expected_start = leaves(first)
        # What advances a state is the same program for every seed.
        state, expected = jax.device_get(alone[0].run(first, 2))
        for name, leaf in leaves(own(index, starts)).items():
            np.testing.assert_allclose(leaf, expected_start[name], rtol=1e-5, atol=1e-6, err_msg=name)
        for name, leaf in leaves(own(index, states)).items():
            np.testing.assert_allclose(leaf, leaves(state)[name], rtol=1e-3, atol=1e-4, err_msg=name)
        assert metrics["step_outcome"][:2, index].tolist() == expected["step_outcome"][:2].tolist()
        np.testing.assert_allclose(metrics["kl_mean"][:2, index], expected["kl_mean"][:2], rtol=1e-2, atol=1e-6)


def test_environments_of_several_seeds_are_sharded_and_only_reductions_cross_devices(point_mass: Task) -> None:
    program = shared_program(CONFIG, point_mass, jax.devices()[:4])
    state, _ = program.run(program.initial_state(), 1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, shard = jax.tree_util.keystr(path), leaf.addressable_shards[0].data.shape
        assert leaf.shape[0] == 3, name
        wanted = (3, leaf.shape[1] // 4, *leaf.shape[2:]) if name.startswith(".environments") else leaf.shape
        assert shard == wanted, name
    text = program._compiled.as_text()
    for operation in ("all-to-all", "collective-permute", "all-gather"):
        assert f" {operation}(" not in text, operation


def test_every_iteration_has_a_record_for_every_seed(together: tb.Run, alone: dict[int, tb.Run]) -> None:
    rows = without_clock(together)
    assert [(row["iteration"], row["seed"]) for row in rows] == [(k, s) for k in (1, 2, 3, 4) for s in SEEDS]
    for seed in SEEDS:
        ours, theirs = [row for row in rows if row["seed"] == seed], without_clock(alone[seed])
        assert [row["env_steps"] for row in ours] == [row["env_steps"] for row in theirs] == [80, 160, 240, 320]
        # The first iteration's rollout starts from the same parameters: the same episodes end in it.
        assert ours[0]["episodes"] == theirs[0]["episodes"]
        assert ours[0]["episode_return_mean"] == pytest.approx(theirs[0]["episode_return_mean"], rel=1e-5)


def test_each_seed_has_its_own_policy_and_evaluation(together: tb.Run, alone: dict[int, tb.Run]) -> None:
    observation = np.array([0.4, -0.2], np.float32)
    actions = {seed: np.asarray(together.policy(policy_seed=seed)(observation)) for seed in SEEDS}
    assert len({float(action[0]) for action in actions.values()}) == 3
    np.testing.assert_array_equal(together.policy()(observation), actions[5])
    for seed in SEEDS:
        np.testing.assert_allclose(actions[seed], alone[seed].policy()(observation), rtol=0.02, atol=1e-3)
    entries = {entry["seed"]: entry for entry in together.summary["seeds"]}
    assert list(entries) == list(SEEDS)
    for seed in SEEDS:
        again = tb.evaluate(together, episodes=6, policy_seed=seed, environment=PointMass())
        assert entries[seed]["evaluation"] == pytest.approx(again.to_dict())
    means = [entry["evaluation"]["return_mean"] for entry in entries.values()]
    assert together.summary["evaluation"]["episodes"] == 18
    assert together.summary["evaluation"]["return_mean"] == pytest.approx(np.mean(means))
    assert together.summary["evaluation"]["return_min"] == min(e["evaluation"]["return_min"] for e in entries.values())


def test_the_best_checkpoint_is_each_seeds_own(tmp_path: Path, point_mass: Task) -> None:
    """Returns by hand: seed 5 was best at 10, seed 6 at 20, seed 7 ended its only episode in time for 20."""
    program = shared_program(CONFIG, point_mass, jax.devices()[:1])
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), program.abstract_state)
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    saver = CheckpointSaver(folder, tb.override(CONFIG, checkpoints_to_keep=1))
    returns_at = {10: {5: 9.0, 6: 1.0}, 20: {5: 3.0, 6: 8.0, 7: 1.0}, 30: {5: 2.0, 6: 2.0}, 40: {}}
    for iteration, returns in returns_at.items():
        assert saver.save(iteration, zeros.replace(iteration=np.full(3, iteration, np.int32)), returns) is None
    saver.close()
    reader = Checkpoints(folder.checkpoints, CONFIG)
    assert reader.iterations() == [10, 20, 40]
    assert [reader.resolve("best", seed) for seed in SEEDS] == [10, 20, 20]
    assert reader.resolve("best") == 10


def test_resume_of_several_seeds_is_bit_identical_to_never_having_stopped(together: tb.Run, tmp_path: Path) -> None:
    class Interrupting(Console):
        def iteration(self, record: dict[str, Any], total_iterations: int, seconds_left: float) -> None:
            if record["iteration"] == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    told: list[tuple[int, int]] = []
    progress = lambda env_steps, record: told.append((record["seed"], env_steps))
    stopped = train(tmp_path / "run", console=Interrupting(io.StringIO()), progress_fn=progress)
    assert stopped.summary["status"] == "stopped"
    assert told == [(row["seed"], row["env_steps"]) for row in stopped.metrics()]
    resumed = train(tmp_path / "run", resume=True)
    assert without_clock(resumed) == without_clock(together)
    for seed in SEEDS:
        assert_bit_identical(resumed.policy(policy_seed=seed).parameters, together.policy(policy_seed=seed).parameters)


@pytest.mark.parametrize("changed", [{"num_seeds": 2}, {"num_seeds": 1}, {"seed": 4}])
def test_other_seeds_are_another_run(together: tb.Run, changed: dict[str, int]) -> None:
    config = tb.override(together.config, total_steps=10**6, **changed)
    with pytest.raises(tb.UserError, match=next(iter(changed))):
        train(together.path, config, resume=True)


def test_a_seed_that_was_not_trained_is_refused(together: tb.Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"policy_seed must be one of the run's seeds, 5 to 7, not 8"):
        together.policy(policy_seed=8)
    words = ["evaluate", str(together.path), "--policy-seed", "4", "--environment", "tests.tiny_environments:PointMass"]
    assert main(words) == 2
    assert "5 to 7, not 4" in capsys.readouterr().err


def test_the_command_line_evaluates_the_seed_asked_for(together: tb.Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(together.path), "--environment", "tests.tiny_environments:PointMass"]
    assert main([*words, "--episodes", "6", "--policy-seed", "7", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    wanted = next(entry for entry in together.summary["seeds"] if entry["seed"] == 7)["evaluation"]
    assert {name: report[name] for name in wanted} == pytest.approx(wanted)


def test_seeds_beyond_32_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_seeds"):
        tb.override(tb.Config(), seed=2**32 - 2, num_seeds=3)
    assert list(tb.override(tb.Config(), seed=2**32 - 2, num_seeds=2).seeds) == [2**32 - 2, 2**32 - 1]
