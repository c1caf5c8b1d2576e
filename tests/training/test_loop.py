"""The host loop: run folders, resume equal to never having stopped, and what a fault in the world leaves behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import trpo_brax as tb
from tests.references import mean_of_clipped
from tests.tiny_environments import Fault, Faulty, PointMass
from tests.tiny_programs import assert_bit_identical, tiny_config
from tests.tiny_runs import killed_copy, last_state, without_clock
from trpo_brax.deployment import export, verify
from trpo_brax.environments.making import make_task
from trpo_brax.errors import RunFolderError, TaskError
from trpo_brax.host.console import Console
from trpo_brax.learner.program import Program
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.training.loop import train
from trpo_brax.training.schedule import annealing_doubts


def total(iterations: int) -> int:
    return 8 * 10 * iterations


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tb.Run:
    """Seven iterations in one go: an odd number, off the checkpoints' interval."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    return tb.train(tiny_config(total_steps=total(7)), environment=PointMass(), run_dir=folder)


def test_two_runs_that_nobody_named_begin_in_one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its folder, of which only the second's name has a number; both are left where training would begin."""

    def leave(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "NOW")
    monkeypatch.setattr("trpo_brax.training.loop.Session", leave)
    for seed in (3, 3, 4):
        with pytest.raises(ZeroDivisionError):
            tb.train(tiny_config(seed=seed), environment=PointMass())
    folders = {"PointMass-3-NOW": 3, "PointMass-3-NOW-2": 3, "PointMass-4-NOW": 4}
    assert {path.name: tb.Run.load(path).config.seed for path in Path("runs").iterdir()} == folders


def test_peer_defect_10_resume_is_bit_identical_to_never_having_stopped(uninterrupted: tb.Run, tmp_path: Path) -> None:
    """Brax PPO, Stoix and rsl_rl save neither optimiser, random state nor environments: training dips on resume."""
    for iterations in (1, 4, 7):
        config = tiny_config(total_steps=total(iterations), checkpoint_every=3)
        run = tb.train(config, environment=PointMass(), run_dir=tmp_path / "run", resume=iterations > 1)
    assert_bit_identical(last_state(run), last_state(uninterrupted))
    assert without_clock(run) == without_clock(uninterrupted)


def test_when_a_run_was_stopped_does_not_decide_which_policy_is_best(tmp_path: Path) -> None:
    """A stop saves off the interval; such a checkpoint must not compete for best with those on it."""
    folders = {"whole": (6,), "stopped": (3, 6)}
    for name, ends in folders.items():
        for end in ends:
            config = tiny_config(total_steps=total(end), checkpoints_to_keep=9)
            tb.train(config, environment=PointMass(), run_dir=tmp_path / name, resume=end > ends[0])
    best = {}
    for name in folders:
        best[name] = Checkpoints(tmp_path / name / "checkpoints", config).resolve("best")
    assert best["whole"] == best["stopped"]
    assert best["whole"] in (2, 4, 6)


def test_the_last_policy_may_be_the_best_off_the_interval_too(tmp_path: Path) -> None:
    """Of 5 iterations the checkpoints of 2 and 4 compete, and that of 5, unless 5 is where a longer run was stopped."""
    config = tiny_config(total_steps=total(5), checkpoints_to_keep=9, eval_every=1, eval_episodes=4)
    run = tb.train(config, environment=PointMass(), run_dir=tmp_path / "run")
    returns = {row["iteration"]: row["evaluation_return_mean"] for row in run.metrics()}
    competing = {iteration: returns[iteration] for iteration in (2, 4, 5)}
    assert run.checkpoints.resolve("best") == max(competing, key=competing.__getitem__)
    ranked = [run.checkpoints.rank(iteration, 0) for iteration in run.checkpoints.iterations()]
    assert ranked == [(True, pytest.approx(returns[iteration])) for iteration in run.checkpoints.iterations()]
    stopped = Checkpoints(run.path / "checkpoints", tb.override(config, total_steps=total(6)))
    assert stopped.rank(5, 0) is None and stopped.resolve("best") in (2, 4)


