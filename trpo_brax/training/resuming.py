"""The state that a run goes on from."""

from __future__ import annotations

import functools

from trpo_brax.config import Config
from trpo_brax.host.console import Console
from trpo_brax.host.processes import Group
from trpo_brax.learner.program import Program
from trpo_brax.learner.state import TrainState
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.folder import RunFolder


def newest_sound_state(
    config: Config, folder: RunFolder, program: Program, group: Group, console: Console
) -> tuple[int, TrainState | None]:
    """Return iteration and state of the newest sound checkpoint, (0, None) where there is none.

    Damaged ones are moved to quarantine. Process 0 decides: what another one sees of a shared folder may be older.
    """
    while group.decide(int(folder.checkpoints.is_dir())):
        checkpoints = Checkpoints(folder.checkpoints, config)

        def quarantine(iteration: int, why: str) -> None:
            target = folder.set_aside(folder.checkpoints / str(iteration))
            console.warn(f"{why.rstrip('.')}; the checkpoint was quarantined as {target}.")

        newest = group.decide(group.do_first(functools.partial(checkpoints.newest_intact, quarantine)))
        if newest is None:
            break
        with console.stage(f"Restoring the checkpoint of iteration {newest}"):
            state = group.do(functools.partial(checkpoints.restore, newest, program.abstract_state, program.shardings))
            sound = program.sound(state)
        if sound:
            return newest, state
        why = f"checkpoint {folder.checkpoints / str(newest)} holds numbers that are not finite"
        group.do_first(functools.partial(quarantine, newest, why))
    group.do_first(functools.partial(_begin_again, folder, console))
    return 0, None


def _begin_again(folder: RunFolder, console: Console) -> None:
    """Say so where a run that had come somewhere has no checkpoint left, and keep what its metrics were."""
    # A run that was stopped before its first iteration has an empty one, and lost nothing.
    if folder.metrics_file.is_file() and folder.metrics_file.stat().st_size:
        kept = folder.set_aside(folder.metrics_file)
        console.warn(f"There is no sound checkpoint: training begins again; its metrics so far are {kept}.")
