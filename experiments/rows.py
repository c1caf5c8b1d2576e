"""Tables of results as CSV, which several scripts may fill side by side."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def write(file: Path, rows: Sequence[Row]) -> None:
    """Write rows with the same columns."""
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(file: Path) -> list[Row]:
    """Return the rows of a file, none where there is no file."""
    if not file.is_file():
        return []
    with file.open() as opened:
        return [dict(row) for row in csv.DictReader(opened)]


def with_those_of(file: Path, mine: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows of a file, read anew, and `mine`, in place of those that `names` call as they call mine."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    replaced = {key(row) for row in mine}
    return [*(row for row in read(file) if key(row) not in replaced), *mine]
