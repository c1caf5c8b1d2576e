"""Two real processes over `jax.distributed` train one run, and it is the run of one process over as many devices."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import trpo_brax as tb
from tests.trainers import FLAGS, OPTIONS, finish, steps, trainer
from trpo_brax.cli import main
from trpo_brax.runs.folder import RunFolder

WORDS = "--final-evaluation-episodes 6 --num-seeds 2"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def pair(folder: Path, *words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a trainer as two processes with two devices each, the second with the last of `words`."""
    together = f"{WORDS} --cpu-devices 2 --coordinator 127.0.0.1:{free_port()} --num-processes 2 --process-id"
    with (
        trainer(folder, f"{together} 0 {words[0]}") as first,
        trainer(folder, f"{together} 1 {words[-1]}") as second,
    ):
        yield [first, second]


def train_in_two(folder: Path, *words: str) -> list[tuple[int, str]]:
    """Return exit status and output of both processes."""
    with pair(folder, *words) as trainers:
        return [(one.wait(300), one.stdout.read() if one.stdout else "") for one in trainers]


def train_in_one(folder: Path, words: str) -> None:
    finish(folder, f"{WORDS} {words}")


def assert_same_to_rounding(ours: tb.Run, theirs: tb.Run) -> None:
    for row, other in zip(ours.metrics(), theirs.metrics(), strict=True):
        assert (row["iteration"], row["episodes"]) == (other["iteration"], other["episodes"])
        for name in ("kl_mean", "episode_return_mean", "critic_loss"):
            np.testing.assert_allclose(row[name], other[name], rtol=5e-3, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tb.Run:
    """Eight iterations by one process with four devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train_in_one(folder, f"{steps(8)} --cpu-devices 4")
    return tb.Run.load(folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[tb.Run, list[tuple[int, str]]]:
    """The first four of them by two processes with two devices each."""
    folder = tmp_path_factory.mktemp("together") / "run"
    outcome = train_in_two(folder, steps(4))
    assert [status for status, _ in outcome] == [0, 0], outcome
    return tb.Run.load(folder), outcome


def test_two_processes_train_the_run_of_one(together: tuple[tb.Run, list[tuple[int, str]]], alone: tb.Run) -> None:
    run, outcome = together
    assert [row["iteration"] for row in run.metrics()] == [1, 1, 2, 2, 3, 3, 4, 4], (
        "each iteration is recorded by one process"
    )
    for row, other in zip(run.metrics(), alone.metrics(), strict=False):
        for name in ("kl_mean", "episode_return_mean", "critic_loss"):
            np.testing.assert_allclose(row[name], other[name], rtol=5e-3, atol=1e-5, err_msg=name)
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert provenance["processes"] == 2 and len(provenance["devices"]) == 4
    assert run.summary["status"] == "finished" and run.summary["evaluation"]["episodes"] == 12
    assert "Finished" in outcome[0][1] and "iteration" not in outcome[1][1], "process 0 alone tells the progress"


def test_a_checkpoint_of_two_processes_resumes_in_one_on_eight_devices_and_that_on_one(
    together: tuple[tb.Run, list[tuple[int, str]]], alone: tb.Run, tmp_path: Path
) -> None:
    """Eight by the user's own XLA_FLAGS; whatever they are, every iteration is that of four devices to rounding."""
    folder = shutil.copytree(together[0].path, tmp_path / "run")
    for count, iterations in ((8, 6), (1, 8)):
        flags = f"{FLAGS} --xla_force_host_platform_device_count={count}"
        finish(folder, f"{WORDS} --cpu-devices {count} {steps(iterations)} --resume", {"XLA_FLAGS": flags})
    assert_same_to_rounding(tb.Run.load(folder), alone)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert [len(segment["devices"]) for segment in (*provenance["earlier"], provenance)] == [4, 8, 1]


@pytest.mark.slow
def test_a_checkpoint_of_one_process_resumes_in_two(tmp_path: Path, alone: tb.Run) -> None:
    train_in_one(tmp_path / "run", f"{steps(4)} --cpu-devices 1")
    outcome = train_in_two(tmp_path / "run", f"{steps(8)} --resume")
    assert [status for status, _ in outcome] == [0, 0], outcome
    assert_same_to_rounding(tb.Run.load(tmp_path / "run"), alone)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_the_run_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pair(folder, "--total-steps 8000000") as trainers:
        deadline = time.monotonic() + 200
        metrics = folder / "metrics.jsonl"
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.2)
        trainers[1].send_signal(signal.SIGTERM)
        statuses = [one.wait(100) for one in trainers]
    run = tb.Run.load(folder)
    assert statuses == [128 + signal.SIGTERM] * 2
    assert run.summary["status"] == "stopped" and run.summary["signal"] == signal.SIGTERM
    assert (folder / "checkpoints" / str(run.summary["iterations"])).is_dir()


def test_processes_with_different_configurations_are_refused(tmp_path: Path) -> None:
    outcome = train_in_two(tmp_path / "run", *(f"{steps(4)} --max-kl {limit}" for limit in (0.01, 0.02)))
    assert [status for status, _ in outcome] == [2, 2], outcome
    assert all("another configuration" in told for _, told in outcome)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_one_of_them_cannot_have_is_refused_by_both(tmp_path: Path, alone: tb.Run) -> None:
    """Process 0 alone takes the lock, and the other must not wait for it for ever."""
    shutil.copytree(alone.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        outcome = train_in_two(folder.path, "--total-steps 960 --resume")
    assert [status for status, _ in outcome] == [2, 2], outcome
    assert "in use by the trainer" in outcome[0][1] and "process 0 of this run cannot go on" in outcome[1][1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--coordinator 127.0.0.1:1", "num_processes was not given"),
        ("--num-processes 2 --process-id 0", "coordinator was not given"),
        ("--coordinator 127.0.0.1:1 --num-processes 2 --process-id 2", "process_id must be less than num_processes"),
    ],
)
def test_what_cannot_be_joined_is_one_sentence(
    words: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *OPTIONS, "--run-dir", str(tmp_path / "run"), *words.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