def test_the_last_policy_is_evaluated_where_the_best_cannot_be_told(tmp_path: Path) -> None:
    """A manifest that the disk lost is warned of, and the run has finished all the same."""
    said = io.StringIO()

    def lose(steps: int, _: dict[str, Any]) -> None:
        if steps == total(5):
            (tmp_path / "run" / "checkpoints" / "2" / "manifest.json").write_text("{")

    config = tiny_config(total_steps=total(5), final_evaluation_episodes=4)
    task = {"environment": PointMass(), "run_dir": tmp_path / "run", "progress_fn": lose}
    run = train(config, **task, console=Console(said))
    assert run.summary["status"] == "finished" and run.summary["evaluation"]["episodes"] == 4
    assert "The best policy was not evaluated: checkpoint" in said.getvalue()


def test_what_is_led_goes_on_where_it_was(tmp_path: Path) -> None:
    """Noise and region are linear over five iterations and then stay, of both seeds, however a run is stopped."""
    led = {"final_log_std": -2.0, "final_max_kl": 0.001, "anneal_steps": total(5), "num_seeds": 2}
    runs = {}
    for name, ends in {"whole": (6,), "stopped": (3, 6)}.items():
        for end in ends:
            config = tiny_config(total_steps=total(end), checkpoints_to_keep=9, **led)
            runs[name] = tb.train(config, environment=PointMass(), run_dir=tmp_path / name, resume=end > ends[0])
    assert without_clock(runs["whole"]) == without_clock(runs["stopped"])
    for row in runs["whole"].metrics():
        assert row["max_kl"] == pytest.approx(0.01 - 0.009 * min(row["iteration"] - 1, 5) / 5)
    for iteration in (2, 4, 6):
        for seed in (0, 1):
            log_std = runs["stopped"].policy(iteration, policy_seed=seed).parameters["params"]["log_std"]
            np.testing.assert_allclose(log_std, -0.5 - 1.5 * min(iteration, 5) / 5, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"total_steps": total(39)}, ["Training ends before"]),
        ({"final_log_std": -4.5}, ["alone moves the policy by 0.021 nats", "more than the 0.01 "]),
        ({"final_log_std": -4.5, "final_max_kl": 0.03}, []),
    ],
)
def test_what_is_led_too_fast_or_not_to_its_end_is_said(changes: dict[str, float], said: list[str]) -> None:
    """0.1 less of two components' log deviation is 2 ((exp(0.2) - 1) / 2 - 0.1) = 0.0214 nats; half that, 0.0052."""
    led = {"total_steps": total(40), "anneal_steps": total(40), "final_log_std": -2.5} | changes
    doubts = " ".join(annealing_doubts(tiny_config(**led), 2))
    assert bool(doubts) == bool(said)
    assert all(part in doubts for part in said), doubts


def test_resume_after_a_crash_cuts_the_metrics_back_to_the_checkpoint(uninterrupted: tb.Run, tmp_path: Path) -> None:
    """A killed trainer leaves metrics newer than its checkpoint, and a line cut short."""
    folder = tmp_path / "run"
    tb.train(tiny_config(total_steps=total(4)), environment=PointMass(), run_dir=folder)
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({**uninterrupted.metrics()[4], "kl_mean": -1.0}) + "\n" + '{"iteration": 6, "env_')
    run = tb.train(tiny_config(total_steps=total(7)), environment=PointMass(), run_dir=folder, resume=True)
    assert without_clock(run) == without_clock(uninterrupted)


