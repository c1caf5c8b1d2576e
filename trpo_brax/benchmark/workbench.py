"""What is measured: one configuration's task, program and iteration on the devices that `train` would use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from trpo_brax.config import Config, override
from trpo_brax.environments import EnvironmentState, Task
from trpo_brax.learner.program import Program
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.learner.state import TrainState


@dataclasses.dataclass(frozen=True)
class Workbench:
    """One configuration with one seed."""

    config: Config
    task: Task
    program: Program
    """Full training, as `train` runs it."""
    state: TrainState
    """After the first iteration, which takes no step, on the devices; never donated."""
    gather: Callable[[TrainState], tuple[EnvironmentState, Trajectory]]
    """The rollout, compiled by itself."""

    @classmethod
    def build(cls, config: Config, task: Task, devices: Sequence[jax.Device]) -> Workbench:
        """Run the first iteration; what else is measured is compiled when it is first called."""
        # One seed: several would be several times the steps in one iteration.
        config = override(config, num_seeds=1)
        program = Program(config, task, devices)
        sharded = NamedSharding(program.mesh, PartitionSpec("envs"))
        gather = jax.jit(program.iteration.gather, in_shardings=(program.shardings,), out_shardings=sharded)
        return cls(config, task, program, program.run(program.initial_state(), 1)[0], gather)

    def planned_bytes(self) -> int:
        """Return what the compiled program holds while it runs, by the compiler's plan, on all devices together."""
        # Told for one device, as every one of them runs the same program.
        plan = self.program.memory_analysis()
        added = plan.output_size_in_bytes - plan.alias_size_in_bytes
        return int(plan.argument_size_in_bytes + added + plan.temp_size_in_bytes) * self.program.mesh.size
