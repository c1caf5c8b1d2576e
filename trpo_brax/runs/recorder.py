"""Writing an iteration's metrics where people look: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.records import line_of

_AXES = ("seed", "iteration", "env_steps")
"""Over which TensorBoard draws, or apart."""


class Appender:
    """A file that grows; what a full disk does not take is kept, and written once it does.

    Args:
        path: of the file, which must be there.

    Raises:
        OSError: it is not.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = path.stat().st_size
        self._pending = bytearray()

    def add(self, data: bytes) -> None:
        """Take `data`; `flush` writes it."""
        self._pending += data

    def flush(self) -> None:
        """Hand everything to the operating system.

        Raises:
            OSError: not all of it could be written; it is kept, and readers may see a part of it.
        """
        if not self._pending:
            return
        # Opened anew each time: a folder that was gone may be back. What a failed write left is written over.
        with self._path.open("r+b", buffering=0) as file:
            if file.seek(0, 2) < self._end:
                raise OSError(0, f"{self._path.name} was cut short by someone else")
            file.seek(self._end)
            written = 0
            while written < len(self._pending):
                written += file.write(self._pending[written:]) or 0
            file.truncate()
        self._end += written
        self._pending.clear()


class Recorder:
    """Appends records to a run folder.

    Args:
        folder: of the run; its metrics.jsonl holds `records` and no more.
        records: those already there; they are left alone.
        several: the run has several seeds, each with event tags of its own.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: RunFolder, records: list[dict[str, Any]], *, several: bool = False) -> None:
        self._several = several
        folder.metrics_file.touch()
        self._lines = Appender(folder.metrics_file)
        self._events = Appender(_event_file(folder.tensorboard, len(records)))
        self._add_event(file_version="brain.Event:2")
        # Points written after the checkpoint that a resumed run starts from are hidden, not shown twice.
        self._add_event(step=records[-1]["env_steps"] + 1 if records else 0, session_log={"status": "START"})
        self.flush()

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Take one iteration's records, one a seed."""
        for record in records:
            self._lines.add(line_of(record).encode())
            prefix = f"seed_{record['seed']}/" if self._several else ""
            shown = {name: value for name, value in record.items() if name not in _AXES}
            values = [{"tag": name, "simple_value": value} for name, value in _numbers(shown, prefix)]
            self._add_event(step=record["env_steps"], summary={"value": values})

    def flush(self) -> None:
        """Hand everything to the operating system.

        Raises:
            OSError: not all of it could be written; it is kept for the next time.
        """
        self._lines.flush()
        self._events.flush()

    def _add_event(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.add(_framed(Event(wall_time=time.time(), **fields).SerializeToString()))


def _event_file(folder: Path, records: int) -> Path:
    """Make the event file of a segment that begins after `records`, and return its path.

    The name's end keeps two segments begun in one second apart; TensorBoard reads files in the order of their names.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{records}"
    path.touch(exist_ok=False)
    return path


def _framed(body: bytes) -> bytes:
    """Return a TFRecord: length, checksum of the length, body, checksum of the body."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(body))
    return length + struct.pack("<I", masked_crc32c(length)) + body + struct.pack("<I", masked_crc32c(body))


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", value