def test_resume_without_a_checkpoint_starts_from_iteration_0(uninterrupted: tb.Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tb.train(tiny_config(total_steps=total(2)), environment=PointMass(), run_dir=folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    run = tb.train(tiny_config(total_steps=total(7)), environment=PointMass(), run_dir=folder, resume=True)
    assert without_clock(run) == without_clock(uninterrupted)


def test_resuming_a_finished_run_changes_nothing(uninterrupted: tb.Run) -> None:
    before = {file: file.read_bytes() for file in uninterrupted.path.rglob("*") if file.is_file()}
    run = tb.train(uninterrupted.config, environment=PointMass(), run_dir=uninterrupted.path, resume=True)
    after = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    changed = {file.name for file in before.keys() | after.keys() if before.get(file) != after.get(file)}
    assert not changed


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 4)])
def test_another_number_of_devices_may_resume(uninterrupted: tb.Run, tmp_path: Path, before: int, after: int) -> None:
    folder = tmp_path / "run"
    tb.train(tiny_config(total_steps=total(2), cpu_devices=before), environment=PointMass(), run_dir=folder)
    config = tiny_config(total_steps=total(7), cpu_devices=after)
    run = tb.train(config, environment=PointMass(), run_dir=folder, resume=True)
    for ours, theirs in zip(without_clock(run), without_clock(uninterrupted), strict=True):
        np.testing.assert_allclose(ours["kl_mean"], theirs["kl_mean"], rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("field", [{"seed": 1}, {"max_kl": 0.5}, {"num_envs": 16}, {"initial_log_std": 0.0}])
def test_what_shapes_learning_may_not_change_on_resume(uninterrupted: tb.Run, field: dict[str, Any]) -> None:
    config = tb.override(uninterrupted.config, total_steps=total(9), **field)
    with pytest.raises(RunFolderError, match=next(iter(field))):
        tb.train(config, environment=PointMass(), run_dir=uninterrupted.path, resume=True)


def test_the_run_folder_is_complete(uninterrupted: tb.Run) -> None:
    names = {path.name for path in uninterrupted.path.iterdir()}
    assert names == {
        "config.json",
        "task.json",
        "provenance.json",
        "metrics.jsonl",
        "summary.json",
        "learning_curve.png",
        "training.png",
        "checkpoints",
        "tensorboard",
    }
    kept = {path.name for path in (uninterrupted.path / "checkpoints").iterdir()}
    assert {"4", "6", "7"} <= kept and len(kept) <= 4, "the latest three, and the best"
    assert [row["iteration"] for row in uninterrupted.metrics()] == list(range(1, 8))
    assert [row["env_steps"] for row in uninterrupted.metrics()] == [80 * k for k in range(1, 8)]
    assert uninterrupted.summary["status"] == "finished"


def test_a_loaded_policy_acts_as_the_trained_one(uninterrupted: tb.Run) -> None:
    """Against a forward pass in NumPy from the arrays of the checkpoint."""
    state = last_state(uninterrupted)
    observation = np.array([0.3, -0.7])
    policy = tb.Run.load(uninterrupted.path).policy("latest")
    std = np.sqrt(np.maximum(state.statistics.squares / state.statistics.count, 1e-8))
    hidden = np.clip((observation - state.statistics.mean) / std, -10, 10)
    layers = state.policy["params"]["MultilayerPerceptron_0"]
    hidden = np.tanh(hidden @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
    mean = np.tanh(hidden @ layers["output"]["kernel"] + layers["output"]["bias"])
    acted = mean_of_clipped(mean, np.exp(state.policy["params"]["log_std"]))
    np.testing.assert_allclose(policy(observation), acted, rtol=1e-5, atol=1e-6)


def test_a_signal_stops_the_run_with_everything_saved(uninterrupted: tb.Run, tmp_path: Path) -> None:
    class Interrupting(Console):
        def iteration(self, record: dict[str, Any], total_iterations: int, seconds_left: float) -> None:
            if record["iteration"] == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "run"
    config = tiny_config(total_steps=total(7))
    run = tb.train(config, environment=PointMass(), run_dir=folder, console=Interrupting())
    assert run.summary["status"] == "stopped"
    assert run.summary["signal"] == signal.SIGTERM
    assert 1 <= run.summary["iterations"] < 7
    run = tb.train(config, environment=PointMass(), run_dir=folder, resume=True)
    assert run.summary["status"] == "finished"
    assert_bit_identical(last_state(run), last_state(uninterrupted))
    assert without_clock(run) == without_clock(uninterrupted)


@pytest.mark.parametrize(
    ("stage", "iterations", "ending"),
    [
        ("Compiling", 0, "Stopped before the first iteration, with nothing to save"),
        ("Evaluating", 7, "Stopped and saved"),
        ("Restoring", 7, "Stopped before another iteration, with the checkpoint of iteration 7 as it was"),
    ],
)
def test_a_signal_outside_the_iterations_stops_there(
    stage: str, iterations: int, ending: str, uninterrupted: tb.Run, tmp_path: Path
) -> None:
    """It is honoured once the compilation ends, and on the evaluation's way; a resume brings what is missing."""
    told = io.StringIO()

    class Interrupting(Console):
        @contextlib.contextmanager
        def stage(self, text: str) -> Iterator[None]:
            with super().stage(text):
                if text.startswith(stage):
                    os.kill(os.getpid(), signal.SIGINT)
                yield

    folder = tmp_path / "run"
    config = tiny_config(total_steps=total(7), final_evaluation_episodes=4)
    if resume := stage == "Restoring":
        killed_copy(uninterrupted, folder)
    run = tb.train(config, environment=PointMass(), run_dir=folder, resume=resume, console=Interrupting(told))
    assert (run.summary["status"], run.summary["signal"]) == ("stopped", signal.SIGINT)
    assert run.summary["iterations"] == run.summary["saved_iteration"] == iterations
    assert run.summary["evaluation"] is None
    assert told.getvalue().splitlines()[-1] == f"{ending}: {folder}"
    told.truncate(0)
    run = tb.train(config, environment=PointMass(), run_dir=folder, resume=True, console=Console(told))
    assert "Warning" not in told.getvalue() and not (folder / "quarantine").exists()
    assert run.summary["status"] == "finished" and run.summary["evaluation"]["episodes"] == 4
    assert without_clock(run) == without_clock(uninterrupted)


def test_a_tasks_name_stands_for_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tb.Config] = []

    def refuse(config: tb.Config, environment: Any) -> None:
        asked.append(config)
        raise TaskError("enough")

    monkeypatch.setattr("trpo_brax.training.loop.make_task", refuse)
    with pytest.raises(tb.UserError, match="enough"):
        tb.train("hopper", run_dir=tmp_path / "run")
    assert asked == [tb.preset("hopper")] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tb.train(42), "config must be a Config or the name of a task, not 42."),
        (lambda: tb.train("hoper"), "unknown task 'hoper'; did you mean hopper or pusher or reacher?"),
        (lambda: tb.train("hopper", run_dir=3), "run_dir must be a path, not 3."),
        (lambda: tb.train("hopper", progress_fn=3), "progress_fn must be callable, not 3."),
        (
            lambda: tb.override("hopper", num_envs=4),
            "config must be a Config, such as preset() returns for a task, not 'hopper'.",
        ),
        (lambda: tb.preset(["hopper"]), "task must be the name of a task, not ['hopper']."),
        (lambda: tb.Run.load(3), "run must be a Run or the path of its folder, not 3."),
        (lambda: tb.evaluate(None), "run must be a Run or the path of its folder, not None."),
        (lambda: tb.evaluate("nowhere"), "there is no run folder nowhere."),
        (lambda: tb.certify("nowhere"), "there is no run folder nowhere."),
        (lambda: export("nowhere"), "there is no run folder nowhere."),
        (lambda: verify(3, "nowhere"), "artifact must be an Artifact or its path, not 3."),
    ],
)
def test_what_a_function_cannot_take_is_one_sentence(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(tb.UserError) as refusal:
        call()
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"episodes": 10.5}, "episodes must be a whole number, not 10.5."),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5."),
        ({"failure": 3}, "failure must be a Failure or its text, not 3."),
        ({"settings": 1000}, "settings must be a Certification, not 1000."),
        ({"settings": None, "output": 3}, "output must be a path, not 3."),
    ],
)
def test_what_a_run_cannot_be_asked_is_one_sentence(
    options: dict[str, Any], sentence: str, uninterrupted: tb.Run
) -> None:
    with pytest.raises(tb.UserError) as refusal:
        (tb.certify if "settings" in options else tb.evaluate)(uninterrupted, environment=PointMass(), **options)
    assert str(refusal.value) == sentence


