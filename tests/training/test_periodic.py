"""Evaluations while training: they change nothing of it, are of the policy of their iteration, and rank checkpoints."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.tiny_environments import History
from tests.tiny_runs import TINY, train_tiny
from trpo_brax.config import Config, override
from trpo_brax.environments import own_task
from trpo_brax.evaluation import EpisodeRunner, policy_actor
from trpo_brax.host.console import Console
from trpo_brax.randomness import Stream, stream_key
from trpo_brax.runs.run import Run
from trpo_brax.training.loop import train

EVALUATED = override(TINY, eval_every=1, eval_episodes=6, checkpoints_to_keep=5)
FIGURES = ("return_mean", "return_std", "return_min", "return_cvar_05", "length_mean", "failure_rate")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run evaluated after each of its four iterations."""
    return train_tiny(tmp_path_factory.mktemp("evaluated") / "run", config=EVALUATED)


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says of the training itself, without clocks."""
    clocks = ("wall_time_s", "steps_per_second")
    return {name: value for name, value in record.items() if name not in clocks and not name.startswith("evaluation_")}


def test_the_training_is_the_same_bit_for_bit(evaluated: Run, tmp_path: Path) -> None:
    alone = train_tiny(tmp_path / "alone")
    assert [plain(row) for row in evaluated.metrics()] == [plain(row) for row in alone.metrics()]
    assert all(f"evaluation_{name}" not in row for row in alone.metrics() for name in FIGURES)
    assert evaluated.policy().fingerprint() == alone.policy().fingerprint()


@pytest.mark.parametrize("iteration", [2, 4])
def test_the_figures_are_those_of_the_checkpoint_of_that_iteration(evaluated: Run, iteration: int) -> None:
    """Run again by hand from the saved policy, on the stream's key of that iteration."""
    policy = evaluated.policy(iteration)
    key = jax.random.fold_in(stream_key(jax.random.PRNGKey(EVALUATED.seed), Stream.TRAINING_EVALUATION), iteration)
    act = policy_actor(policy.specification, stochastic=False)
    runner = EpisodeRunner(own_task(History(), EVALUATED.rollout), act, batch=6, episode_length=16)
    found = runner.run((policy.parameters, policy.statistics), key, episodes=6)
    row = evaluated.metrics()[iteration - 1]
    assert row["evaluation_return_mean"] == pytest.approx(found.returns.mean(dtype=np.float64), rel=1e-5)
    assert row["evaluation_return_min"] == pytest.approx(found.returns.min(), rel=1e-5)
    assert row["evaluation_length_mean"] == pytest.approx(found.lengths.mean(), rel=1e-5)
    assert row["evaluation_failure_rate"] == pytest.approx(found.terminated.mean(), rel=1e-5)


def test_every_evaluation_has_episodes_of_its_own(evaluated: Run) -> None:
    """History's starting states are random: equal means of two evaluations would be equal episodes."""
    means = [row["evaluation_return_mean"] for row in evaluated.metrics()]
    assert len(means) == len(set(means)) == 4 and None not in means


def test_best_is_by_evaluation(evaluated: Run) -> None:
    ranked = {
        row["iteration"]: row["evaluation_return_mean"] for row in evaluated.metrics() if not row["iteration"] % 2
    }
    assert evaluated.checkpoints.resolve("best") == max(ranked, key=lambda iteration: ranked[iteration])


def test_a_run_resumed_without_evaluations_is_ranked_by_training_again(tmp_path: Path) -> None:
    """By its latest configuration, whichever kind of return the best is chosen by; the other counts where it is all."""
    train_tiny(tmp_path / "run", config=override(EVALUATED, eval_every=2))
    more = override(EVALUATED, eval_every=0, total_steps=8 * 64)
    run = train(more, environment=History(), run_dir=tmp_path / "run", resume=True, console=Console(io.StringIO()))
    means = {}
    for at in (2, 4, 6, 8):
        rows = [row for row in run.metrics() if at - 1 <= row["iteration"] <= at and row["episodes"]]
        weights = [row["episodes"] for row in rows]
        means[at] = np.average([row["episode_return_mean"] for row in rows], weights=weights)
    assert run.checkpoints.resolve("best") == max(means, key=lambda at: means[at])


@pytest.mark.parametrize(("every", "wanted"), [(3, [2, 3, 4]), (100, [2, 4])])
def test_it_comes_on_its_own_beat_and_at_checkpoints(tmp_path: Path, every: int, wanted: list[int]) -> None:
    said = io.StringIO()
    config = override(EVALUATED, eval_every=every)
    run = train(config, environment=History(), run_dir=tmp_path / "run", console=Console(said))
    rows = run.metrics()
    assert [row["iteration"] for row in rows if row["evaluation_return_mean"] is not None] == wanted
    assert [n for n in range(1, 5) if f"Evaluation after iteration {n}:" in said.getvalue()] == wanted


def test_of_several_seeds_each_has_its_own_figures(tmp_path: Path) -> None:
    config: Config = override(EVALUATED, num_seeds=2, eval_every=4)
    rows = train_tiny(tmp_path / "run", config=config).metrics()
    last = {row["seed"]: row["evaluation_return_mean"] for row in rows if row["iteration"] == 4}
    assert sorted(last) == [0, 1] and last[0] != last[1]
    alone = train_tiny(tmp_path / "alone", config=override(EVALUATED, seed=0, eval_every=4)).metrics()
    assert last[0] == pytest.approx(alone[-1]["evaluation_return_mean"], rel=1e-3)


def test_a_resumed_run_has_the_same_figures(evaluated: Run, tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", config=override(EVALUATED, total_steps=2 * 64))
    resumed = train(
        EVALUATED, environment=History(), run_dir=tmp_path / "run", resume=True, console=Console(io.StringIO())
    )
    clock = {"wall_time_s": 0, "steps_per_second": 0}
    assert [row | clock for row in resumed.metrics()] == [row | clock for row in evaluated.metrics()]
