"""Which devices a run uses, and JAX's own settings that must be made before the first of them is touched."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from trpo_brax.config import RuntimeConfig
from trpo_brax.errors import UserError
from trpo_brax.host import processes
from trpo_brax.host.paths import user_path
from trpo_brax.host.settings import check_process, start_jax

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_CUDA = 'pip install ".[cuda12]" or ".[cuda13]"'


@dataclasses.dataclass(frozen=True)
class Host:
    """What a run has to run on."""

    devices: list[jax.Device]
    """To shard the environments over."""
    group: processes.Group
    """The processes that train together."""


def prepare(runtime: RuntimeConfig, num_envs: int, tell: Callable[[str], None], *, join: bool = False) -> Host:
    """Set platform, CPU devices and compilation cache, join the run's other processes, and choose devices.

    What is already in use is left as it is.

    Args:
        runtime: what is asked for.
        num_envs: environments that the devices will share: as many of each process.
        tell: given notes for the user, one line each.
        join: the run may be one of several processes.

    Raises:
        UserError: what is asked for cannot be had.
    """
    if runtime.cpu_devices is not None and num_envs % runtime.cpu_devices:
        raise UserError(f"cpu_devices must divide num_envs, and {runtime.cpu_devices} does not divide {num_envs}.")
    started = check_process()
    _configure_cache(runtime.compilation_cache, tell)
    if runtime.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    settings: Any = jax.config
    if not started and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        own = max(0, settings.jax_num_cpu_devices)  # JAX_NUM_CPU_DEVICES, for instance
        wanted = runtime.cpu_devices or own or largest_divisor(num_envs, usable_cores())
        settings.update("jax_num_cpu_devices", wanted)
    if runtime.deterministic:
        _configure_determinism(started)
    if join:
        processes.join(runtime)
    start_jax()
    if runtime.platform == "gpu" and jax.default_backend() != "gpu":
        raise UserError(f"platform gpu was asked for, but JAX finds no GPU: {_CUDA} in a checkout.")
    if runtime.platform == "auto" and _nvidia_visible() and not _cuda_plugin():
        tell(f"An NVIDIA GPU is visible, but this JAX is CPU-only: {_CUDA} in a checkout.")
    group = processes.group()
    return Host(group.do(lambda: _shared_out(runtime, num_envs)), group)


def usable_cores() -> int:
    """Return the CPU cores this process may use: its affinity, and its control group's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _control_group_quota()
    return max(1, min(cores, math.floor(quota))) if quota is not None else cores


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is not above `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def _shared_out(runtime: RuntimeConfig, num_envs: int) -> list[jax.Device]:
    devices = jax.devices("cpu") if runtime.platform == "cpu" else jax.devices()
    by_process = [[one for one in devices if one.process_index == index] for index in range(jax.process_count())]
    limit = len(by_process[0])  # as many as any other process has: `processes.join` saw to it
    if runtime.cpu_devices is not None and devices[0].platform == "cpu":
        if runtime.cpu_devices > limit:
            raise UserError(
                f"cpu_devices is {runtime.cpu_devices}, but JAX has {limit}: by XLA_FLAGS, or by when it started."
            )
        limit = runtime.cpu_devices
    share, rest = divmod(num_envs, len(by_process))
    if rest:
        raise UserError(f"num_envs must be a multiple of the {len(by_process)} processes, not {num_envs}.")
    return [device for own in by_process for device in own[: largest_divisor(share, limit)]]


def _configure_determinism(started: bool) -> None:
    """Add the flag by which XLA promises that a GPU repeats a program bit for bit, and a process another's.

    It excludes operations whose order is left to chance, and autotuning, which picks kernels by a race. XLA reads
    XLA_FLAGS once, when the first backend starts.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC in flags.split():
        return
    if _DETERMINISTIC.partition("=")[0] in flags:
        raise UserError(f"deterministic was asked for, but XLA_FLAGS holds {flags!r}.")
    os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}".strip()
    if started and jax.default_backend() == "gpu":
        raise UserError("deterministic was asked for after JAX has started on a GPU: set it before JAX is used.")


def _configure_cache(directory: str, tell: Callable[[str], None]) -> None:
    settings: Any = jax.config
    settings.update("jax_enable_compilation_cache", directory != "none")
    # The user's own setting, JAX_COMPILATION_CACHE_DIR for instance, wins.
    own = settings.jax_compilation_cache_dir if directory == "auto" else None
    if directory == "none" or "://" in (own or ""):
        return
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "trpo_brax", "xla")
    chosen = directory if directory != "auto" else own or usual
    try:
        path = user_path(chosen)
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError) as error:
        why = f"{chosen} cannot be created: {error.strerror}." if isinstance(error, OSError) else f"{error}"
        if directory != "auto":
            raise UserError(f"compilation_cache {why}") from error
        # A cache is a convenience.
        settings.update("jax_enable_compilation_cache", False)
        tell(f"Compiled programs are not kept: {why}")
        return
    settings.update("jax_compilation_cache_dir", str(path))
    if own is None:
        # Everything is cached: the many small programs of a start add up to seconds.
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        with tempfile.TemporaryFile(dir=path, buffering=0) as file:
            file.write(b"\0")
    except OSError as error:
        # What it holds is read; of every program that it cannot take JAX would warn.
        settings.update("jax_persistent_cache_min_compile_time_secs", math.inf)
        settings.update("jax_persistent_cache_enable_xla_caches", "none")
        tell(f"Compiled programs are not kept: {path} cannot be written: {error.strerror}.")


def _control_group_quota() -> float | None:
    """Return the CPU quota in cores, None where there is none, as under control groups of version 1."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else float(quota) / float(period)


def _nvidia_visible() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def _cuda_plugin() -> bool:
    return any(importlib.util.find_spec(name) is not None for name in ("jax_cuda12_plugin", "jax_cuda13_plugin"))
