"""Checkpoints: every bit comes back, the right ones are kept, and nothing that does not fit gets in."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.references import mean_of_clipped
from tests.tiny_environments import EveryType
from tests.tiny_runs import TINY, arbitrary_state, contents, tiny_program, train_tiny
from trpo_brax.config import MOST_CHARACTERS, MOST_METRICS, Config, override, to_dict
from trpo_brax.environments import own_task
from trpo_brax.errors import CheckpointError, UserError
from trpo_brax.learner.program import Program
from trpo_brax.learner.state import TrainState
from trpo_brax.runs import saving
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.files import write_json
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.run import Run
from trpo_brax.runs.saving import CheckpointSaver, save_arrays
from trpo_brax.runs.storage import read_arrays


@pytest.fixture(scope="module")
def program() -> Program:
    """Return the tiny program; it is never compiled here."""
    return tiny_program()


@pytest.fixture(scope="module")
def saved(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with checkpoints 3 and 7 of arbitrary states; tests that damage it copy it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    fill(directory, program, {3: 1.0, 7: 0.5})
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a trained tiny run."""
    return train_tiny(tmp_path_factory.mktemp("trained") / "run")


def state_at(program: Program, iteration: int) -> TrainState:
    """Return an arbitrary state that says it is at `iteration`."""
    return arbitrary_state(program, iteration).replace(iteration=np.int32(iteration))


def fill(directory: Path, program: Program, returns: dict[int, float | None], keep: int = 100) -> None:
    """Save an arbitrary state for each iteration."""
    for iteration, training_return in returns.items():
        ranked = {} if training_return is None else {0: training_return}
        save(directory, program.config, state_at(program, iteration), ranked, keep)


def save(directory: Path, config: Config, state: TrainState, ranked: dict[int, float], keep: int = 100) -> None:
    """Save one state under its iteration in a run folder's `checkpoints`."""
    folder = RunFolder(directory.parent)
    assert directory == folder.checkpoints
    config = override(config, checkpoints_to_keep=keep)
    if not folder.config_file.exists():
        folder.path.mkdir(exist_ok=True)
        write_json(folder.config_file, to_dict(config))
    saver = CheckpointSaver(folder, config)
    assert saver.save(int(state.iteration), state, ranked) is None
    assert saver.settle() is None
    assert saver.saved == int(state.iteration)
    saver.close()


def assert_same_bits(ours: Any, theirs: Any) -> None:
    """Compare structure, dtype, shape and every bit: NaN equals only the same NaN, 0 is not -0."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    theirs = jax.tree.map(np.asarray, theirs)
    ours = jax.tree.map(np.asarray, ours)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), jax.tree_util.keystr(path)
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


def restore(directory: Path, program: Program, iteration: int) -> TrainState:
    """Return a whole state from disk."""
    return Checkpoints(directory, program.config).restore(iteration, program.abstract_state, program.shardings)


def test_a_save_goes_on_beside_the_writes_of_one_that_failed(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage library's threads outlive a save that failed: what they still write is in no other save's way."""
    folder = RunFolder(tmp_path / "run")
    folder.create(program.config)
    state = state_at(program, 3)
    stop = threading.Event()

    def straggle(unsealed: Path) -> None:
        while not stop.wait(1e-4):
            for path in (unsealed, unsealed.with_name(f"{unsealed.name}.orbax-checkpoint-tmp")):
                with contextlib.suppress(OSError):
                    (path / "policy").mkdir(parents=True, exist_ok=True)
                    (path / "policy" / "late").write_bytes(b"of the save that failed")

    def fail(unsealed: Path, _facts: dict[str, Any]) -> None:
        threading.Thread(target=straggle, args=(unsealed,), daemon=True).start()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saver = CheckpointSaver(folder, program.config)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(saving, "write_manifest", fail)
            assert saver.save(3, state, {}) is None
            assert saver.settle() == "No space left on device"
        assert saver.save(3, state, {}) is None
        assert saver.settle() is None
    finally:
        stop.set()
        saver.close()
    assert not list((folder.checkpoints / "3").rglob("late"))
    assert_same_bits(restore(folder.checkpoints, program, 3), state)


