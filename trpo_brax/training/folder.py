"""The run folder: its files, its lock, and reading it back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trpo_brax.config import Config, from_dict, to_dict
from trpo_brax.errors import ConfigError, RunFolderError

_MAX_JSON_BYTES = 1 << 20


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.task_file = self.path / "task.json"
        self.provenance_file = self.path / "provenance.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.learning_curve_file = self.path / "learning_curve.png"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self._lock: IO[str] | None = None

    def refuse_used(self) -> None:
        """Raise a `RunFolderError` if there is something at the path already."""
        try:
            used = self.path.is_symlink() or (
                self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
            )
        except OSError as error:
            raise RunFolderError(f"run_dir {self.path} cannot be used: {error.strerror}.") from error
        if used:
            raise RunFolderError(f"run_dir {self.path} is already used; choose another, or continue it with --resume.")

    def create(self, config: Config) -> None:
        """Make a new run folder that holds `config`.

        Raises:
            RunFolderError: it is in use already or cannot be written; nothing is left behind.
        """
        self.refuse_used()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json(self.config_file, to_dict(config))
        except OSError as error:
            self.config_file.with_suffix(".tmp").unlink(missing_ok=True) if self.path.is_dir() else None
            with contextlib.suppress(OSError):
                self.path.rmdir()
            raise RunFolderError(f"run_dir {self.path} cannot be written: {error.strerror}.") from error

    def read_config(self) -> Config:
        """Return the run's configuration.

        Raises:
            RunFolderError: this is no run folder, or its configuration is broken.
        """
        if not self.path.is_dir():
            raise RunFolderError(f"there is no run folder {self.path}.")
        if not self.config_file.is_file():
            raise RunFolderError(f"{self.path} is not a run folder: it holds no config.json.")
        try:
            return from_dict(self.read_json(self.config_file), f"{self.config_file}")
        except ConfigError as error:
            raise RunFolderError(str(error)) from error

    def read_json(self, file: Path) -> Any:
        """Return a JSON file's content.

        Raises:
            RunFolderError: it is missing, a link, absurdly large, or not JSON.
        """
        try:
            if file.is_symlink() or file.stat().st_size > _MAX_JSON_BYTES:
                raise RunFolderError(f"{file} is a link or larger than {_MAX_JSON_BYTES} bytes: it is not read.")
            return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except OSError as error:
            raise RunFolderError(f"{file} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{file} is not valid JSON.") from error

    def write_json(self, file: Path, data: Any) -> None:
        """Write a JSON file whole or not at all."""
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(file)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second trainer.

        The kernel drops the lock when its owner dies, so there is no stale lock.

        Raises:
            RunFolderError: another process holds it.
        """
        # The lock stands beside the run's files, is empty of meaning, and is removed at the end.
        file = self.path / ".lock"
        try:
            opened = file.open("a+")
        except OSError as error:
            raise RunFolderError(f"run_dir {self.path} cannot be written: {error.strerror}.") from error
        with opened as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise RunFolderError(
                    f"run_dir {self.path} is in use by the trainer with process id {owner}."
                ) from error
            if not file.exists() or os.fstat(handle.fileno()).st_ino != file.stat().st_ino:
                raise RunFolderError(f"run_dir {self.path} was in use a moment ago; try again.")
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            try:
                yield
            finally:
                file.unlink(missing_ok=True)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the objects of metrics.jsonl; a last line cut short by a crash is left out."""
        if not self.metrics_file.is_file():
            return []
        records = []
        with self.metrics_file.open(encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    try:
                        record = json.loads(line)
                        int(record["iteration"])
                    except (ValueError, KeyError, TypeError) as error:
                        raise RunFolderError(f"{self.metrics_file} holds a line that is no record.") from error
                    records.append(record)
        return records

    def cut_metrics(self, iteration: int) -> list[dict[str, Any]]:
        """Drop the metrics of iterations after `iteration` and return what is left."""
        kept = [record for record in self.read_metrics() if record["iteration"] <= iteration]
        temporary = self.metrics_file.with_suffix(".tmp")
        temporary.write_text("".join(f"{json.dumps(record)}\n" for record in kept), encoding="utf-8")
        temporary.replace(self.metrics_file)
        return kept


def default_run_dir(config: Config) -> Path:
    """Return runs/TASK-SEED-TIMESTAMP, or FIRST-LAST for SEED where there are several."""
    name = config.environment.rpartition(":")[2] if config.environment else config.task
    seeds = f"{config.seed}" if config.num_seeds == 1 else f"{config.seeds[0]}-{config.seeds[-1]}"
    return Path("runs") / f"{name}-{seeds}-{time.strftime('%Y%m%d-%H%M%S')}"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
