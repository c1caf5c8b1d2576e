"""The launcher as its users start it, with a trainer that learns nothing, here and through SLURM's commands."""

from __future__ import annotations

import contextlib
import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("submitit")

from experiments.launch import Arguments, Entry, main, read_entries

ROOT = Path(__file__).parents[2]
STAND_IN = shlex.join([sys.executable, str(Path(__file__).parent / "stand_in_trainer.py")])


@contextlib.contextmanager
def start(folder: Path, lines: str, *options: str, command: str = STAND_IN) -> Iterator[subprocess.Popen[str]]:
    """Start the launcher on a list; it is gone afterwards, whatever a test found."""
    (folder / "list.txt").write_text(lines)
    words = [sys.executable, str(ROOT / "experiments" / "launch.py"), str(folder / "list.txt")]
    words += ["--runs-dir", str(folder / "runs"), "--command", command, *options]
    environment = os.environ | {"STAND_IN_CALLS": str(folder / "calls"), "PATH": f"{folder}:{os.environ['PATH']}"}
    with subprocess.Popen(
        words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def launch(folder: Path, lines: str, *options: str, command: str = STAND_IN) -> tuple[int, str, list[dict[str, str]]]:
    """Run the launcher; return its exit status, what it said, and its table."""
    with start(folder, lines, *options, command=command) as process:
        output, errors = process.communicate(timeout=300)
    table = folder / "runs" / "summaries.csv"
    assert table.is_file(), errors
    with table.open(newline="") as file:
        return process.returncode, output, list(csv.DictReader(file))


def calls(folder: Path) -> list[list[str]]:
    """Return what trainers told: event, kind, new or resumed, process and its parent."""
    file = folder / "calls"
    return [line.split() for line in file.read_text().splitlines()] if file.is_file() else []


def begun(folder: Path) -> list[tuple[str, str]]:
    return sorted((kind, how) for event, kind, how, *_ in calls(folder) if event == "begin")


def first_trainer(folder: Path) -> tuple[int, int]:
    """Wait for a trainer; return its process and its job's."""
    deadline = time.monotonic() + 60
    while not calls(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    *_, trainer, job = calls(folder)[0]
    return int(trainer), int(job)


def column(rows: Sequence[dict[str, str]], name: str) -> list[str]:
    return [row[name] for row in rows]


def test_a_list_is_run_collected_and_not_repeated(tmp_path: Path) -> None:
    lines = "# a comment\nok --seed 0  # the first\n\nfail --seed 0\nok --seed '1'\nplain\nsilent\n"
    status, output, rows = launch(tmp_path, lines, "--max-parallel", "2")
    assert status == 1
    assert column(rows, "line") == ["ok --seed 0", "fail --seed 0", "ok --seed 1", "plain", "silent"]
    assert column(rows, "status") == ["finished", "failed", "finished", "finished", "failed"]
    assert column(rows, "exit_status") == ["0", "2", "0", "0", "137"]
    assert column(rows, "error") == ["", "trpo-brax: max_kl must be greater than 0, not -1.", "", "", ""]
    assert column(rows, "training_episode_return_mean") == ["12.5", "", "12.5", "12.5", ""]
    assert column(rows, "evaluation_return_mean") == ["20.0", "", "20.0", "", ""]
    assert column(rows, "env_steps") == ["96", "", "96", "96", ""]
    assert "failed: fail --seed 0 (exit status 2): trpo-brax: max_kl must be greater than 0" in output
    assert begun(tmp_path) == [(kind, "new") for kind in ("fail", "ok", "ok", "plain", "silent")]
    running = [1 if event == "begin" else -1 for event, *_ in calls(tmp_path)]
    assert max(sum(running[:end]) for end in range(len(running))) <= 2
    for row in rows:  # no pickle and no log in a run folder
        assert {path.name for path in (tmp_path / "runs" / row["run"]).iterdir()} <= {"config.json", "summary.json"}

    (tmp_path / "calls").unlink()
    status, output, again = launch(tmp_path, f"ok --seed 2\n{lines}", "--max-parallel", "1")
    assert status == 1 and "2 of 6 are finished already" in output
    # The trainer knows best whether a run without an evaluation is complete; a failed one is tried again.
    expected = [("fail", "resumed"), ("ok", "new"), ("plain", "resumed"), ("silent", "resumed")]
    assert begun(tmp_path) == expected
    assert again[1:] == rows
    assert [event for event, *_ in calls(tmp_path)] == ["begin", "end"] * 4


def test_all_finished_is_exit_status_0(tmp_path: Path) -> None:
    assert launch(tmp_path, "ok\n")[0] == 0
    assert launch(tmp_path, "ok\n")[0] == 0
    assert begun(tmp_path) == [("ok", "new")]


def test_a_preempted_job_saves_and_goes_on(tmp_path: Path) -> None:
    """SLURM's warning reaches every process of a job: the trainer outlives it, and is stopped by its job."""
    with start(tmp_path, "endless\n") as process:
        trainer, job = first_trainer(tmp_path)
        os.kill(trainer, signal.SIGUSR2)
        time.sleep(0.3)
        assert [event for event, *_ in calls(tmp_path)] == ["begin"]
        os.kill(job, signal.SIGUSR2)
        process.communicate(timeout=90)
        assert process.returncode == 0
    told = [(event, how) for event, _, how, *_ in calls(tmp_path)]
    assert told == [("begin", "new"), ("end", "new"), ("begin", "resumed"), ("end", "resumed")]


def test_a_stopped_training_is_not_done(tmp_path: Path) -> None:
    with start(tmp_path, "endless\n") as process:
        os.kill(first_trainer(tmp_path)[0], signal.SIGTERM)
        process.communicate(timeout=90)
        assert process.returncode == 1
    with (tmp_path / "runs" / "summaries.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["exit_status"], row["iterations"]) == ("stopped", "143", "3")
    status, _, rows = launch(tmp_path, "endless\n")
    assert status == 0 and column(rows, "status") == ["finished"]


def test_figures_of_an_earlier_job_are_not_a_failed_ones(tmp_path: Path) -> None:
    """A summary says finished from before, and the job that went on was stopped without a word."""
    assert launch(tmp_path, "spoiled\n")[0] == 0
    status, _, (row,) = launch(tmp_path, "spoiled\n")
    assert status == 1
    assert (row["status"], row["exit_status"], row.get("env_steps", "")) == ("failed", "143", "")


def test_a_job_that_cannot_start_is_lost(tmp_path: Path) -> None:
    status, _, (row,) = launch(tmp_path, "ok\n", command="/nowhere/trainer")
    assert status == 1 and (row["status"], row["exit_status"]) == ("failed", "lost")
    assert "/nowhere/trainer" in row["error"]


def test_slurm_by_the_same_call(tmp_path: Path) -> None:
    """Stand-ins for SLURM's commands run a batch file at once; what it asks for is kept."""
    stand_ins = {
        "sbatch": 'cp "$1" batch; SLURM_JOB_ID=12 bash "$1" >/dev/null 2>&1 & echo Submitted batch job 12',
        "srun": 'while [ "${1#--}" != "$1" ]; do case "$1" in --unbuffered) shift;; *) shift 2;; esac; done; exec "$@"',
        "sacct": "printf 'JobID|State|NodeList\\n12|RUNNING|here\\n'",
    }
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    options = ["--executor", "slurm", "--partition", "fast", "--gpus", "2", "--cpus", "8", "--timeout-minutes", "90"]
    status, _, (row,) = launch(tmp_path, "ok\n", *options)
    assert status == 0 and row["status"] == "finished"
    batch = (tmp_path / "batch").read_text()
    for flag in ("partition=fast", "gpus-per-node=2", "cpus-per-task=8", "time=90", "signal=USR2@90"):
        assert f"#SBATCH --{flag}\n" in batch


@pytest.mark.parametrize(
    "lines, sentence",
    [
        ("", "holds no configuration"),
        ("# nothing\n\n", "holds no configuration"),
        ("ok\nok  --seed 'x\n", "line 2: No closing quotation"),
        ("ok --run-dir here\n", "line 1: --run-dir is given by the launcher"),
        ("ok --run_dir=here\n", "line 1: --run-dir is given by the launcher"),
        ("ok --resume\n", "line 1: --resume is given by the launcher"),
        ("ok --seed 1\nhopper\nok   --seed '1' # again\n", "line 3 repeats an earlier line: ok --seed 1"),
    ],
)
def test_a_list_that_cannot_be_run_is_refused(lines: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(SystemExit, match=sentence):
        main(Arguments(tmp_path / "list.txt", runs_dir=tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_arguments_that_cannot_work_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="cannot be read"):
        main(Arguments(tmp_path / "missing.txt"))
    with pytest.raises(SystemExit, match="max_parallel must be at least 1, not 0"):
        main(Arguments(tmp_path / "missing.txt", max_parallel=0))
    (tmp_path / "list.txt").write_text("ok\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="executor slurm cannot be used"):
        main(Arguments(tmp_path / "list.txt", executor="slurm", runs_dir=tmp_path / "runs"))


def test_every_line_has_a_folder_name_of_its_own(tmp_path: Path) -> None:
    lines = ["hopper --max-kl 0.1", "hopper --max-kl -0.1", "hopper '--max-kl 0.1'", "hopper", "../hopper", "'é/ü'"]
    (tmp_path / "list.txt").write_text("\n".join([*lines, f"hopper {'x' * 300}"]))
    names = [entry.name for entry in read_entries(tmp_path / "list.txt")]
    assert len(set(names)) == len(lines) + 1
    assert names[0].startswith("hopper-max-kl-0.1-")
    assert all(len(name) < 100 and "/" not in name and not name.startswith(".") for name in names)
    assert Entry("whatever", ("hopper",)).name == names[3]


@pytest.mark.slow
def test_with_the_trainer(tmp_path: Path) -> None:
    small = "inverted_pendulum --num-envs 4 --unroll-length 4 --total-steps 32 --episode-length 8"
    lines = f"{small} --seed 0\n{small} --seed 1 --final-evaluation-episodes 4\n{small} --max-kl -1\n"
    trainer = shlex.join([sys.executable, "-m", "trpo_brax", "train"])
    status, _, rows = launch(tmp_path, lines, command=trainer)
    assert status == 1
    assert column(rows, "status") == ["finished", "finished", "failed"]
    assert column(rows, "iterations") == ["2", "2", ""]
    assert column(rows, "evaluation_episodes") == ["128", "4", ""]
    assert rows[2]["exit_status"] == "2" and "max_kl must be" in rows[2]["error"]
    records = [(tmp_path / "runs" / row["run"] / "metrics.jsonl") for row in rows[:2]]
    before = [file.read_bytes() for file in records]
    status, output, again = launch(tmp_path, lines, command=trainer)
    assert status == 1 and "2 of 3 are finished already" in output and again == rows
    assert [file.read_bytes() for file in records] == before
