"""Writing an iteration's metrics where people look: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from trpo_brax.training.folder import RunFolder


class Recorder:
    """Appends records to a run folder.

    Args:
        folder: of the run.
        records: those already there; they are left alone.
        several: the run has several seeds, each with event tags of its own.
    """

    def __init__(self, folder: RunFolder, records: list[dict[str, Any]], *, several: bool = False) -> None:
        from tensorboardX import SummaryWriter

        self._several = several
        self._lines = folder.metrics_file.open("a", encoding="utf-8")
        # Points written after the checkpoint that a resumed run starts from are hidden, not shown twice.
        purge = records[-1]["env_steps"] + 1 if records else 0
        # The suffix keeps two stretches begun in one second apart: event files are named by whole seconds.
        self._events = SummaryWriter(str(folder.tensorboard), purge_step=purge, filename_suffix=f".{len(records)}")

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Write one iteration's records, one a seed."""
        for record in records:
            self._lines.write(f"{json.dumps(record, allow_nan=False)}\n")
            for name, value in _numbers(record, f"seed_{record['seed']}/" if self._several else ""):
                self._events.add_scalar(name, value, record["env_steps"])

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._lines.flush()
        self._events.flush()

    def close(self) -> None:
        """Flush and close."""
        self._lines.close()
        self._events.close()


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name not in ("seed", "iteration", "env_steps"):
            yield f"{prefix}{name}", value
