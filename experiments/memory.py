"""What a task's program needs of memory, by the compiler's plan, and the largest number of environments that fits.

    python experiments/memory.py --task ant --memory-gib 80

Prints one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jax
import tyro

from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.environments.making import make_task
from trpo_brax.environments.vectorized import POOL_SIZE
from trpo_brax.host.devices import prepare
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.presets import preset


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a task's program needs of memory, and the largest number of environments that fits."""

    task: str = "hopper"
    """Task, with its preset."""
    memory_gib: float = 16.0
    """Memory of all devices together, in GiB, to fit environments into."""


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
    largest_num_envs: int
    """Most environments that fit into the memory given, as a multiple of the number of devices."""


def measure_memory(bench: Workbench, memory_gib: float) -> Memory:
    """Read the compiled program's plan.

    Args:
        bench: whose program it is.
        memory_gib: memory of all devices together, in GiB, to fit environments into.
    """
    devices = list(bench.program.mesh.devices.flat)
    num_envs, length = bench.config.rollout.num_envs, bench.config.rollout.unroll_length
    plan, planned = bench.program.memory_analysis(), bench.planned_bytes()
    added = plan.output_size_in_bytes - plan.alias_size_in_bytes
    whole, environments = _bytes(bench.program.abstract_state), _bytes(bench.program.abstract_state.environments)
    fixed = whole - environments + added
    per_environment = (planned - len(devices) * fixed) / num_envs
    return Memory(
        program_bytes=planned,
        fixed_bytes_per_device=fixed,
        bytes_per_environment=per_environment,
        environment_state_bytes=_bytes(bench.state.environments) // num_envs,
        starting_pool_bytes=POOL_SIZE * _bytes(bench.state.environments.state) // num_envs,
        transition_bytes=_bytes(_trajectory(bench)) // (num_envs * length),
        largest_num_envs=largest_num_envs(memory_gib * 2**30, fixed, per_environment, len(devices)),
    )


def largest_num_envs(available: float, fixed_per_device: float, per_environment: float, devices: int) -> int:
    """Return the largest multiple N of `devices` with devices fixed + N per_environment <= available, at least 0.

    All in bytes, of all devices together but for `fixed_per_device`. What the program keeps beside its state grows
    with N a little slower than in proportion, so the N that is found is safe rather than tight.
    """
    room = available - devices * fixed_per_device
    return max(0, math.floor(room / (devices * per_environment)) * devices)


def _trajectory(bench: Workbench) -> Trajectory:
    trajectory: Trajectory = jax.eval_shape(bench.gather, bench.state)[1]
    return trajectory


def _bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays, or of what their shapes announce."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main(arguments: Arguments) -> None:
    """Build the task's program and print what it needs."""
    config = preset(arguments.task)
    devices = prepare(config.runtime, config.rollout.num_envs, print).devices
    memory = measure_memory(Workbench.build(config, make_task(config), devices), arguments.memory_gib)
    print(json.dumps(dataclasses.asdict(memory), indent=1))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
