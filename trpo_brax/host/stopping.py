"""Stopping a run by SIGINT, SIGTERM or SIGHUP without losing anything."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from types import FrameType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM)
_SIGNALS = (*_ENDING, signal.SIGHUP)


class StopRequest:
    """A flag that the first of these signals sets while the block runs; a SIGINT or SIGTERM then ends it all at once.

    A SIGHUP never does: of one terminal that goes there may be two, the shell's to its jobs and the kernel's own.

    At once, even where Python's own handler would have to wait for a compilation or a chunk to return: the interpreter
    writes each signal's number to a socket as it comes, and a thread reads it. Outside the main thread, where Python
    allows no handlers, the flag is never set.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self._previous_wakeup = -1

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._wakeup = socket.socketpair()
            reader, writer = self._wakeup
            writer.setblocking(False)
            self._previous_wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=_end_at_the_second, args=(reader,), daemon=True).start()
            for number in _SIGNALS:
                # What nohup has set stays. A shell's background jobs begin without SIGINT too, and are stopped by it.
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._previous_wakeup)
            # The reader sees the end and returns.
            self._wakeup[1].close()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            _say("\nStopping once what is under way has ended, then saving; once more stops at once.\n")


def _end_at_the_second(reader: socket.socket) -> None:
    """Read the numbers of signals as they come, and end the process at one that may, once a stop has been asked for."""
    asked = False
    with reader:
        while received := reader.recv(64):
            for number in received:
                if asked and number in _ENDING:
                    # Checkpoints appear by renaming and metrics are cut back on resume: dying here harms nothing.
                    _say("\x1b[?25h" if os.isatty(2) else "")  # a live display hides the cursor
                    os._exit(128 + number)
                asked |= number in _SIGNALS


def _say(text: str) -> None:
    # Straight to the descriptor: a handler may interrupt a print.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
