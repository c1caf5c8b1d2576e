"""The run folder: its files, its lock, and reading it back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trpo_brax.config import NAME, Config, from_dict, override, to_dict
from trpo_brax.errors import ConfigError, RunFolderError
from trpo_brax.host.paths import user_path
from trpo_brax.runs.files import one_line, read_json, walk, write_json

_MOST_PROVENANCE_BYTES = 32 << 20
_MOST_ENTRIES = 1_000_000
_MOST_DEPTH = 16
_LOCK = ".lock"


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; it need not exist yet.

    Raises:
        UserError: it begins with a home that nobody knows.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self.config_file = self.path / "config.json"
        self.task_file = self.path / "task.json"
        self.provenance_file = self.path / "provenance.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.learning_curve_file = self.path / "learning_curve.png"
        self.training_panels_file = self.path / "training.png"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.quarantine = self.path / "quarantine"
        self.dumps = self.path / "dumps"

    def refuse_used(self) -> None:
        """Raise a `RunFolderError` if there is something at the path already, or it is none to keep a run at."""
        self._refuse_pattern()
        try:
            used = self.path.is_symlink() or (
                self.path.exists()
                and (not self.path.is_dir() or any(entry.name != _LOCK for entry in self.path.iterdir()))
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
        with self.created(config):
            pass

    @contextlib.contextmanager
    def created(self, config: Config) -> Iterator[None]:
        """Make a new run folder that holds `config`, and hold it as `locked` does.

        Of trainers that want one folder at one moment the first to lock it has it: the others find it locked or used.

        Raises:
            RunFolderError: it is in use already or cannot be written; nothing is left behind.
        """
        self.refuse_used()
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self.locked())
                self.refuse_used()
                write_json(self.config_file, to_dict(config))
            except (OSError, RunFolderError) as error:
                stack.close()
                with contextlib.suppress(OSError):
                    self.path.rmdir()
                if isinstance(error, RunFolderError):
                    raise
                raise RunFolderError(f"run_dir {self.path} cannot be written: {error.strerror}.") from error
            yield

    def fresh(self) -> RunFolder:
        """Make this folder, or one of its name and a number where there is one, and return it.

        Raises:
            RunFolderError: it cannot be made.
        """
        self._refuse_pattern()
        path, taken = self.path, 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                # To make it is to have it: no other process can do the same.
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    return RunFolder(path)
                taken += 1
                path = self.path.with_name(f"{self.path.name}-{taken}")
        except OSError as error:
            raise RunFolderError(f"run_dir {path} cannot be written: {error.strerror}.") from error

    def _refuse_pattern(self) -> None:
        """Refuse a path to which Orbax's `glob` is blind: it would find no array that it wrote, and gather none."""
        path = str(self.path.absolute())
        if found := [mark for mark in "*?[" if mark in path]:
            raise RunFolderError(f"run_dir {path} cannot be used: no checkpoint can be kept under a {found[0]}.")

    def read_config(self) -> Config:
        """Return the run's configuration.

        What it says of other machines and of programs to execute is left out, as everything in the folder may be
        anybody's: whose coordinator to join, and which directory holds compiled programs, is the command line's to say.

        Raises:
            RunFolderError: this is no run folder, or its configuration is broken.
        """
        if not self.path.is_dir():
            raise RunFolderError(f"there is no run folder {self.path}.")
        if not self.config_file.is_file():
            raise RunFolderError(f"{self.path} is not a run folder: it holds no config.json.")
        try:
            config = from_dict(read_json(self.config_file), f"{self.config_file}")
        except ConfigError as error:
            raise RunFolderError(str(error)) from error
        if not NAME.fullmatch(config.task):
            raise RunFolderError(f"{self.config_file} names a task as none can be named.")
        cache = "none" if config.runtime.compilation_cache == "none" else "auto"
        return override(config, coordinator=None, num_processes=None, process_id=None, compilation_cache=cache)

    def read_provenance(self) -> dict[str, Any] | None:
        """Return what provenance.json holds, None where there is none.

        Raises:
            RunFolderError: it cannot be read, or is no JSON object.
        """
        if not os.path.lexists(self.provenance_file):
            return None
        provenance = read_json(self.provenance_file, _MOST_PROVENANCE_BYTES)
        if not isinstance(provenance, dict):
            raise RunFolderError(f"{self.provenance_file} is not a JSON object.")
        return provenance

    def refuse_links(self) -> None:
        """Refuse a folder in which anything is neither a plain file nor a folder: writing to it could lead elsewhere.

        Raises:
            RunFolderError: it names the entry.
        """
        parts = (self.checkpoints, self.tensorboard, self.quarantine, self.dumps)
        for count, (path, mode, depth) in enumerate(walk(self.path, forgiven=(OSError,))):
            what = None
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                what = "a link" if stat.S_ISLNK(mode) else "no plain file"
            elif path in parts and not stat.S_ISDIR(mode):
                what = "no folder"
            elif depth >= _MOST_DEPTH or count >= _MOST_ENTRIES:
                what = f"beyond the {_MOST_ENTRIES:,} entries and {_MOST_DEPTH} levels that a run has at most"
            if what is not None:
                inside = one_line(path.relative_to(self.path))
                raise RunFolderError(f"run_dir {self.path} is not used: {inside} in it is {what}.")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second trainer.

        The kernel drops the lock when its owner dies, so there is no stale lock.

        Raises:
            RunFolderError: another process holds it.
        """
        # The lock stands beside the run's files, is empty of meaning, and is removed at the end.
        file = self.path / _LOCK
        try:
            # Never through a link, which could empty a file elsewhere.
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise RunFolderError(f"run_dir {self.path} cannot be written: {error.strerror}.") from error
        with os.fdopen(descriptor, "r+", encoding="utf-8") as handle:
            if os.fstat(descriptor).st_nlink > 1:
                raise RunFolderError(f"run_dir {self.path} is not used: {file} in it is a link.")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = handle.read(20).strip()
                raise RunFolderError(
                    f"run_dir {self.path} is in use by the trainer with process id "
                    f"{owner if owner.isdecimal() else 'unknown'}."
                ) from error
            if not file.exists() or os.fstat(descriptor).st_ino != file.stat().st_ino:
                raise RunFolderError(f"run_dir {self.path} was in use a moment ago; try again.")
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            # The lock is the kernel's; what is written is for people, and a full disk may do without.
            with contextlib.suppress(OSError):
                handle.flush()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    def set_aside(self, damaged: Path) -> Path:
        """Move a file, or a checkpoint's folder, into `quarantine/`, and return where it is now.

        Raises:
            RunFolderError: it cannot be moved.
        """
        target, taken = self.quarantine / damaged.name, 1
        while os.path.lexists(target):
            taken += 1
            target = self.quarantine / f"{damaged.name}.{taken}"
        try:
            self.quarantine.mkdir(exist_ok=True)
            return damaged.rename(target)
        except OSError as error:
            raise RunFolderError(f"{damaged} cannot be moved to {self.quarantine}: {error.strerror}.") from error


def default_run_dir(config: Config) -> Path:
    """Return runs/TASK-SEED-TIMESTAMP, or FIRST-LAST for SEED where there are several."""
    name = config.environment.rpartition(":")[2] if config.environment else config.task
    seeds = f"{config.seed}" if config.num_seeds == 1 else f"{config.seeds[0]}-{config.seeds[-1]}"
    return Path("runs") / f"{name}-{seeds}-{time.strftime('%Y%m%d-%H%M%S')}"