class TestRoundTrip:
    """What was saved is what comes back."""

    def test_every_leaf_of_the_state_bit_for_bit(self, saved: Path, program: Program) -> None:
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(program.abstract_state)}
        assert dtypes == {"float32", "int32", "uint32", "bool"}
        for iteration in (3, 7):
            assert_same_bits(state_at(program, iteration), restore(saved, program, iteration))

    def test_whatever_an_environment_may_keep(self, tmp_path: Path) -> None:
        """Types that the format of checkpoints does not know among it."""
        program = Program(TINY, own_task(EveryType(), TINY.rollout), jax.devices()[:2])
        state = program.initial_state().replace(iteration=np.int32(1))
        save(tmp_path / "checkpoints", TINY, state, {})
        restored = restore(tmp_path / "checkpoints", program, 1)
        keys = restored.environments.state.info["keys"]
        assert {impl: str(jax.random.key_impl(key)) for impl, key in keys.items()} == {impl: impl for impl in keys}
        words = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        assert_same_bits(jax.tree.map(words, state), jax.tree.map(words, restored))
        for leaf, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(program.shardings), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

    def test_many_arrays_of_long_names(self, tmp_path: Path) -> None:
        names = [f"{index:04}".ljust(MOST_CHARACTERS, "\u2603") for index in range(MOST_METRICS)]
        tree = {name: jnp.float32(index) for index, name in enumerate(names)}
        save_arrays(tmp_path / "arrays", tree)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        wanted = {name: jax.ShapeDtypeStruct((), jnp.float32, sharding=here) for name in names}
        assert_same_bits(tree, read_arrays(tmp_path / "arrays", wanted, "the folder"))

    def test_leaves_go_where_they_belong(self, saved: Path, program: Program) -> None:
        restored = restore(saved, program, 3)
        for leaf, sharding in zip(jax.tree.leaves(restored), jax.tree.leaves(program.shardings), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

    def test_the_number_of_devices_may_differ(self, saved: Path, program: Program) -> None:
        alone = Program(TINY, program.task, jax.devices()[:1])
        assert_same_bits(state_at(program, 7), restore(saved, alone, 7))

    def test_the_policy_alone(self, saved: Path, program: Program) -> None:
        checkpoints = Checkpoints(saved, TINY)
        parameters, statistics = checkpoints.restore_policy(3, program.specification)
        state = state_at(program, 3)
        assert_same_bits((state.policy, state.statistics), (parameters, statistics))

    def test_reading_changes_nothing(self, saved: Path, program: Program) -> None:
        before = contents(saved)
        restore(saved, program, 7)
        assert contents(saved) == before

    def test_no_pickle_anywhere(self, saved: Path) -> None:
        for file in saved.rglob("*"):
            assert file.suffix not in (".pkl", ".pickle", ".npz")
            if file.is_file():
                assert not file.read_bytes().startswith(b"\x80")

    def test_checkpoints_lie_under_their_iteration_with_the_configuration(self, saved: Path) -> None:
        assert {path.name for path in saved.iterdir() if path.is_dir()} == {"3", "7"}
        told = json.loads((saved / "7" / "config" / "metadata").read_text())
        assert told == json.loads(json.dumps(to_dict(override(TINY, checkpoints_to_keep=100))))


class TestWhich:
    """latest, best, or a number."""

    @pytest.mark.parametrize(
        ("returns", "latest", "best"),
        [
            ({2: 1.0, 4: 3.0, 6: 2.0}, 6, 4),
            ({2: -5.0, 4: -9.0}, 4, 2),
            ({2: 1.0, 4: None}, 4, 2),
            ({2: None, 4: None}, 4, 4),
            ({5: 0.0}, 5, 5),
        ],
    )
    def test_best_is_by_training_return(
        self, returns: dict[int, float | None], latest: int, best: int, program: Program, tmp_path: Path
    ) -> None:
        fill(tmp_path / "checkpoints", program, returns)
        checkpoints = Checkpoints(tmp_path / "checkpoints", TINY)
        assert checkpoints.iterations() == sorted(returns)
        assert (checkpoints.resolve("latest"), checkpoints.resolve("best")) == (latest, best)
        for iteration in returns:
            assert checkpoints.resolve(iteration) == checkpoints.resolve(str(iteration)) == iteration

    @pytest.mark.parametrize("which", [5, "5", "newest", "-3", "3.0", "", "../3"])
    def test_what_is_not_there_is_refused(self, which: str | int, saved: Path) -> None:
        checkpoints = Checkpoints(saved, TINY)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.resolve(which)
        sentence = str(caught.value)
        assert str(which) in sentence
        assert ("3, 7" in sentence) if which in (5, "5") else ("best" in sentence and "latest" in sentence)

    def test_no_folder_and_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="absent"):
            Checkpoints(tmp_path / "absent", TINY)
        (tmp_path / "empty").mkdir()
        checkpoints = Checkpoints(tmp_path / "empty", TINY)
        assert checkpoints.iterations() == []
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            checkpoints.resolve("latest")
        assert contents(tmp_path) == {"empty": "folder"}

    def test_a_checkpoint_half_written_does_not_count(self, saved: Path, tmp_path: Path) -> None:
        shutil.copytree(saved, tmp_path / "checkpoints")
        shutil.copytree(saved / "7", tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp-1")
        checkpoints = Checkpoints(tmp_path / "checkpoints", TINY)
        assert checkpoints.iterations() == [3, 7]


class TestKeeping:
    """The latest few and the best."""

    def test_latest_and_best_are_kept(self, program: Program, tmp_path: Path) -> None:
        fill(tmp_path / "checkpoints", program, {1: 0.0, 2: 9.0, 3: 1.0, 4: 2.0, 5: None, 6: 3.0}, keep=2)
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "5", "6"}
        assert_same_bits(state_at(program, 2), restore(tmp_path / "checkpoints", program, 2))

    def test_a_new_best_replaces_the_old(self, program: Program, tmp_path: Path) -> None:
        fill(tmp_path / "checkpoints", program, {2: 5.0, 4: 0.0, 6: 6.0, 8: 0.0, 10: 0.0}, keep=1)
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"6", "10"}

    def test_a_run_without_returns_keeps_the_latest(self, program: Program, tmp_path: Path) -> None:
        fill(tmp_path / "checkpoints", program, dict.fromkeys(range(1, 6), None), keep=2)
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "5"}


