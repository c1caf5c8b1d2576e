"""What a user is told, with and without a terminal."""

from __future__ import annotations

import io
import os
import re
import time
from typing import Any

import pytest

from trpo_brax.host import console as module
from trpo_brax.host.console import Console


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def record(iteration: int, **changes: Any) -> dict[str, Any]:
    """Return what the console reads of an iteration's record."""
    return {
        "iteration": iteration,
        "env_steps": 65_536 * iteration,
        "steps_per_second": 123_456.7,
        "episode_return_mean": 1234.56,
        "kl_mean": 0.00987,
        "step_outcome": "no_improvement",
        "nonfinite_envs": 0,
    } | changes


@pytest.fixture
def told() -> io.StringIO:
    """Return a stream that is no terminal."""
    return io.StringIO()


class TestPlain:
    """Logs: whole lines, no control characters, not too many."""

    def test_a_stage_begins_and_ends_with_its_seconds(self, told: io.StringIO) -> None:
        with Console(told).stage("Compiling"):
            assert told.getvalue() == "Compiling ...\n"
            time.sleep(0.15)
        first, last = told.getvalue().splitlines()
        assert first == "Compiling ..."
        found = re.fullmatch(r"Compiling: (\d+\.\d) s", last)
        assert found and 0.1 <= float(found[1]) < 5.0

    def test_a_long_stage_shows_that_it_lives(self, told: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_HEARTBEAT_SECONDS", 0.05)
        with Console(told).stage("Compiling"):
            time.sleep(0.4)
        lines = told.getvalue().splitlines()
        assert len(lines) >= 4
        assert all(re.fullmatch(r"Compiling \.\.\. \d+ s", line) for line in lines[1:-1])
        time.sleep(0.15)
        assert told.getvalue().splitlines() == lines

    def test_a_stage_that_fails_does_not_say_it_is_done(self, told: io.StringIO) -> None:
        with pytest.raises(ZeroDivisionError), Console(told).stage("Compiling"):
            raise ZeroDivisionError
        assert told.getvalue() == "Compiling ...\n"

    def test_an_iteration_says_what_matters(self, told: io.StringIO) -> None:
        Console(told).iteration(record(3), 80, 125.4)
        line = told.getvalue()
        for part in ("3/80", "196,608", "123,457", "1,234.6", "0.0099", "no improvement", "2:05 left"):
            assert part in line
        assert line.count("\n") == 1 and "non-finite" not in line and "\x1b" not in line

    def test_no_episode_and_broken_environments_are_told(self, told: io.StringIO) -> None:
        Console(told).iteration(record(1, episode_return_mean=None, nonfinite_envs=7), 80, 0.0)
        assert "no episode ended yet" in told.getvalue() and "7 non-finite environments" in told.getvalue()

    def test_lines_come_every_few_seconds_and_the_last_always(
        self, told: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = [100.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        console = Console(told)
        with console.training(200, 0):
            for iteration in range(1, 201):
                clock[0] += 0.1
                console.iteration(record(iteration), 200, 1.0)
        shown = [int(found) for found in re.findall(r"iteration (\d+)/200", told.getvalue())]
        assert shown[0] == 1 and shown[-1] == 200
        assert 3 <= len(shown) <= 7

    def test_notes_are_printed_as_they_are_in_one_line(self, told: io.StringIO) -> None:
        text = "runs/[bold]a[/bold] :smile: 3.14 'x' " + "word " * 60 + "end"
        Console(told).note(text)
        assert told.getvalue() == f"{text}\n"


class TestTerminal:
    """One live line that ends clean."""

    def test_the_live_line_shows_the_latest_iteration(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "300")
        screen = Terminal()
        console = Console(screen)
        with console.training(4, 0):
            for iteration in range(1, 5):
                console.iteration(record(iteration), 4, 0.0)
        assert "iteration 4/4" in screen.getvalue() and "\x1b[" in screen.getvalue()
        console.note("Finished")
        assert screen.getvalue().rstrip("\n").endswith("Finished")

    def test_a_stage_ends_with_its_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        screen = Terminal()
        with Console(screen).stage("Compiling"):
            pass
        assert re.search(r"Compiling: \d+\.\d s\n", screen.getvalue())


def test_a_console_that_cannot_be_written_ends_nothing() -> None:
    """A log on a disk that is full, and a reader that has gone."""
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        console = Console(full)
        for _ in range(3):
            console.note("a line")
            console.warn("another")
        with console.stage("working"):
            pass
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as broken:
        console = Console(broken)
        for _ in range(3):
            console.note("a line")
