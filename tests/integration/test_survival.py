"""A real trainer killed, stopped, and robbed of its disk: what is on disk resumes to the run that never stopped."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import trpo_brax as tb
from tests.tiny_programs import assert_bit_identical
from tests.tiny_runs import last_state, without_clock
from tests.trainers import finish, steps, trainer
from trpo_brax.runs.checkpoints import Checkpoints

WORDS = "--cpu-devices 2 --checkpoint-every 50"
FOR_HOURS = "--total-steps 80000000 --cpu-devices 2 --checkpoint-every 200"


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Wait until something is so, or the process has ended."""
    limit = time.monotonic() + seconds
    while not there() and process.poll() is None:
        assert time.monotonic() < limit, "nothing came of it"
        time.sleep(0.005)


def last_iteration(folder: Path) -> int:
    """Return the iteration of the last whole line of metrics.jsonl, 0 where there is none."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
    except OSError:
        return 0
    return int(json.loads(lines[-1])["iteration"]) if lines else 0


def assert_same_run(first: Path, second: Path) -> None:
    """Compare every leaf of the last states bit for bit, and every line of metrics but for the clock's."""
    ours, theirs = tb.Run.load(first), tb.Run.load(second)
    assert without_clock(ours) == without_clock(theirs)
    assert_bit_identical(last_state(ours), last_state(theirs))


def sentence(told: str) -> str:
    """Return what the command line failed with."""
    (line,) = (line for line in told.splitlines() if line.startswith("trpo-brax: "))
    return line


def newest_checkpoint(folder: Path) -> int:
    """Return the iteration of the newest whole checkpoint, 0 where there is none."""
    return max((int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()), default=0)


def kill_again_and_again(folder: Path, iterations: int, kills: int, seed: int) -> list[str]:
    """Kill the trainer at random moments, resume it, and let it end; return what each kill met."""
    moments, met = random.Random(seed), []
    while len(met) < kills:
        kind = ("training", "saving", "starting")[len(met) % 3]
        words = f"{WORDS} {steps(iterations)} {'--resume' if (folder / 'config.json').exists() else ''}"
        # Up to two checkpoints further than the one that it resumes from.
        target = newest_checkpoint(folder) + moments.randint(1, 120)
        with trainer(folder, words) as process:
            if kind == "starting":
                time.sleep(moments.uniform(0.0, 6.0))
            else:
                wait_for(lambda target=target: last_iteration(folder) >= target, process)  # type: ignore[misc]
                time.sleep(moments.uniform(0.0, 0.2))
            if kind == "saving":
                unfinished = lambda: any("unsealed" in path.name for path in (folder / "checkpoints").glob("*"))
                wait_for(unfinished, process)
                time.sleep(moments.uniform(0.0, 0.02))
            assert process.poll() is None, f"it ended before it was killed: {process.communicate()[0]}"
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert (folder / ".lock").exists() or kind == "starting"
        met.append(f"{kind} at {last_iteration(folder)} (checkpoint {newest_checkpoint(folder)})")
    told = finish(folder, f"{WORDS} {steps(iterations)} --resume")
    assert "quarantined" not in told, "a kill left something that looked like a checkpoint"
    assert not (folder / ".lock").exists(), "what a killed trainer leaves of its lock holds nobody up"
    return met


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return what gives the run of so many iterations that never stopped."""

    @functools.cache
    def run(iterations: int) -> Path:
        folder = tmp_path_factory.mktemp("whole") / "run"
        finish(folder, f"{WORDS} {steps(iterations)}")
        return folder

    return run


@pytest.mark.parametrize(
    ("iterations", "kills"), [(1000, 3), pytest.param(5000, 24, marks=pytest.mark.slow)], ids=["three", "many"]
)
def test_kill_9_at_any_moment_and_resume_is_the_uninterrupted_run(
    iterations: int, kills: int, whole: Callable[[int], Path], tmp_path: Path
) -> None:
    met = kill_again_and_again(tmp_path / "killed", iterations, kills, seed=kills)
    print("killed while", ", ".join(met))
    assert_same_run(tmp_path / "killed", whole(iterations))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of eight megabytes; skips where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here; the test with a limit on file sizes covers it")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no space on a disk."""
    file = disk / "filling"
    with file.open("ab", buffering=0) as filling:
        for size in (1 << 16, 1 << 12, 1 << 8, 1):
            with contextlib.suppress(OSError):
                while True:
                    filling.write(b"x" * size)
    return file


