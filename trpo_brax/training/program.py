"""The compiled program: many iterations in one jitted, donated call over a mesh of devices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trpo_brax.config import Config
from trpo_brax.environments import Task, VectorizedEnvironment
from trpo_brax.policy import ActionBounds, PolicySpecification
from trpo_brax.training.iteration import Iteration
from trpo_brax.training.metrics import Metrics
from trpo_brax.training.state import TrainState, initial_state

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
        mesh = Mesh(np.asarray(devices), ("envs",))
        several = config.num_seeds > 1
        sharded = NamedSharding(mesh, PartitionSpec(None, "envs") if several else PartitionSpec("envs"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        keys = jnp.stack([jax.random.PRNGKey(seed) for seed in config.seeds])

        def initialize() -> TrainState:
            begin = functools.partial(initial_state, config, environment, networks)
            return jax.vmap(begin)(keys) if several else begin(keys[0])

        # Jitted, so that asking for its shapes and running it share one trace: tracing Brax takes seconds.
        iteration = Iteration(config, environment, networks, self.specification.bounds)
        advance = jax.jit(jax.vmap(iteration) if several else iteration)

        def chunk(state: TrainState, iterations: jax.Array) -> tuple[TrainState, Metrics]:
            shapes = jax.eval_shape(advance, state)[1]
            buffers = jax.tree.map(lambda leaf: jnp.zeros((CHUNK_CAPACITY, *leaf.shape), leaf.dtype), shapes)

            def body(index: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
                new_state, metrics = advance(carry[0])
                return new_state, jax.tree.map(lambda rows, row: rows.at[index].set(row), carry[1], metrics)

            # A traced trip count: one executable serves every chunk length, bit for bit.
            return jax.lax.fori_loop(0, iterations, body, (state, buffers))

        self.abstract_state = jax.eval_shape(initialize)
        self.shardings = jax.tree.map(lambda _: self._replicated, self.abstract_state).replace(
            environments=jax.tree.map(lambda _: sharded, self.abstract_state.environments)
        )
        self._initialize = jax.jit(initialize, out_shardings=self.shardings)
        self._chunk = jax.jit(
            chunk,
            donate_argnums=0,
            in_shardings=(self.shardings, self._replicated),
            out_shardings=(self.shardings, self._replicated),
        )
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=self.shardings)
        self._compiled: Any = None

    def initial_state(self) -> TrainState:
        """Return the state of a run that has not begun, of each of its seeds."""
        state: TrainState = self._initialize()
        return state

    def compile(self) -> None:
        """Trace, lower and compile the chunk; `run` does it if this has not been called."""
        if self._compiled is None:
            count = jax.ShapeDtypeStruct((), jnp.int32)
            self._compiled = self._chunk.lower(self.abstract_state, count).compile()

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


def policy_specification(config: Config, task: Task) -> PolicySpecification:
    """Return what policy `config` trains for `task`."""
    bounds = ActionBounds(task.action_low, task.action_high)
    return PolicySpecification(config.network, task.observation_size, bounds)
