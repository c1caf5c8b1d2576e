"""Writing checkpoints while training goes on, and surviving a disk that does not take them.

Orbax writes into `N.K.unsealed`, K counting attempts, as it does not wait for the other writes of one that failed: they
may outlive its folder, and make it again. Once all is there a manifest is added and the folder gets its name, `N`, in
one step. So a numbered folder is whole, whenever the process died. Orbax's CheckpointManager is not used: it names a
folder before a manifest of it can be written, and takes a save for done, retention included, before it has failed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from trpo_brax.config import Config, to_dict
from trpo_brax.errors import CheckpointError
from trpo_brax.host.processes import ALONE, Group
from trpo_brax.learner.state import TrainState
from trpo_brax.runs.checkpoints import EVALUATION_RETURNS, TRAINING_RETURNS, Checkpoints
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.manifest import write_manifest
from trpo_brax.runs.storage import first_line, items_of, stored_leaves

FAULTS = (OSError, ValueError, RuntimeError, CheckpointError)
"""What a disk that is full, slow or gone makes Orbax, its storage library and our own reading raise."""
_MOST_SECONDS = 600
"""A save may take."""
_UNFINISHED = (".unsealed", ".removed")


class CheckpointSaver:
    """Saves checkpoints in the background; a save that fails costs nothing but itself.

    Args:
        folder: of the run; where it is gone, it is not made again.
        config: of the run.
        group: the processes that save it together.
    """

    def __init__(self, folder: RunFolder, config: Config, group: Group = ALONE) -> None:
        self._folder = folder
        self._config = config
        self._group = group
        self._writer: ocp.AsyncCheckpointer | None = None
        self._sealing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._attempts = 0
        self.saved: int | None = None
        """The iteration last saved whole, of those asked for here."""

    def save(
        self,
        iteration: int,
        state: TrainState,
        training_returns: Mapping[int, float],
        evaluation_returns: Mapping[int, float] | None = None,
    ) -> str | None:
        """Begin to save `state`, which must not be donated meanwhile; the writing goes on in the background.

        Args:
            iteration: of the state.
            state: of the run, on any devices.
            training_returns: what the best is chosen by, for each seed that has one; none: not a candidate.
            evaluation_returns: what it is chosen by instead where there are evaluations.

        Returns:
            None, or why it, or the save before it, failed.
        """
        before = self.settle()
        self._attempts += 1
        directory = self._folder.checkpoints.absolute()
        kinds = {TRAINING_RETURNS: training_returns, EVALUATION_RETURNS: evaluation_returns or {}}
        facts = {
            "iteration": iteration,
            **{name: {str(seed): value for seed, value in returns.items()} for name, returns in kinds.items()},
        }
        try:
            if self._group.primary:
                self._refuse_if_gone()
                directory.mkdir(exist_ok=True)
            if self._writer is None:
                if self._group.primary:
                    remove_unfinished(directory)
                self._writer = _writer()
            unsealed = directory / f"{iteration}.{self._attempts}.unsealed"
            self._writer.save(
                unsealed,
                args=ocp.args.Composite(
                    **{item: ocp.args.StandardSave(leaves) for item, leaves in items_of(stored_leaves(state)).items()},
                    config=ocp.args.JsonSave(to_dict(self._config)),
                ),
                force=True,
            )
        except FAULTS as error:
            return self._failed(error)
        self._sealing = self._thread.submit(self._seal, self._writer, unsealed, facts)
        return before

    def settle(self) -> str | None:
        """Wait for the save under way, and return None, or why it failed."""
        if self._sealing is None:
            return None
        sealing, self._sealing = self._sealing, None
        try:
            sealing.result()
        except FAULTS as error:
            return self._failed(error)
        return None

    def busy(self) -> bool:
        """Return whether a save is being written."""
        return self._sealing is not None and not self._sealing.done()

    def close(self) -> None:
        """Wait, and release the threads."""
        self.settle()
        self._thread.shutdown()
        if self._writer is not None:
            self._writer.close()

    def _seal(self, writer: ocp.AsyncCheckpointer, unsealed: Path, facts: Mapping[str, Any]) -> None:
        writer.wait_until_finished()
        iteration = facts["iteration"]
        if self._group.primary:
            self._refuse_if_gone()
            write_manifest(unsealed, facts)
            target = unsealed.with_name(str(iteration))
            if target.exists():
                _remove(target)
            unsealed.rename(target)
        self.saved = iteration
        if self._group.primary:
            self._prune()

    def _refuse_if_gone(self) -> None:
        if not self._folder.config_file.is_file():
            raise FileNotFoundError(f"the run folder {self._folder.path} is gone")

    def _prune(self) -> None:
        """Remove all but the latest and each seed's best; of equal ones the latest."""
        checkpoints = Checkpoints(self._folder.checkpoints, self._config)
        known = checkpoints.iterations()
        kept = set(known[-self._config.record.checkpoints_to_keep :])
        for seed in self._config.seeds:
            ranked = []
            for iteration in known:
                # A damaged one is nobody's best.
                with contextlib.suppress(CheckpointError):
                    rank = checkpoints.rank(iteration, seed)
                    ranked += [] if rank is None else [(rank, iteration)]
            kept |= {max(ranked)[1]} if ranked else set()
        for iteration in known:
            if iteration not in kept:
                _remove(self._folder.checkpoints / str(iteration))

    def _failed(self, error: BaseException) -> str:
        """Forget the save that failed, so that the next begins afresh, and return why it failed."""
        writer, self._writer = self._writer, None
        if writer is not None:
            # It reports the same fault again.
            with contextlib.suppress(*FAULTS):
                writer.close()
        if self._group.primary:
            remove_unfinished(self._folder.checkpoints)
            if not self._folder.config_file.is_file():
                # What a save that was under way made again of a folder that somebody removed.
                with contextlib.suppress(OSError):
                    self._folder.checkpoints.rmdir()
                    self._folder.path.rmdir()
        return reason(error)