def test_a_full_disk_is_told_and_tried_again_until_there_is_space(small_disk: Path) -> None:
    """Nothing of the time without space is missing in the end: metrics are kept, and the last state is saved."""
    folder = small_disk / "run"
    with trainer(folder, FOR_HOURS) as process:
        wait_for(lambda: last_iteration(folder) > 400, process)
        full = fill(small_disk)
        stuck = last_iteration(folder)
        told = ""
        assert process.stdout is not None
        while told.count("could not be saved") < 2:
            told += process.stdout.readline()
        full.unlink()
        wait_for(lambda: last_iteration(folder) > stuck + 500, process)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=120)
    told += rest
    assert process.returncode == 143, told
    assert "No space left on device" in told
    assert "Traceback" not in told, told
    run = tb.Run.load(folder)
    numbers = [row["iteration"] for row in run.metrics()]
    assert numbers == list(range(1, run.summary["iterations"] + 1))
    assert run.summary["saved_iteration"] == run.summary["iterations"]
    assert_bit_identical(last_state(run).iteration, run.summary["iterations"] + 0 * last_state(run).iteration)


def test_a_disk_that_stays_full_ends_in_a_plain_sentence_and_1(small_disk: Path) -> None:
    folder = small_disk / "run"
    with trainer(folder, FOR_HOURS) as process:
        wait_for(lambda: last_iteration(folder) > 400, process)
        fill(small_disk)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 1, told
    last = sentence(told)
    assert "could not be saved: No space left on device" in last
    assert "Traceback" not in told, told
    run = tb.Run.load(folder)
    newest = Checkpoints(folder / "checkpoints", run.config).resolve("latest")
    assert f"the newest checkpoint is that of iteration {newest}" in last
    run.policy(newest)


def test_files_that_may_not_grow_are_told_too(tmp_path: Path) -> None:
    """A limit on the size of files, as a quota has: what a save writes is larger."""
    limited = ("bash", "-c", 'ulimit -f 2; exec "$@"', "limited")
    with trainer(tmp_path / "run", f"{WORDS} {steps(120)}", before=limited) as process:
        told, _ = process.communicate(timeout=200)
    assert process.returncode in (1, 2), told
    assert "File too large" in told
    assert "Traceback" not in told, told


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with trainer(folder, FOR_HOURS) as process:
        wait_for(lambda: last_iteration(folder) > 200, process)
        # Twice: the trainer may be adding to it.
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert "could not be saved" in sentence(told)
    assert "Traceback" not in told, told
    assert not folder.exists()


def test_a_second_trainer_is_refused_and_a_second_signal_stops_at_once(
    whole: Callable[[int], Path], tmp_path: Path
) -> None:
    """The second is told who holds the folder; neither harms the run."""
    folder = tmp_path / "run"
    words = f"{WORDS} {steps(1000)}"
    with trainer(folder, words) as process:
        wait_for(lambda: last_iteration(folder) > 50, process)
        process.send_signal(signal.SIGSTOP)
        with trainer(folder, f"{WORDS} {steps(10**6)} --resume") as second:
            told, _ = second.communicate(timeout=120)
        assert second.returncode == 2
        assert f"in use by the trainer with process id {process.pid}" in told
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        process.communicate(timeout=60)
        assert time.monotonic() - started < 10.0
    assert process.returncode == 143
    finish(folder, f"{words} --resume")
    assert_same_run(folder, whole(1000))