def test_progress_is_told_in_copies_and_changes_nothing(uninterrupted: tb.Run, tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, Any]]] = []

    def progress(env_steps: int, record: dict[str, Any]) -> None:
        told.append((env_steps, json.loads(json.dumps(record))))
        record["environment"].clear()
        record.clear()

    config = tiny_config(total_steps=total(7))
    run = tb.train(config, environment=PointMass(), run_dir=tmp_path / "run", progress_fn=progress)
    assert told == [(row["env_steps"], row) for row in run.metrics()]
    assert without_clock(run) == without_clock(uninterrupted)


@pytest.mark.parametrize("error", [ValueError("enough"), SystemExit(3)])
def test_what_a_progress_function_raises_comes_out_once_the_run_is_saved(
    error: BaseException, uninterrupted: tb.Run, tmp_path: Path
) -> None:
    steps: list[int] = []

    def progress(env_steps: int, record: dict[str, Any]) -> None:
        steps.append(env_steps)
        if env_steps == total(3):
            raise error

    folder, config = tmp_path / "run", tiny_config(total_steps=total(7))
    with pytest.raises(type(error)) as caught:
        tb.train(config, environment=PointMass(), run_dir=folder, progress_fn=progress)
    assert caught.value is error and steps == [total(1), total(2), total(3)]
    summary = tb.Run.load(folder).summary
    assert summary["status"] == "failed" and 3 <= summary["iterations"] == summary["saved_iteration"] < 7
    kept = f"the newest checkpoint is that of iteration {summary['iterations']}"
    assert summary["failure"] == f"progress_fn raised {type(error).__name__}; {kept}"
    assert error.__notes__ == [f"{folder}: {summary['failure']}."]
    run = tb.train(config, environment=PointMass(), run_dir=folder, resume=True)
    assert_bit_identical(last_state(run), last_state(uninterrupted))
    assert without_clock(run) == without_clock(uninterrupted)


