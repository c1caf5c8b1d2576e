"""What JAX's own settings and the process have to be: looked at before anything is computed or created."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from trpo_brax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Setting:
    name: str
    allowed: tuple[Any, ...]
    why: str
    """No other value will do."""
    acting: bool = True
    """Whether none will even for a policy alone."""


_NO_PROMISE = "Brax and Flax do not keep to it"
_OFTEN = "arrays go to the device and back all the time"
_GUARDS = ("jax_transfer_guard", *(f"jax_transfer_guard_{way}" for way in ("host_to_device", "device_to_host")))
_SETTINGS = (
    _Setting("jax_enable_x64", (False,), "programs and checkpoints are float32"),
    _Setting("jax_default_prng_impl", ("threefry2x32",), "runs keep keys of that kind"),
    _Setting("jax_legacy_prng_key", ("allow", "warn"), "runs keep keys as plain arrays"),
    _Setting("jax_enable_custom_prng", (False,), "runs keep keys as plain arrays", acting=False),
    _Setting("jax_numpy_rank_promotion", ("allow", "warn"), _NO_PROMISE),
    _Setting("jax_numpy_dtype_promotion", ("standard",), _NO_PROMISE, acting=False),
    *(_Setting(name, (None, "allow", "log", "log_explicit"), _OFTEN) for name in _GUARDS),
    _Setting("jax_debug_nans", (False,), "NaN stands for what has no value; --check-finite finds others", acting=False),
    _Setting("jax_debug_infs", (False,), "infinity stands for what has no bound", acting=False),
    _Setting("jax_disable_jit", (False,), "without compilation an iteration takes hours", acting=False),
)


def check_process(*, acting: bool = False) -> bool:
    """Return whether JAX has started already, in a process that it can be used in.

    Args:
        acting: nothing but policies will be used.

    Raises:
        UserError: one of JAX's settings is one that runs cannot work with, or JAX was started before a fork.
    """
    for setting in _SETTINGS:
        value = getattr(jax.config, setting.name)
        if value not in setting.allowed and (setting.acting or not acting):
            raise UserError(
                f"JAX's setting {setting.name} ({setting.name.upper()} in the environment) must be "
                f"{' or '.join(str(one) for one in setting.allowed if one is not None)}, not {value}: {setting.why}."
            )
    started = _started()
    if started and _forked():
        raise UserError(
            "this process was forked after JAX had started, and JAX would wait in it for ever: "
            'start it by multiprocessing.get_context("spawn").'
        )
    return started


def start_jax() -> None:
    """Start JAX's backend, if it has not started.

    Raises:
        UserError: it cannot be.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = {name: jax.config.values[name] for name in ("jax_platforms", "jax_platform_name")}
        told = "".join(f", {name.upper()} is {value}" for name, value in asked.items() if value)
        # Of a library that is not installed JAX just asserts that it is; else it tells first why, then what to set.
        why = str(error).partition(" (set ")[0].rstrip(".") or "there is no library for it, or no device"
        raise UserError(f"JAX cannot start{told}: {why.splitlines()[0]}.") from error


def _started() -> bool:
    settings: Any = jax.config
    number = settings.jax_num_cpu_devices
    try:
        # Once its backend has started JAX refuses another number.
        settings.update("jax_num_cpu_devices", number + 1)
    except RuntimeError:
        return True
    settings.update("jax_num_cpu_devices", number)
    return False


def _forked() -> bool:
    """Return whether the threads of a backend that has started are missing, as only the one that forks goes along."""
    try:
        # XLA's have names of their own, Python's have that of the process.
        return len({(thread / "comm").read_text() for thread in Path("/proc/self/task").iterdir()}) == 1
    except OSError:
        return False  # one has just ended; or this is macOS, where Python does not fork unless it is told to
