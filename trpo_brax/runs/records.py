"""Metrics on disk: the objects of metrics.jsonl, which anybody may have written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trpo_brax.config import MOST_CHARACTERS, MOST_METRICS
from trpo_brax.errors import RunFolderError
from trpo_brax.runs.files import MOST_JSON_BYTES, one_line, open_plain, parse_json, write_text

_MOST_METRICS_BYTES = 1 << 30
_WORDS = ("step_outcome", "parameter_fingerprint")
"""What in a record is text; all else is numbers."""
_COUNTS = ("iteration", "seed", "env_steps", "episodes")
_CLOCK = "wall_time_s"
_LONGEST = 1e12
_RETURNS = ("episode_return_mean", "episode_return_std")
_LARGEST = 2.0**128
"""Returns are a device's float32."""
_GROUP = "environment"
"""What in a record is itself numbers by name."""


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the objects of metrics.jsonl; a last line cut short by a crash is left out.

    Raises:
        RunFolderError: the file is a link or absurdly large, or a line in it is no record.
    """
    if not os.path.lexists(file):
        return []
    records = []
    with open_plain(file, _MOST_METRICS_BYTES) as opened:
        while (line := opened.readline(MOST_JSON_BYTES)).endswith(b"\n"):
            records.append(_record(file, line.decode("utf-8")))
        if len(line) == MOST_JSON_BYTES:
            raise RunFolderError(f"{file} holds a line of more than {MOST_JSON_BYTES} bytes.")
    return records


def readable_metrics(file: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the records of metrics.jsonl that can be read and are whole, and whether there were other lines."""
    if not os.path.lexists(file):
        return [], False
    records, damaged = [], False
    with open_plain(file, _MOST_METRICS_BYTES) as opened:
        while line := opened.readline(MOST_JSON_BYTES):
            if line.endswith(b"\n"):
                try:
                    record = _record(file, line.decode("utf-8"))
                except (RunFolderError, UnicodeDecodeError):
                    damaged = True
                else:
                    damaged |= not _is_complete(record)
                    records += [record] if _is_complete(record) else []
    return records, damaged


def write_records(file: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a metrics.jsonl whole or not at all."""
    write_text(file, "".join(map(line_of, records)))


def line_of(record: dict[str, Any]) -> str:
    """Return a record's line; escaped, names in other scripts could make one longer than is read."""
    return f"{json.dumps(record, allow_nan=False, ensure_ascii=False)}\n"


def _record(file: Path, line: str) -> dict[str, Any]:
    record = parse_json(line, f"a line of {file}")
    if not isinstance(record, dict) or not all(_counts(record.get(name)) for name in ("iteration", "seed")):
        raise RunFolderError(f"{file} holds a line that is no record.")
    if len(record) > MOST_METRICS:
        raise RunFolderError(f"{file} holds a line of more than {MOST_METRICS} quantities.")
    for name, value in record.items():
        if name in _WORDS:
            sound = isinstance(value, str) and len(value) <= MOST_CHARACTERS
        elif name in _COUNTS:
            sound = _counts(value)
        elif name == _GROUP and isinstance(value, dict):
            sound = len(value) <= MOST_METRICS and all(map(_is_quantity, value.values()))
            sound = sound and max(map(len, value), default=0) <= MOST_CHARACTERS
        else:
            sound = _is_quantity(value) and (value is not None or name != _CLOCK)
        if not sound or len(name) > MOST_CHARACTERS:
            raise RunFolderError(f"{file} holds a line whose {one_line(name)!r} is no number.")
    return record


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_quantity(value: Any) -> bool:
    """Return whether this is a number or none."""
    return value is None or isinstance(value, (int, float))


def _is_complete(record: dict[str, Any]) -> bool:
    """Return whether a record, sound in itself, holds all that a curve and a summary are made of."""
    if not {*_COUNTS, _CLOCK, *_RETURNS} <= record.keys() or not 0 <= record[_CLOCK] < _LONGEST:
        return False
    return all(record[name] is None or -_LARGEST < record[name] < _LARGEST for name in _RETURNS)
