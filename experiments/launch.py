"""Run a list of `trpo-brax train` configurations on this machine or a SLURM cluster, and collect their summaries.

    python experiments/launch.py configurations.txt --executor slurm --gpus 1 --max-parallel 16

A line of configurations.txt holds what stands behind `trpo-brax train`, as in `hopper --seed 0 --num-envs 512`; a `#`
begins a comment. Every line has a run folder of its own below --runs-dir, named after what it says. Started again, the
script leaves finished runs as they are and goes on with the others. A job that is preempted or reaches its time limit
stops its training, which saves itself, and queues again. Stopping the script stops nothing that a cluster runs.

RUNS_DIR/summaries.csv has a row a line. The exit status is 1 if a line did not finish.
RUNS_DIR/jobs/ holds what the jobs printed, and submitit's own pickled job files; a run folder never holds either.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import submitit
import tyro
from submitit.helpers import DelayedSubmission

_SET_HERE = {"--run-dir", "--resume"}
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Run a list of `trpo-brax train` configurations on this machine or a SLURM cluster; collect their summaries."""

    configurations: Annotated[Path, tyro.conf.Positional]
    """File with the arguments of one `trpo-brax train` a line."""
    executor: Literal["local", "slurm"] = "local"
    """Where the jobs run; slurm needs srun and sbatch, and --runs-dir on a file system that its nodes share."""
    runs_dir: Path = Path("runs/launch")
    """Where run folders, job files and summaries.csv are kept."""
    max_parallel: int = 1
    """Most jobs at a time."""
    timeout_minutes: int = 24 * 60
    """Time limit of a job; at the limit it saves and queues again, up to three times."""
    gpus: int = 0
    """GPUs of a job; local jobs all get the first ones, so more than one at a time share them."""
    cpus: int | None = None
    """CPU cores of a job; local jobs use what they find."""
    partition: str | None = None
    """SLURM partition; by default the cluster's own."""
    command: str = shlex.join([sys.executable, "-m", "trpo_brax", "train"])
    """What trains: put a container or a profiler in front of it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the list."""

    line: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the line says as a file name; the same words always have the same, and no others."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(self.words)).strip("-.")[:80]
        digest = hashlib.sha256("\0".join(self.words).encode()).hexdigest()[:8]
        return f"{readable or 'default'}-{digest}"


class Outcome(NamedTuple):
    """How a job ended: its exit status, or None where the job itself was lost, and the last line of its complaint."""

    exit_status: int | None
    error: str


class Training:
    """One job: a training in a process of its own, so that nothing of JAX is shared; calling it returns its status."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path) -> None:
        self._command = tuple(command)
        self._folder = folder
        self._log = log
        self._process_id: int | None = None

    def __call__(self) -> int:
        """Train, or go on with what an earlier job began."""
        words = [*self._command, "--run-dir", str(self._folder)]
        if (self._folder / "config.json").is_file():
            words.append("--resume")
        # SLURM warns every process of a job by SIGUSR2. Blocked, which a child inherits, it does not kill the trainer.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        with self._log.with_suffix(".out").open("w") as output, self._log.with_suffix(".err").open("w") as errors:
            process = subprocess.Popen(words, stdout=output, stderr=errors)
        self._process_id = process.pid
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = process.wait()
        return 128 - status if status < 0 else status

    def checkpoint(self) -> DelayedSubmission:
        """Let the training save itself, and say what to queue again; submitit calls this within its signal handler."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it may have ended by itself just now
            if self._process_id is not None:
                os.kill(self._process_id, signal.SIGTERM)
                # Not reaped here: the wait that the signal interrupted holds Popen's lock.
                os.waitid(os.P_PID, self._process_id, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Training(self._command, self._folder, self._log))