def _writer() -> ocp.AsyncCheckpointer:
    # Where a folder cannot be made in the background, Orbax's other threads wait for it until their time is up.
    options = ocp.AsyncOptions(timeout_secs=_MOST_SECONDS, create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(async_options=options))
    return ocp.AsyncCheckpointer(handler, async_options=options)


def save_arrays(folder: Path, tree: Any) -> None:
    """Save a tree's arrays under their dotted paths, at once; `read_arrays` reads them.

    Args:
        folder: must not exist.
        tree: of arrays.
    """
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder.absolute(), stored_leaves(tree))


@contextlib.contextmanager
def quiet_storage() -> Iterator[None]:
    """Keep what follows a failed save off the terminal: the fault itself reaches us as an exception.

    Orbax does not wait for its other writes once one has failed, so that TensorStore's threads come back to an event
    loop that is closed, and print a traceback each; writes that were not begun are told as coroutines never awaited.
    """
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def remove_unfinished(directory: Path) -> None:
    """Remove what a save or a removal that was cut off left behind."""
    if not directory.is_dir():
        return
    for name in os.listdir(directory):
        path = directory / name
        unfinished = name.endswith(_UNFINISHED) or ".orbax-checkpoint-tmp" in name
        if unfinished and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def reason(error: BaseException) -> str:
    """Return why something could not be written, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # The storage library spells out its whole call; the system's own words are somewhere in it.
    for words in ("No space left on device", "File too large", "Read-only file system", "No such file or directory"):
        if words in str(error):
            return words
    return first_line(error).rstrip(".")


def _remove(checkpoint: Path) -> None:
    # Renamed first: half a folder must not have a checkpoint's name.
    doomed = checkpoint.with_name(f"{checkpoint.name}.removed")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