def test_peer_defect_11_a_bad_batch_does_not_end_a_long_run(tmp_path: Path) -> None:
    """Baselines and OmniSafe assert that everything is finite, and a run of hours dies of one batch.

    Here a third of all episodes turn NaN: training goes on, nothing is poisoned, and the faults are counted.
    """
    environment = Faulty(Fault("observation", one_in=3))
    run = tb.train(tiny_config(total_steps=total(5)), environment=environment, run_dir=tmp_path / "run")
    assert len(run.metrics()) == 5
    assert all(row["nonfinite_envs"] > 0 for row in run.metrics())
    assert {row["step_outcome"] for row in run.metrics()} <= {"warm_up", "accepted", "no_improvement", "kl_exceeded"}
    policy = run.policy("latest")
    for leaf in jax.tree.leaves((policy.parameters, policy.statistics)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("reward", [1e30, 3e38])
def test_rewards_beyond_single_precision_do_not_end_a_run(reward: float, tmp_path: Path) -> None:
    """They cannot be squared, or add up to infinity: a mean may be null; training goes on, and nothing is learned."""
    environment = Faulty(Fault("reward", value=reward), Fault("reward", value=reward, step=4))
    run = tb.train(tiny_config(total_steps=total(5)), environment=environment, run_dir=tmp_path / "run")
    assert len(run.metrics()) == 5
    assert run.metrics()[-1]["episodes"] > 0
    assert (run.metrics()[-1]["episode_return_mean"] is None) == (reward == 3e38)
    assert {row["step_outcome"] for row in run.metrics()} == {"non_finite"}
    assert {row["reward_max_abs"] for row in run.metrics()} == {float(np.float32(reward))}
    assert {row["kl_mean"] for row in run.metrics()} == {0.0}
    assert all(row["normalisation_kl"] < 1e-9 for row in run.metrics()[1:]), "parameters follow the statistics alone"
    assert run.summary["findings"][0]["name"] == "reward_scale"
    policy = run.policy("latest")
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((policy.parameters, policy.statistics)))


