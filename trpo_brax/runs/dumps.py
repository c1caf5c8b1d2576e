"""What `--check-finite` leaves of an iteration that met a non-finite number: the state before it, and its batch.

A dump is a folder `dumps/N`: `state` and `batch` as Orbax arrays under their dotted paths, the run's configuration and
task, and `dump.json` that says which iteration and seed, and what was seen. With a manifest, as checkpoints have.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax

from trpo_brax.config import Config
from trpo_brax.errors import CheckpointError, RunFolderError
from trpo_brax.host.processes import Group
from trpo_brax.learner.program import Program
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.learner.state import TrainState
from trpo_brax.runs.checkpoints import MOST_BYTES
from trpo_brax.runs.files import one_line, read_json, write_json
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.manifest import verify, write_manifest
from trpo_brax.runs.saving import save_arrays
from trpo_brax.runs.storage import placed_leaves, read_arrays


@dataclasses.dataclass(frozen=True)
class Dump:
    """A dump opened."""

    path: Path
    config: Config
    iteration: int
    """The one that met a non-finite number; `state` is the one before it."""
    seed: int
    """Whose it was."""
    seen: str
    """What was seen, in words."""

    @classmethod
    def load(cls, path: Path) -> Dump:
        """Open a dump, once its files are found to be those written.

        Raises:
            RunFolderError: this is none.
            CheckpointError: it is damaged.
        """
        if not (path / "dump.json").is_file():
            raise RunFolderError(f"{path} is not a dump: it holds no dump.json.")
        try:
            verify(path, MOST_BYTES)
        except OSError as error:
            raise CheckpointError(f"dump {path} cannot be read: {error.strerror}.") from error
        except CheckpointError as error:
            raise CheckpointError(f"dump {path} is damaged: {error}.") from error
        config = RunFolder(path).read_config()
        told = read_json(path / "dump.json")
        try:
            iteration, seed, seen = int(told["iteration"]), int(told["seed"]), str(told["seen"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(f"{path / 'dump.json'} is not the description of a dump.") from error
        if seed not in config.seeds:
            raise RunFolderError(f"{path / 'dump.json'} is not the description of a dump: the run has no seed {seed}.")
        return cls(path, config, iteration, seed, one_line(seen, 500))

    def state(self, program: Program) -> TrainState:
        """Return the state before the iteration, of the dump's seed alone.

        Args:
            program: of the dump's configuration; it need not be compiled.

        Raises:
            CheckpointError: the arrays do not fit it.
        """
        named = placed_leaves(program.abstract_state, program.shardings)
        arrays = read_arrays(self.path / "state", named, f"dump {self.path}")
        state: TrainState = jax.tree.unflatten(
            jax.tree.structure(program.abstract_state), [arrays[name] for name in named]
        )
        if self.config.num_seeds == 1:
            return state
        alone: TrainState = jax.tree.map(lambda leaf: leaf[self.config.seeds.index(self.seed)], state)
        return alone


def write_dump(
    folder: RunFolder,
    state: TrainState,
    trajectory: Trajectory,
    group: Group,
    *,
    iteration: int,
    seed: int,
    seen: str,
) -> Path:
    """Write a dump into a run folder, and return where it is.

    Args:
        folder: of the run; its configuration and task are copied.
        state: before the iteration.
        trajectory: the iteration's batch.
        group: the processes that trained it.
        iteration: which.
        seed: whose row was not finite.
        seen: what was seen.

    Raises:
        OSError: it cannot be written.
    """
    path = folder.dumps / str(iteration)
    group.do_first(lambda: _make_room(folder, path))
    save_arrays(path / "state", state)
    save_arrays(path / "batch", trajectory)
    if group.primary:
        for file in (folder.config_file, folder.task_file):
            write_json(path / file.name, read_json(file))
        write_json(path / "dump.json", {"iteration": iteration, "seed": seed, "seen": seen})
        write_manifest(path, {})
    return path


def _make_room(folder: RunFolder, path: Path) -> None:
    try:
        if not folder.config_file.is_file():
            raise RunFolderError(f"the run folder {folder.path} is gone.")
        # A run that was resumed comes to the same iteration again.
        if path.exists():
            shutil.rmtree(path)
        folder.dumps.mkdir(exist_ok=True)
        path.mkdir()
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}.") from error