class TestForeign:
    """A checkpoint of another run is refused with the setting, or else the array, that does not fit."""

    def refused(self, directory: Path, program: Program) -> str:
        """Return the sentence that checkpoint 3 is refused with."""
        with pytest.raises(CheckpointError) as caught:
            restore(directory, program, 3)
        return str(caught.value)

    def test_another_network_size(self, saved: Path) -> None:
        wider = tiny_program(override(TINY, policy_hidden_sizes=(16,)))
        assert "policy_hidden_sizes (8,), not (16,)" in self.refused(saved, wider)
        checkpoints = Checkpoints(saved, TINY)
        with pytest.raises(CheckpointError, match=r"policy\..*8.*not .*16"):
            checkpoints.restore_policy(3, wider.specification)

    def test_another_number_of_environments(self, saved: Path) -> None:
        assert "num_envs 8, not 16" in self.refused(saved, tiny_program(override(TINY, num_envs=16)))

    def test_another_depth(self, saved: Path) -> None:
        sentence = self.refused(saved, tiny_program(override(TINY, critic_hidden_sizes=(8, 8))))
        assert "critic" in sentence

    def test_another_dtype(self, program: Program, tmp_path: Path) -> None:
        state = state_at(program, 3)
        half = state.replace(statistics=state.statistics.replace(mean=state.statistics.mean.astype(np.float16)))
        save(tmp_path / "checkpoints", TINY, half, {})
        sentence = self.refused(tmp_path / "checkpoints", program)
        assert "statistics.mean" in sentence and "float16" in sentence and "float32" in sentence

    @pytest.mark.parametrize("change", ["missing", "extra"])
    def test_another_set_of_arrays(self, change: str, program: Program, tmp_path: Path) -> None:
        state = state_at(program, 3)
        info = dict(state.environments.state.info)
        if change == "missing":
            del info["limit"]
        else:
            info["extra"] = info["limit"]
        brax = state.environments.state.replace(info=info)
        changed = state.replace(environments=state.environments.replace(state=brax))
        save(tmp_path / "checkpoints", TINY, changed, {})
        assert ("limit" if change == "missing" else "extra") in self.refused(tmp_path / "checkpoints", program)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads, once cut off
