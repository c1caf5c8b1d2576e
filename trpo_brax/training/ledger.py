"""The records of a run: kept in memory, written as the disk allows, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from trpo_brax.config import Config, to_dict
from trpo_brax.environments import Task
from trpo_brax.errors import RunFolderError
from trpo_brax.host.console import Console
from trpo_brax.learner.metrics import Metrics, record
from trpo_brax.runs.files import write_json
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.provenance import provenance
from trpo_brax.runs.recorder import Recorder
from trpo_brax.runs.records import readable_metrics, write_records
from trpo_brax.runs.saving import reason
from trpo_brax.runs.summary import mean_return
from trpo_brax.runs.task_file import write_task
from trpo_brax.training.periodic import RANKED_BY

Row = dict[str, Any]


class Ledger:
    """One record an iteration and seed.

    Args:
        folder: of the run.
        seeds: trained.
        steps_per_iteration: of one seed.
        console: told of what cannot be read or written.
    """

    def __init__(self, folder: RunFolder, seeds: Sequence[int], steps_per_iteration: int, console: Console) -> None:
        self._folder, self._seeds, self._steps, self._console = folder, seeds, steps_per_iteration, console
        self._recorder: Recorder | None = None
        self.records: list[Row] = []
        self.wall_time = 0.0
        """Seconds of training so far."""
        self.unwritten: str | None = None
        """Why the last records are not on disk, if they are not."""

    def resume(self, iteration: int, *, tell: bool) -> None:
        """Take over the records up to a checkpoint.

        What cannot be read of the others is no loss, and of these is told.
        """
        records, damaged = readable_metrics(self._folder.metrics_file)
        self.records = [row for row in records if row["iteration"] <= iteration]
        last = self.records[-1]["iteration"] if self.records else 0
        if tell and (damaged or last < iteration):
            why = "lines that are no records" if damaged else f"nothing after iteration {last}"
            self._console.warn(f"{self._folder.metrics_file} holds {why}: some iterations are missing from it.")
        self.wall_time = self.records[-1]["wall_time_s"] if self.records else 0.0

    def open(self, config: Config, task: Task, devices: Sequence[jax.Device], iteration: int) -> None:
        """Write what describes the segment that begins, drop metrics newer than its start, and write from here on.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        folder = self._folder
        try:
            write_task(folder, task)
            write_json(folder.config_file, to_dict(config))
            write_json(folder.provenance_file, provenance(devices, iteration, self._earlier()))
            write_records(folder.metrics_file, self.records)
            self._recorder = Recorder(folder, self.records, several=len(self._seeds) > 1)
        except OSError as error:
            raise RunFolderError(f"run_dir {folder.path} cannot be written: {reason(error)}.") from error

    def _earlier(self) -> dict[str, Any] | None:
        """Return the provenance so far; one that is broken is set aside."""
        try:
            return self._folder.read_provenance()
        except RunFolderError as error:
            kept = self._folder.set_aside(self._folder.provenance_file)
            self._console.warn(f"{str(error).rstrip('.')}; it is now {kept}.")
            return None

    def rows(self, iteration: int, seconds: float, metrics: Sequence[Metrics]) -> list[Row]:
        """Return the records of an iteration that took `seconds`, by the metrics of each seed."""
        self.wall_time += seconds
        return [
            {
                "seed": seed,
                "iteration": iteration,
                "env_steps": iteration * self._steps,
                "wall_time_s": round(self.wall_time, 4),
                "steps_per_second": round(self._steps / seconds, 1),
                **record(own),
            }
            for seed, own in zip(self._seeds, metrics, strict=True)
        ]

    def add(self, rows: list[Row]) -> None:
        """Take the records of an iteration; `flush` writes them."""
        self.records += rows
        if self._recorder is not None:
            self._recorder.add(rows)

    def flush(self) -> None:
        """Write what was added; what the disk does not take waits for the next time."""
        if self._recorder is None:
            return
        try:
            self._recorder.flush()
        except OSError as error:
            if self.unwritten is None:
                self._console.warn(f"The metrics could not be written, and are kept for later: {reason(error)}.")
            self.unwritten = reason(error)
        else:
            self.unwritten = None

    def ranks(self, iteration: int, every: int) -> tuple[dict[int, float], dict[int, float]]:
        """Return each seed's mean return of training over the last `every` iterations, and of the last's evaluation."""
        recent = [row for row in self.records if row["iteration"] > iteration - every]
        means = {seed: mean_return([row for row in recent if row["seed"] == seed]) for seed in self._seeds}
        last = [row for row in recent if row["iteration"] == iteration]
        evaluated = {row["seed"]: row[RANKED_BY] for row in last if row.get(RANKED_BY) is not None}
        return {seed: mean for seed, mean in means.items() if mean is not None}, evaluated
