"""Two real processes over `jax.distributed` train one run, and it is the run of one process over as many devices."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import trpo_brax as tb
from trpo_brax.cli import main
from trpo_brax.runs.folder import RunFolder

OPTIONS = shlex.split(
    "--environment tests.tiny_environments:PointMass --num-envs 8 --unroll-length 10 --episode-length 7 "
    "--policy-hidden-sizes 8 --critic-hidden-sizes 8 --critic-epochs 2 --critic-minibatches 3 "
    "--checkpoint-every 2 --final-evaluation-episodes 6 --platform cpu --num-seeds 2"
)
ROOT = Path(__file__).parents[2]


def start(
    folder: Path, words: str, *, process: int | None = None, port: int = 0, flags: str | None = None
) -> subprocess.Popen[str]:
    """Start a trainer, alone or as one of two processes with two devices each."""
    together = f"--coordinator 127.0.0.1:{port} --num-processes 2 --process-id {process}".split()
    command = [sys.executable, "-m", "trpo_brax", "train", *OPTIONS, "--run-dir", str(folder), *words.split()]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {} if flags is None else {"XLA_FLAGS": flags}
    return subprocess.Popen(
        command + (together if process is not None else []),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def train_in_two(folder: Path, words: str) -> list[tuple[int, str]]:
    """Return exit status and output of both processes."""
    port = free_port()
    trainers = [start(folder, f"{words} --cpu-devices 2", process=index, port=port) for index in (0, 1)]
    try:
        return [(trainer.wait(300), trainer.stdout.read() if trainer.stdout else "") for trainer in trainers]
    finally:
        for trainer in trainers:
            trainer.kill()


def train_in_one(folder: Path, words: str, flags: str | None = None) -> None:
    trainer = start(folder, words, flags=flags)
    output, _ = trainer.communicate(timeout=300)
    assert trainer.returncode == 0, output


def assert_same_to_rounding(ours: tb.Run, theirs: tb.Run) -> None:
    for row, other in zip(ours.metrics(), theirs.metrics(), strict=True):
        assert (row["iteration"], row["episodes"]) == (other["iteration"], other["episodes"])
        for name in ("kl_mean", "episode_return_mean", "critic_loss"):
            np.testing.assert_allclose(row[name], other[name], rtol=5e-3, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tb.Run:
    """Six iterations by one process with four devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train_in_one(folder, "--total-steps 480 --cpu-devices 4")
    return tb.Run.load(folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[tb.Run, list[tuple[int, str]]]:
    """The first four of them by two processes with two devices each."""
    folder = tmp_path_factory.mktemp("together") / "run"
    outcome = train_in_two(folder, "--total-steps 320")
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


def test_a_checkpoint_of_two_processes_resumes_in_one_on_one_device(
    together: tuple[tb.Run, list[tuple[int, str]]], alone: tb.Run
) -> None:
    folder = together[0].path
    train_in_one(folder, "--total-steps 480 --cpu-devices 1 --resume")
    assert_same_to_rounding(tb.Run.load(folder), alone)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert [len(segment["devices"]) for segment in (*provenance["earlier"], provenance)] == [4, 1]


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_a_checkpoint_of_eight_devices_resumes_on_one_and_the_other_way_round(
    tmp_path: Path, alone: tb.Run, before: int, after: int
) -> None:
    """By the user's own XLA_FLAGS; every iteration, on however many devices, is that of four devices to rounding."""
    for total, count in ((240, before), (480, after)):
        flags = f"--xla_force_host_platform_device_count={count}"
        train_in_one(tmp_path / "run", f"--total-steps {total} {'--resume' if total == 480 else ''}", flags)
    run = tb.Run.load(tmp_path / "run")
    assert_same_to_rounding(run, alone)
    provenance = json.loads((run.path / "provenance.json").read_text())
    assert [len(segment["devices"]) for segment in (*provenance["earlier"], provenance)] == [before, after]


@pytest.mark.slow
def test_a_checkpoint_of_one_process_resumes_in_two(tmp_path: Path, alone: tb.Run) -> None:
    train_in_one(tmp_path / "run", "--total-steps 160 --cpu-devices 1")
    outcome = train_in_two(tmp_path / "run", "--total-steps 480 --resume")
    assert [status for status, _ in outcome] == [0, 0], outcome
    assert_same_to_rounding(tb.Run.load(tmp_path / "run"), alone)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_the_run_saved(tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "run"
    trainers = [start(folder, "--total-steps 8000000 --cpu-devices 2", process=i, port=port) for i in (0, 1)]
    try:
        deadline = time.monotonic() + 200
        metrics = folder / "metrics.jsonl"
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.2)
        trainers[1].send_signal(signal.SIGTERM)
        statuses = [trainer.wait(100) for trainer in trainers]
    finally:
        for trainer in trainers:
            trainer.kill()
    run = tb.Run.load(folder)
    assert statuses == [128 + signal.SIGTERM] * 2
    assert run.summary["status"] == "stopped" and run.summary["signal"] == signal.SIGTERM
    assert (folder / "checkpoints" / str(run.summary["iterations"])).is_dir()


def test_processes_with_different_configurations_are_refused(tmp_path: Path) -> None:
    port = free_port()
    trainers = [
        start(tmp_path / "run", f"--total-steps 320 --cpu-devices 2 --max-kl 0.0{index + 1}", process=index, port=port)
        for index in (0, 1)
    ]
    outputs = [trainer.communicate(timeout=200)[0] for trainer in trainers]
    assert [trainer.returncode for trainer in trainers] == [2, 2], outputs
    assert all("another configuration" in output for output in outputs)
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
