"""Gathering experience: a scan over time of policy and physics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from trpo_brax.environments import EnvironmentState, Transition, VectorizedEnvironment


class Trajectory(NamedTuple):
    """What happened; all leaves lead with [N, T].

    Environments lead because they are what devices share out: flattened to samples, every shard stays whole, and a
    weight gradient contracts one axis, which XLA multiplies without copying.
    """

    observations: jax.Array
    """[N, T, observation]: what the policy saw, as the environment gave it."""
    actions: jax.Array
    """[N, T, A]: as sampled, before scaling and clipping."""
    transitions: Transition


def rollout(
    environment: VectorizedEnvironment,
    act: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    start: EnvironmentState,
    length: int,
    *,
    pool_keys: jax.Array,
    action_keys: jax.Array,
) -> tuple[EnvironmentState, Trajectory]:
    """Step every environment `length` times.

    Args:
        environment: the copies.
        act: (observations [N, observation], keys uint32 [N, 2]) -> (raw actions [N, A], environment's actions [N, A]).
        start: where they are.
        length: T.
        pool_keys: uint32 [N, 2] for this rollout's starting states.
        action_keys: uint32 [N, 2] for this rollout's actions.
    """
    pool = environment.starting_pool(pool_keys)

    def advance(
        carry: tuple[EnvironmentState, jax.Array], time: jax.Array
    ) -> tuple[tuple[EnvironmentState, jax.Array], Trajectory]:
        current, taken = carry
        observations = current.observation
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(action_keys, time)
        raw, actions = act(observations, keys)
        after, transition, taken = environment.step(current, actions, pool, taken)
        return (after, taken), Trajectory(observations, raw, transition)

    taken = jnp.zeros_like(start.steps)
    (end, _), trajectory = jax.lax.scan(advance, (start, taken), jnp.arange(length))
    return end, jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), trajectory)
