"""Stopping a run by SIGINT or SIGTERM without losing anything."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """A flag that the first SIGINT or SIGTERM sets while the block runs; a second one ends the process at once.

    Outside the main thread, where Python allows no handlers, the flag is never set.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            # Checkpoints appear by renaming and metrics are cut back on resume: dying here harms nothing on disk.
            _say("\x1b[?25h" if os.isatty(2) else "")  # a live display hides the cursor
            os._exit(128 + number)
        self.signal = number
        _say("\nStopping once what is under way has ended, then saving; once more stops at once.\n")


def _say(text: str) -> None:
    # Straight to the descriptor: a handler may interrupt a print.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
