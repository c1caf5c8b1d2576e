"""The compiled program: many iterations in one jitted, donated call over a mesh of devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trpo_brax.algorithm import all_finite
from trpo_brax.config import Config
from trpo_brax.environments import Task, VectorizedEnvironment
from trpo_brax.learner.iteration import Iteration
from trpo_brax.learner.metrics import Metrics
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.learner.state import TrainState, initial_state
from trpo_brax.policy import ActionBounds, PolicySpecification

CHUNK_CAPACITY = 256
"""Most iterations in one chunk: the length of the metrics buffers."""


class Program:
    """Everything about a run that is compiled.

    Environment state leads with the environment axis, which is sharded over the mesh; all else is replicated. A run of
    K > 1 seeds has a seed axis before all others, in TrainState and metrics: the same iteration, mapped over it.

    Args:
        config: of the run.
        task: to train on.
        devices: to shard the environments over; their number divides `num_envs`.
    """

    def __init__(self, config: Config, task: Task, devices: Sequence[jax.Device]) -> None:
        self.config = config
        self.task = task
        self.specification = policy_specification(config, task)
        networks = self.specification.networks()
        environment = VectorizedEnvironment(
            task, episode_length=config.rollout.episode_length, action_repeat=config.rollout.action_repeat
        )
        self.mesh = Mesh(np.asarray(devices), ("envs",))
        several = config.num_seeds > 1
        sharded = NamedSharding(self.mesh, PartitionSpec(None, "envs") if several else PartitionSpec("envs"))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        keys = jnp.stack([jax.random.PRNGKey(seed) for seed in config.seeds])

        def initialize() -> TrainState:
            begin = functools.partial(initial_state, config, environment, networks)
            return jax.vmap(begin)(keys) if several else begin(keys[0])

        # Jitted, so that asking for its shapes and running it share one trace: tracing Brax takes seconds.
        self.iteration = Iteration(config, environment, networks, self.specification.bounds)
        advance = jax.jit(jax.vmap(self.iteration) if several else self.iteration)
        with_batch = jax.vmap(self.iteration.with_batch) if several else self.iteration.with_batch

        def chunk(state: TrainState, iterations: jax.Array) -> tuple[TrainState, Metrics]:
            shapes = jax.eval_shape(advance, state)[1]
            buffers = jax.tree.map(lambda leaf: jnp.zeros((CHUNK_CAPACITY, *leaf.shape), leaf.dtype), shapes)

            def body(index: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
                new_state, metrics = advance(carry[0])
                return new_state, jax.tree.map(lambda rows, row: rows.at[index].set(row), carry[1], metrics)

            # A traced trip count: one executable serves every chunk length, bit for bit.
            return jax.lax.fori_loop(0, iterations, body, (state, buffers))

        def placement(at: NamedSharding) -> TrainState:
            """Environments at `at`, and everything else on every device: a prefix of TrainState."""
            parts: dict[str, Any] = {field.name: self._replicated for field in dataclasses.fields(TrainState)}
            return TrainState(**{**parts, "environments": at})

        self._initialize = jax.jit(initialize, out_shardings=placement(sharded))
        self.abstract_state: TrainState = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._initialize.trace().out_info
        )
        self.shardings: TrainState = jax.tree.broadcast(placement(sharded), self.abstract_state)
        self._chunk = jax.jit(
            chunk,
            donate_argnums=0,
            in_shardings=(self.shardings, self._replicated),
            out_shardings=(self.shardings, self._replicated),
        )
        self._one = jax.jit(with_batch, in_shardings=(self.shardings,))
        self._sound = jax.jit(_learner_is_finite)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=self.shardings)
        self._compiled_initialize: Any = None
        self._compiled: Any = None

    def initial_state(self) -> TrainState:
        """Return the state of a run that has not begun, of each of its seeds."""
        if self._compiled_initialize is None:
            self._compiled_initialize = self._initialize.lower().compile()
        state: TrainState = self._compiled_initialize()
        return state

    def compile(self, *, to_begin: bool = False) -> None:
        """Trace, lower and compile the chunk; `run` does it if this has not been called.

        Args:
            to_begin: compile what makes the initial state as well, while the chunk compiles.
        """
        if self._compiled is not None:
            return
        count = jax.ShapeDtypeStruct((), jnp.int32)
        by_one = self.config.runtime.check_finite
        lowered = self._one.lower(self.abstract_state) if by_one else self._chunk.lower(self.abstract_state, count)
        # XLA compiles outside Python's lock, one program on one core.
        with ThreadPoolExecutor(1) as background:
            compiling = background.submit(lowered.compile)
            if to_begin and self._compiled_initialize is None:
                self._compiled_initialize = self._initialize.lower().compile()
            self._compiled = compiling.result()

    def run_one(self, state: TrainState) -> tuple[TrainState, Metrics, Trajectory]:
        """Run one iteration and return its batch as well; `state` is not donated.

        Metrics lead with [1], or [1, K] for several seeds, as those of a chunk of one iteration; the batch's leaves
        with [N, T], or [K, N, T].
        """
        self.compile()
        new_state, metrics, trajectory = self._compiled(state)
        return new_state, jax.tree.map(lambda leaf: leaf[None], metrics), trajectory

    def sound(self, state: TrainState) -> bool:
        """Return whether everything that learns is finite: parameters, optimiser and observation statistics."""
        return bool(self._sound(state))

    def memory_analysis(self) -> Any:
        """Return XLA's plan of the compiled chunk's memory, in bytes per device."""
        self.compile()
        return self._compiled.memory_analysis()

    def export(self, platforms: Sequence[str]) -> tuple[jax.export.Exported, jax.export.Exported]:
        """Return the chunk and what makes the initial state, lowered for platforms that need not be here."""
        count = jax.ShapeDtypeStruct((), jnp.int32)
        chunk = jax.export.export(self._chunk, platforms=platforms)(self.abstract_state, count)
        return chunk, jax.export.export(self._initialize, platforms=platforms)()

    def run(self, state: TrainState, iterations: int) -> tuple[TrainState, Metrics]:
        """Dispatch `iterations` iterations (at most `CHUNK_CAPACITY`) and return without waiting.

        `state` is donated: it must not be used again. Metrics lead with [CHUNK_CAPACITY], or [CHUNK_CAPACITY, K] for
        several seeds; the first `iterations` rows are filled.
        """
        self.compile()
        count = jax.device_put(np.asarray(iterations, np.int32), self._replicated)
        result: tuple[TrainState, Metrics] = self._compiled(state, count)
        return result

    def copy(self, state: TrainState) -> TrainState:
        """Return a copy that outlives the donation of `state`."""
        copied: TrainState = self._copy(state)
        return copied


def _learner_is_finite(state: TrainState) -> jax.Array:
    learner = (state.policy, state.critic, state.critic_optimizer, state.statistics)
    return all_finite([leaf for leaf in jax.tree.leaves(learner) if jnp.issubdtype(leaf.dtype, jnp.inexact)])


def policy_specification(config: Config, task: Task) -> PolicySpecification:
    """Return what policy `config` trains for `task`."""
    bounds = ActionBounds(task.action_low, task.action_high)
    return PolicySpecification(config.network, task.observation_size, bounds)
