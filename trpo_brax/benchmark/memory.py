"""What the program needs of memory, and the largest number of environments that fits."""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax

from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.environments.vectorized import POOL_SIZE
from trpo_brax.learner.rollout import Trajectory


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes; of all devices together unless said otherwise."""

    program_bytes: int
    """The compiled program's own plan: state and metrics, and everything that it keeps beside them while it runs."""
    fixed_bytes_per_device: int
    """What does not grow with the environments: parameters, optimiser, metrics; every device holds it."""
    bytes_per_environment: float
    """All the rest of the plan, shared out: state, starting states, T transitions and what is computed from them."""
    environment_state_bytes: int
    """One environment's state between iterations."""
    starting_pool_bytes: int
    """One environment's pool of starting states."""
    transition_bytes: int
    """What is recorded of one step of one environment."""
    process_peak_bytes: int
    """Most that this process has held in the machine's memory, compiler and Python included."""
    device_peak_bytes: int | None
    """Most that was allocated on the devices, the measuring included; None where they do not say, as on a CPU."""
    memory_bytes: int
    """The memory to fit environments into."""
    largest_num_envs: int
    """Most environments that fit into `memory_bytes`, as a multiple of the number of devices."""


def measure_memory(bench: Workbench, memory_gib: float | None) -> Memory:
    """Read the compiled program's plan and what has been used so far.

    Args:
        bench: whose program it is.
        memory_gib: memory in GiB to fit environments into; None: what the devices have.
    """
    devices = list(bench.mesh.devices.flat)
    num_envs, length = bench.config.rollout.num_envs, bench.config.rollout.unroll_length
    bench.program.compile()
    # Told for one device, as every one of them runs the same program.
    plan = bench.program.memory_analysis()
    added = plan.output_size_in_bytes - plan.alias_size_in_bytes
    planned = plan.argument_size_in_bytes + added + plan.temp_size_in_bytes
    whole, environments = _bytes(bench.program.abstract_state), _bytes(bench.program.abstract_state.environments)
    fixed = whole - environments + added
    per_environment = (planned - fixed) * len(devices) / num_envs
    available = round(memory_gib * 2**30) if memory_gib is not None else available_bytes(devices)
    return Memory(
        program_bytes=planned * len(devices),
        fixed_bytes_per_device=fixed,
        bytes_per_environment=per_environment,
        environment_state_bytes=_bytes(bench.state.environments) // num_envs,
        starting_pool_bytes=POOL_SIZE * _bytes(bench.state.environments.state) // num_envs,
        transition_bytes=_bytes(_trajectory(bench)) // (num_envs * length),
        process_peak_bytes=_process_peak(),
        device_peak_bytes=_device_peak(devices),
        memory_bytes=available,
        largest_num_envs=largest_num_envs(available, fixed, per_environment, len(devices)),
    )


def largest_num_envs(available: float, fixed_per_device: float, per_environment: float, devices: int) -> int:
    """Return the largest multiple N of `devices` with devices fixed + N per_environment <= available, at least 0.

    All in bytes, of all devices together but for `fixed_per_device`. What the program keeps beside its state grows
    with N a little slower than in proportion, so the N that is found is safe rather than tight.
    """
    room = available - devices * fixed_per_device
    return max(0, math.floor(room / (devices * per_environment)) * devices)


def available_bytes(devices: list[jax.Device]) -> int:
    """Return the memory of all devices together: their own where they say, else what this process may use."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if all(limit is not None for limit in limits):
        return sum(int(limit) for limit in limits if limit is not None)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine
    return min(machine, int(group)) if group.isdigit() else machine


def _trajectory(bench: Workbench) -> Trajectory:
    trajectory: Trajectory = jax.eval_shape(bench.gather, bench.state)[1]
    return trajectory


def _bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays, or of what their shapes announce."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _device_peak(devices: list[jax.Device]) -> int | None:
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in devices]
    return sum(int(peak) for peak in peaks if peak is not None) if None not in peaks else None


def _process_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
