"""Several processes that train one run together: joining them, and agreeing on what only a host can know.

All run the same host loop on the same global arrays; process 0 alone talks and writes, but for each one's own shards of
a checkpoint. Whatever depends on a clock or a signal is agreed on before a collective program is dispatched, or they
would dispatch different ones and wait for ever; and what one of them has to refuse, all refuse.
"""

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
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(index) for index in range(jax.process_count())]
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes of this run have {', '.join(map(str, counts))} devices: give all the same --cpu-devices."
        )


# What the user says is not to be completed from a cluster's environment variables.
_BY_HAND: dict[str, Any] = {"cluster_detection_method": "deactivate"}


def primary() -> bool:
    """Return whether this is the process that writes and talks; a lone process is."""
    return jax.process_index() == 0


def agree(length: int, signal: int | None) -> tuple[int, int | None]:
    """Return process 0's chunk length, and the signal that any process was told to stop by."""
    if jax.process_count() == 1:
        return length, signal
    rows = np.asarray(multihost_utils.process_allgather(np.array([length, signal or 0], np.int32)))
    return int(rows[0, 0]), int(rows[:, 1].max()) or None


def from_primary(value: int | None) -> int | None:
    """Return process 0's number, in every process."""
    if jax.process_count() == 1:
        return value
    told = int(multihost_utils.broadcast_one_to_all(np.asarray(-1 if value is None else value, np.int32)))
    return None if told < 0 else told


def check_same(what: str, text: str) -> None:
    """Wait for all processes, and refuse to go on where their texts differ.

    Raises:
        UserError: in every process.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    rows = np.asarray(multihost_utils.process_allgather(digest))
    if (rows != rows[0]).any():
        raise UserError(f"the processes of this run were started with another {what} each.")


def together(action: Callable[[], Result]) -> Result:
    """Run `action` in every process and return its result; where one refuses, all do.

    Raises:
        UserError: the process's own, or that another one refused.
    """
    refusal: UserError | None = None
    result: Any = None
    try:
        result = action()
    except UserError as error:
        refusal = error
    if jax.process_count() > 1:
        refused = np.asarray(multihost_utils.process_allgather(np.array([refusal is not None])))
        if refusal is None and refused.any():
            raise UserError(f"process {int(np.argmax(refused))} of this run cannot go on; it says why.")
    if refusal is not None:
        raise refusal
    done: Result = result
    return done


def wait(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
