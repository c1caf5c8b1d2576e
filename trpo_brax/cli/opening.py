"""What the commands that open a run have in common."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trpo_brax.config import Platform, RuntimeConfig
from trpo_brax.host.console import Console

if TYPE_CHECKING:
    from brax.envs import Env

    from trpo_brax.runs.run import Run


@dataclass(frozen=True)
class OpenedRun:
    """A run, and the environment of the user's own, if it was given."""

    run: Run
    environment: Env | None


def open_run(path: str, environment: str | None, platform: Platform, parallel: int, console: Console) -> OpenedRun:
    """Open a run folder, choose JAX's devices and import the user's environment.

    Args:
        path: the run folder.
        environment: `package.module:Class`, for a run on an environment of the user's own.
        platform: as in `RuntimeConfig`.
        parallel: how many environments there are to be spread over the devices.
        console: told what the choice of devices has to say.

    Raises:
        UserError: one of them cannot be used.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from trpo_brax.environments import load_environment
    from trpo_brax.host.devices import configure, usable_cores
    from trpo_brax.runs.run import Run

    run = Run.load(path)
    for note in configure(RuntimeConfig(platform=platform), max(1, min(parallel, usable_cores()))):
        console.note(note)
    own = load_environment(environment) if environment else None
    # What cannot work is said before anything slow is begun.
    run.task(own)
    return OpenedRun(run, own)