class TestDamage:
    """Whatever happens to a checkpoint's files: an error in one sentence, or the right numbers, never wrong ones."""

    @pytest.mark.parametrize("damage", ["half", "empty", "gone"])
    def test_each_file_in_turn(self, damage: str, saved: Path, program: Program, tmp_path: Path) -> None:
        wanted = state_at(program, 7)
        refused, crashes = 0, []
        for number, file in enumerate(sorted(path for path in (saved / "7").rglob("*") if path.is_file())):
            directory = tmp_path / str(number)
            shutil.copytree(saved / "7", directory / "7")
            broken = directory / "7" / file.relative_to(saved / "7")
            if damage == "gone":
                broken.unlink()
            else:
                broken.write_bytes(b"" if damage == "empty" else file.read_bytes()[: file.stat().st_size // 2])
            try:
                assert_same_bits(wanted, restore(directory, program, 7))
            except CheckpointError as error:
                refused += 1
                assert "\n" not in str(error) and str(directory) in str(error), file
            except Exception as error:
                crashes.append(f"{file.relative_to(saved)}: {type(error).__name__}: {error}"[:200])
        assert not crashes
        assert refused >= 4

    def test_a_folder_with_a_number_for_a_name_is_no_checkpoint(self, program: Program, tmp_path: Path) -> None:
        (tmp_path / "checkpoints" / "9").mkdir(parents=True)
        (tmp_path / "checkpoints" / "9" / "notes.txt").write_text("mine")
        checkpoints = Checkpoints(tmp_path / "checkpoints", TINY)
        with pytest.raises(CheckpointError, match="no complete checkpoint"):
            checkpoints.resolve("latest")


class TestPolicy:
    """A policy opens without the environment it was trained on."""

    def test_it_needs_no_environment(self, run: Run, tmp_path: Path) -> None:
        shutil.copytree(run.path, tmp_path / "run")
        data = json.loads((tmp_path / "run/config.json").read_text())
        data["environment"] = "lost.worlds:Atlantis"
        (tmp_path / "run/config.json").write_text(json.dumps(data))
        observations = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
        here, there = run.policy("latest")(observations), Run.load(tmp_path / "run").policy("latest")(observations)
        np.testing.assert_array_equal(here, there)

    def test_it_is_the_network_that_was_trained(self, run: Run) -> None:
        """Its mean action is that of a tanh network of normalised, clipped observations; in NumPy."""
        policy = run.policy("latest")
        statistics = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), policy.statistics)
        layers = {
            path[-2].key + path[-1].key: np.asarray(leaf, np.float64)
            for path, leaf in jax.tree_util.tree_leaves_with_path(policy.parameters)
            if len(path) > 2
        }
        observations = np.random.default_rng(1).normal(size=(50, 2)) * 30.0
        std = np.sqrt(statistics.squares / statistics.count)
        inputs = np.clip((observations - statistics.mean) / std, -10.0, 10.0)
        hidden = np.tanh(inputs @ layers["Dense_0kernel"] + layers["Dense_0bias"])
        mean = np.tanh(hidden @ layers["outputkernel"] + layers["outputbias"])
        actions = mean_of_clipped(mean, np.exp(np.float64(policy.parameters["params"]["log_std"])))
        np.testing.assert_allclose(policy(observations), actions, atol=1e-5)
        np.testing.assert_allclose(policy(observations[3]), actions[3], atol=1e-5)
        assert statistics.count == 4 * 64

    def test_checkpoints_differ_and_are_found_by_iteration(self, run: Run) -> None:
        latest, second, fourth = run.policy("latest"), run.policy(2), run.policy("4")
        assert_same_bits(latest.parameters, fourth.parameters)
        kernels = [np.asarray(jax.tree.leaves(policy.parameters)[1]) for policy in (second, fourth)]
        assert not np.array_equal(*kernels)

    def test_best_is_the_better_segment_of_training(self, run: Run) -> None:
        rows = run.metrics()
        segments = {
            last: np.average(
                [row["episode_return_mean"] for row in rows[last - 2 : last]],
                weights=[row["episodes"] for row in rows[last - 2 : last]],
            )
            for last in (2, 4)
        }
        best = max(segments, key=segments.__getitem__)
        assert_same_bits(run.policy("best").parameters, run.policy(best).parameters)

    @pytest.mark.parametrize(
        "text", ["{}", "[]", '{"observation_size": 3, "action_low": [-1], "action_high": [1]}', "not json", None]
    )
    def test_a_wrong_task_file_is_refused(self, text: str | None, run: Run, tmp_path: Path) -> None:
        shutil.copytree(run.path, tmp_path / "run")
        task = tmp_path / "run/task.json"
        task.unlink() if text is None else task.write_text(text)
        with pytest.raises(UserError):
            Run.load(tmp_path / "run").policy()