def read_entries(file: Path) -> list[Entry]:
    """Return the lines of a list; one that cannot be a line of its own ends the script with a sentence."""
    entries: dict[tuple[str, ...], Entry] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SystemExit(f"{file} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(lines, 1):
        try:
            words = tuple(shlex.split(line, comments=True))
        except ValueError as error:
            raise SystemExit(f"{file}, line {number}: {error}.") from error
        if given := {word.split("=")[0].replace("_", "-") for word in words} & _SET_HERE:
            raise SystemExit(f"{file}, line {number}: {given.pop()} is given by the launcher.")
        if words in entries:
            raise SystemExit(f"{file}, line {number} repeats an earlier line: {shlex.join(words)}.")
        if words:
            entries[words] = Entry(shlex.join(words), words)
    if not entries:
        raise SystemExit(f"{file} holds no configuration.")
    return list(entries.values())


def run_jobs(arguments: Arguments, entries: Sequence[Entry]) -> dict[Entry, Outcome]:
    """Run a job an entry, some at a time, and return how they ended."""
    jobs_folder = arguments.runs_dir.resolve() / "jobs"
    jobs_folder.mkdir(parents=True, exist_ok=True)
    # Local jobs are named by process id, which comes again: every launch has a folder of its own.
    jobs_folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=jobs_folder))
    try:
        executor = submitit.AutoExecutor(jobs_folder, cluster=arguments.executor)
    except RuntimeError as error:  # no SLURM here
        raise SystemExit(f"executor {arguments.executor} cannot be used: {error}") from error
    executor.update_parameters(
        name="trpo-brax",
        timeout_min=arguments.timeout_minutes,
        gpus_per_node=arguments.gpus or None,
        cpus_per_task=arguments.cpus,
        slurm_partition=arguments.partition,
    )
    waiting, running, outcomes = list(entries), dict[Entry, submitit.Job[int]](), dict[Entry, Outcome]()
    while waiting or running:
        while waiting and len(running) < arguments.max_parallel:
            entry = waiting.pop(0)
            words = (*shlex.split(arguments.command), *entry.words)
            folder = arguments.runs_dir.resolve() / entry.name
            running[entry] = executor.submit(Training(words, folder, jobs_folder / f"{entry.name}.log"))
        for entry in [entry for entry, job in running.items() if job.done()]:
            outcomes[entry] = _outcome(running.pop(entry), jobs_folder / f"{entry.name}.err")
            told = _row(arguments.runs_dir, entry, outcomes[entry])
            trouble = f" (exit status {told['exit_status']}): {told['error']}" if told["status"] != "finished" else ""
            print(f"[{len(outcomes)}/{len(entries)}] {told['status']}: {entry.line}{trouble}", flush=True)
        time.sleep(0.2)
    return outcomes


def write_summaries(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a row a line; a figure that a run does not have is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Arguments) -> int:
    """Run what is not finished, collect everything, and return the exit status."""
    for name in ("max_parallel", "timeout_minutes"):
        if getattr(arguments, name) < 1:
            raise SystemExit(f"{name} must be at least 1, not {getattr(arguments, name)}.")
    entries = read_entries(arguments.configurations)
    finished = [entry for entry in entries if _is_finished(_summary(arguments.runs_dir / entry.name))]
    if finished:
        print(f"{len(finished)} of {len(entries)} are finished already.", flush=True)
    outcomes = dict.fromkeys(finished, Outcome(0, ""))
    outcomes |= run_jobs(arguments, [entry for entry in entries if entry not in outcomes])
    rows = [_row(arguments.runs_dir, entry, outcomes[entry]) for entry in entries]
    table = arguments.runs_dir / "summaries.csv"
    write_summaries(table, rows)
    done = sum(row["status"] == "finished" for row in rows)
    print(f"{done} of {len(rows)} finished: {table}")
    return 0 if done == len(rows) else 1


def _outcome(job: submitit.Job[int], errors: Path) -> Outcome:
    try:
        status = job.result()
    except Exception as error:  # whatever a job raised, or that it was cancelled or lost
        # Behind a second rule submitit says where its logs are.
        return Outcome(None, _last_line(str(error).partition("\n----------------------\nYou can check")[0]))
    return Outcome(status, _last_line(errors.read_text(encoding="utf-8", errors="replace")) if status else "")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _summary(folder: Path) -> dict[str, Any]:
    file = folder / "summary.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _is_finished(summary: dict[str, Any]) -> bool:
    """Whether nothing is left to do; a run without evaluation may miss it or want none, which its trainer knows."""
    return summary.get("status") == "finished" and summary.get("evaluation") is not None


def _row(runs_dir: Path, entry: Entry, outcome: Outcome) -> dict[str, Any]:
    """Return a line's row; a failed one has no figures, for they may be an earlier job's."""
    summary = _summary(runs_dir / entry.name)
    known = outcome.exit_status == 0 or (outcome.exit_status in _STOPPED and summary.get("status") == "stopped")
    row = {
        "line": entry.line,
        "run": entry.name,
        "status": summary.pop("status", "failed") if known else "failed",
        "exit_status": "lost" if outcome.exit_status is None else outcome.exit_status,
        "error": outcome.error,
    }
    # Each seed's own figures stay in its folder: a row is a run.
    summary.pop("seeds", None)
    return row | (_flat(summary) if known else {})


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested figures by joined names; `training` and `evaluation` become prefixes."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}_") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