def test_every_environment_non_finite_leaves_the_parameters_bit_identical(tmp_path: Path) -> None:
    environment = Faulty(Fault("reward", step=1))
    config = tiny_config(total_steps=total(3), max_nonfinite_share=1.0)
    run = tb.train(config, environment=environment, run_dir=tmp_path / "run")
    assert {row["step_outcome"] for row in run.metrics()} == {"warm_up"}, "no observation has ever been seen"
    assert len({row["parameter_fingerprint"] for row in run.metrics()}) == 1
    assert all(row["episode_return_mean"] is None for row in run.metrics())


@pytest.mark.parametrize("limit", [0.2, 0.5])
def test_too_many_non_finite_transitions_stop_the_run(limit: float, tmp_path: Path) -> None:
    """Every first step pays NaN: no transition is left, and the first iteration is the last."""
    environment = Faulty(Fault("reward", step=1))
    config = tiny_config(total_steps=total(3), max_nonfinite_share=limit)
    with pytest.raises(tb.UserError, match=r"100\.0% of the transitions of iteration 1 were not finite") as caught:
        tb.train(config, environment=environment, run_dir=tmp_path / "run")
    assert f"max_nonfinite_share allows ({limit:.1%})" in str(caught.value)
    assert "there is no checkpoint" in str(caught.value)
    assert caught.value.exit_status == 1
    run = tb.Run.load(tmp_path / "run")
    assert run.summary["status"] == "failed" and run.summary["failure"] in str(caught.value)
    assert [row["iteration"] for row in run.metrics()] == [1]
    assert not (tmp_path / "run" / "checkpoints").exists()
    # The limit may be lifted, by who knows what that means.
    lifted = tb.train(
        tb.override(config, max_nonfinite_share=1.0), environment=environment, run_dir=tmp_path / "run", resume=True
    )
    assert lifted.summary["status"] == "finished"


def test_a_share_below_the_limit_goes_on_and_is_counted(tmp_path: Path) -> None:
    environment = Faulty(Fault("physics", step=3, one_in=5))
    run = tb.train(tiny_config(total_steps=total(4)), environment=environment, run_dir=tmp_path / "run")
    shares = [row["nonfinite_share"] for row in run.metrics()]
    counts = [row["nonfinite_envs"] for row in run.metrics()]
    assert run.summary["status"] == "finished"
    assert any(0 < share <= 0.5 for share in shares)
    assert all((share > 0) == (count > 0) for share, count in zip(shares, counts, strict=True))


EVERY_FAULT = [
    Fault(part, value, step, one_in=prime)
    for (part, value, step), prime in zip(
        [
            (part, value, step)
            for part in ("observation", "reward", "physics")
            for value in (float("nan"), float("inf"))
            for step in (0, 2)
        ],
        (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47),
        strict=True,
    )
]
"""NaN and infinity in observation, reward and state, at reset and in a step, each in one of so many episodes."""


def test_whatever_turns_non_finite_in_whatever_way_poisons_nothing(tmp_path: Path) -> None:
    environment = Faulty(*EVERY_FAULT)
    config = tiny_config(total_steps=8 * 10 * 12, episode_length=4)
    run = tb.train(config, environment=environment, run_dir=tmp_path / "run")
    assert sum(row["nonfinite_envs"] for row in run.metrics()) >= 12
    assert sum(row["step_outcome"] == "accepted" for row in run.metrics()) >= 9
    program = Program(run.config, make_task(run.config, environment), jax.devices()[:1])
    checkpoints = Checkpoints(run.path / "checkpoints", run.config)
    state = checkpoints.restore(12, program.abstract_state, program.shardings)
    for name, leaf in jax.tree_util.tree_leaves_with_path(state):
        if np.issubdtype(leaf.dtype, np.floating):
            assert np.all(np.isfinite(leaf)), jax.tree_util.keystr(name)
    always = ("kl_mean", "kl_max", "entropy", "critic_loss", "advantage_max_abs", "damping")
    always += ("explained_variance", "explained_variance_of_returns")
    assert all(row[name] is not None for row in run.metrics() for name in always)
