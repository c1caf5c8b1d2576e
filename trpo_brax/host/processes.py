"""Several processes that train one run: joining them, and agreeing on what only a host can know."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from trpo_brax.config import RuntimeConfig
from trpo_brax.errors import ConfigError, UserError
from trpo_brax.host.settings import start_jax

Result = TypeVar("Result")


def join(runtime: RuntimeConfig) -> None:
    """Connect this process to the others, where there are any; must come before anything starts JAX's backend.

    They are named by `coordinator`, `num_processes` and `process_id`, or by SLURM, where `srun` started several tasks.

    Raises:
        ConfigError: only some of the three were given.
        UserError: the others were not found, or do not have as many devices each.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: getattr(runtime, name) for name in ("coordinator", "num_processes", "process_id")}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ConfigError(f"coordinator, num_processes and process_id go together; {missing[0]} was not given.")
    if missing and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    if not missing and given["process_id"] >= given["num_processes"]:
        raise ConfigError(
            f"process_id must be less than num_processes, {given['num_processes']}, not {given['process_id']}."
        )
    # JAX would otherwise hand SIGTERM to a notifier of its own, and our save would never begin.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            runtime.coordinator, runtime.num_processes, runtime.process_id, **({} if missing else _BY_HAND)
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run could not be joined: {str(error).splitlines()[0]}") from error
    start_jax()
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(index) for index in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes of this run have {', '.join(map(str, counts))} devices: give all the same --cpu-devices."
        )


# What the user says is not to be completed from a cluster's environment variables.
_BY_HAND: dict[str, Any] = {"cluster_detection_method": "deactivate"}


class Group:
    """The processes that train one run together; this one is alone, and does its part without asking anybody.

    All run the same host loop on the same global arrays. Process 0 talks and writes, but for each one's own shards of
    a checkpoint. Whatever depends on a clock, a signal or a disk is decided by it before a collective program is
    dispatched, or they would dispatch different ones and wait for ever; and what one of them refuses, all refuse.
    """

    primary = True
    """Whether this is the process that writes and talks."""
    several = False

    def decide(self, value: int | None) -> int | None:
        """Return process 0's number (not negative), in every process."""
        return value

    def agree(self, number: int, signal: int | None) -> tuple[int, int | None]:
        """Return process 0's number, and the signal that any process was told to stop by: one exchange."""
        return number, signal

    def do(self, action: Callable[[], Result]) -> Result:
        """Run `action` in every process and return its result; where one refuses, all do.

        Raises:
            UserError: the process's own, or that another one refused.
        """
        return action()

    def do_first(self, action: Callable[[], Result]) -> Result | None:
        """Run `action` in process 0, whose result it returns there; where that refuses, all do."""
        return self.do(action if self.primary else lambda: None)

    def check_same(self, what: str, text: str) -> None:
        """Wait for all processes, and refuse to go on where their texts differ.

        Raises:
            UserError: in every process.
        """

    def wait(self, name: str) -> None:
        """Wait until every process has come here."""


ALONE = Group()


class _Several(Group):
    several = True

    def __init__(self) -> None:
        self.primary = jax.process_index() == 0

    def decide(self, value: int | None) -> int | None:
        told = int(multihost_utils.broadcast_one_to_all(np.asarray(-1 if value is None else value, np.int32)))
        return None if told < 0 else told

    def agree(self, number: int, signal: int | None) -> tuple[int, int | None]:
        rows = _gathered(np.array([number, signal or 0], np.int32))
        return int(rows[0, 0]), int(rows[:, 1].max()) or None

    def do(self, action: Callable[[], Result]) -> Result:
        refusal: UserError | None = None
        result: Any = None
        try:
            result = action()
        except UserError as error:
            refusal = error
        refused = _gathered(np.array([refusal is not None]))
        if refusal is not None:
            raise refusal
        if refused.any():
            raise UserError(f"process {int(np.argmax(refused))} of this run cannot go on; it says why.")
        done: Result = result
        return done

    def check_same(self, what: str, text: str) -> None:
        rows = _gathered(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32))
        if (rows != rows[0]).any():
            raise UserError(f"the processes of this run were started with another {what} each.")

    def wait(self, name: str) -> None:
        multihost_utils.sync_global_devices(name)


def group() -> Group:
    """Return the processes that were joined, or this one alone; starts JAX's backend."""
    return _Several() if jax.process_count() > 1 else ALONE


def _gathered(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(multihost_utils.process_allgather(row))
