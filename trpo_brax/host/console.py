"""Telling the user what is happening: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_HEARTBEAT_SECONDS = 10.0
_PLAIN_LINE_SECONDS = 5.0


class Console:
    """One stream of progress.

    Args:
        file: where it goes; standard output by default.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = _own_copy(file if file is not None else sys.stdout)
        self._rich = _Rich(file=self._file, highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._task: Any = None
        self._last_line = 0.0
        self._last_return: float | None = None

    def note(self, text: str) -> None:
        """Print one line."""
        # A run outlives its console: a log on a full disk, or a reader that has gone, must not end it.
        with contextlib.suppress(OSError):
            # `markup=False`: paths and error texts may hold square brackets.
            self._rich.print(text, markup=False, emoji=False)
            self._file.flush()

    def warn(self, text: str) -> None:
        """Print one line that must not be overlooked, however wide the terminal is."""
        self.note(f"Warning: {text}")

    @contextlib.contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Say that something slow is going on, with elapsed time, and how long it took once it is done."""
        start = time.monotonic()
        with self._progress(text, None):
            yield
        self.note(f"{text}: {time.monotonic() - start:.1f} s")

    @contextlib.contextmanager
    def counting(self, text: str, total: int, unit: str = "episodes") -> Iterator[Callable[[int], None]]:
        """Show how many of `total` are done, as told to the function given, and how long it took in the end."""
        start = time.monotonic()
        with self._progress(text, total) as tell:
            yield lambda done: tell(done, f"{done:,} of {total:,} {unit}")
        self.note(f"{text}: {total:,} {unit} in {time.monotonic() - start:.1f} s")

    @contextlib.contextmanager
    def training(self, total_iterations: int, done: int) -> Iterator[None]:
        """Show `iteration` lines inside the block."""
        if not self._rich.is_terminal:
            yield
            return
        columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"))
        with Progress(*columns, console=self._rich, transient=True) as self._live:
            self._task = self._live.add_task("first iterations", total=total_iterations, completed=done)
            yield
        self._live = None

    def iteration(self, record: dict[str, Any], total_iterations: int, seconds_left: float) -> None:
        """Show one iteration's metrics; without a terminal, at most one line every few seconds, and the last."""
        if record["episode_return_mean"] is not None:
            self._last_return = record["episode_return_mean"]
        line = _iteration_line(record, self._last_return, total_iterations, seconds_left)
        if self._live is not None:
            self._live.update(self._task, completed=record["iteration"], description=line)
            return
        now = time.monotonic()
        if now - self._last_line >= _PLAIN_LINE_SECONDS or record["iteration"] == total_iterations:
            self._last_line = now
            self.note(line)

    @contextlib.contextmanager
    def _progress(self, text: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
        """Show that something goes on, and how much of it is done, as the function given is told by number and words.

        That is a live line on a terminal, and a line every few seconds elsewhere.
        """
        if self._rich.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
            with Progress(*columns, console=self._rich, transient=True) as progress:
                task = progress.add_task(text, total=total)
                yield lambda count, words: progress.update(task, completed=count, description=f"{text}: {words}")
            return
        self.note(f"{text} ...")
        ended, start = threading.Event(), time.monotonic()
        news: deque[str] = deque(maxlen=1)

        def live() -> None:
            while not ended.wait(_HEARTBEAT_SECONDS):
                self.note(", ".join((f"{text} ... {time.monotonic() - start:.0f} s", *news)))

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        try:
            yield lambda _, words: news.append(words)
        finally:
            ended.set()
            thread.join()


class _Rich(RichConsole):
    def on_broken_pipe(self) -> None:
        """Fall silent; rich itself would end the process."""
        self.quiet = True


def _own_copy(file: IO[str]) -> IO[str]:
    """Return the stream on a descriptor of its own: what that cannot take is no fault of the usual one at exit."""
    try:
        file.flush()
        return os.fdopen(
            os.dup(file.fileno()), "w", buffering=1, encoding=getattr(file, "encoding", None), errors="replace"
        )
    except (OSError, AttributeError):
        return file  # not a file: a notebook's stream, or a test's


def _iteration_line(
    record: dict[str, Any], last_return: float | None, total_iterations: int, seconds_left: float
) -> str:
    minutes, seconds = divmod(round(seconds_left), 60)
    parts = [
        f"iteration {record['iteration']}/{total_iterations}",
        f"{record['env_steps']:,} steps",
        f"{record['steps_per_second']:,.0f} steps/s",
        "no episode ended yet" if last_return is None else f"return {last_return:,.1f}",
        f"KL {record['kl_mean']:.4f}",
        record["step_outcome"].replace("_", " "),
        f"{minutes}:{seconds:02d} left",
    ]
    if record["nonfinite_envs"]:
        parts.insert(-1, f"{record['nonfinite_envs']} non-finite environments")
    return " | ".join(parts)
