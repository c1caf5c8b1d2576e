"""The three columns by which simulators' trainers are compared: physics, physics with inference, training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from trpo_brax.benchmark.timing import Samples, interleave
from trpo_brax.benchmark.workbench import Workbench


@dataclasses.dataclass(frozen=True)
class Columns:
    """Seconds for the same N x T control steps, taken in turn."""

    steps: int
    """N x T."""
    times: dict[str, Samples]
    """Of physics, rollout and training."""

    def rates(self) -> dict[str, tuple[float, float, float]]:
        """Return lowest, median and highest control steps a second of each column."""
        return {name: samples.rates(self.steps) for name, samples in self.times.items()}

    def to_physics(self, name: str) -> float:
        """Return a column's speed as a fraction of that of the physics alone."""
        return self.times["physics"].over(self.times[name])


def measure_columns(bench: Workbench, repeats: int) -> Columns:
    """Time physics, rollout and training in turn."""
    random_walk, state, actions = physics(bench)
    pieces: dict[str, Callable[[], Any]] = {
        "physics": lambda: random_walk(state, actions),
        "rollout": lambda: bench.gather(bench.state),
        "training": training(bench),
    }
    return Columns(bench.config.steps_per_iteration, interleave(pieces, repeats))


def training(bench: Workbench) -> Callable[[], Any]:
    """Return one iteration a call, each on the state that the last one left, as in a run."""
    state = bench.program.copy(bench.state)

    def iterate() -> Any:
        nonlocal state
        state, metrics = bench.program.run(state, 1)
        return state, metrics

    return iterate


def physics(bench: Workbench) -> tuple[Callable[[Any, jax.Array], Any], Any, jax.Array]:
    """Return the compiled random walk, (Brax's State of all environments, actions [T, N, A]) -> State, and its input.

    The limit that training is measured against: `environment.step` as it is, under `vmap` and `lax.scan`, sharded.
    No reset, no time limit, no guard, nothing recorded; the actions, uniform between their bounds and different for
    every environment and step, are drawn beforehand.
    """
    rollout, task, bounds = bench.config.rollout, bench.task, bench.program.iteration.bounds

    def control_step(state: Any, action: jax.Array) -> Any:
        if rollout.action_repeat == 1:
            return task.advance(state, action)
        return jax.lax.fori_loop(0, rollout.action_repeat, lambda _, old: task.advance(old, action), state)

    def walk(state: Any, actions: jax.Array) -> Any:
        return jax.lax.scan(lambda old, action: (jax.vmap(control_step)(old, action), None), state, actions)[0]

    def draw() -> jax.Array:
        shape = (rollout.unroll_length, rollout.num_envs, bounds.size)
        return bounds.to_environment(jax.random.uniform(jax.random.PRNGKey(0), shape, jnp.float32, -1.0, 1.0))

    sharded = NamedSharding(bench.program.mesh, PartitionSpec("envs"))
    sharded_within_time = NamedSharding(bench.program.mesh, PartitionSpec(None, "envs"))
    actions = jax.jit(draw, out_shardings=sharded_within_time)()
    compiled = jax.jit(walk, in_shardings=(sharded, sharded_within_time), out_shardings=sharded)
    return compiled, bench.state.environments.state, actions
