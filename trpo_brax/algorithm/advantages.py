"""Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp


def generalized_advantage_estimation(
    rewards: jax.Array,
    values: jax.Array,
    next_values: jax.Array,
    terminations: jax.Array,
    dones: jax.Array,
    *,
    discount: float | jax.Array,
    trace_decay: float,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return advantages and value targets of a batch of trajectories.

    delta_t = r_t + gamma (1 - termination_t) V(next_s_t) - V(s_t)
    A_t = delta_t + gamma lambda (1 - done_t) A_{t+1},    target_t = A_t + V(s_t)

    which is equation (16) of the paper with episode ends inside the batch. A time limit is a `done` without a
    `termination`: it bootstraps from the true next observation's value and only cuts the trace. An invalid
    (non-finite) transition gets advantage 0 and cuts the trace, so the step before it bootstraps from V(s_t).

    Args:
        rewards: [T, N] rewards.
        values: [T, N] V(s_t).
        next_values: [T, N] V of the true next observation, before any reset.
        terminations: [T, N] real ends of the task.
        dones: [T, N] ends of any kind, time limits included.
        discount: gamma, per step.
        trace_decay: lambda.
        valid: [T, N] transitions that may be used; all, if not given.

    Returns:
        advantages [T, N], neither centred nor scaled, and value targets [T, N], both in units of return.

    Raises:
        AssertionError: the arrays do not share one [T, N] shape.
    """
    valid = jnp.ones(rewards.shape, bool) if valid is None else valid
    arrays = [rewards, values, next_values, terminations, dones, valid]
    chex.assert_equal_shape(arrays)
    chex.assert_rank(rewards, 2)

    def of_one(reward: Any, value: Any, next_value: Any, termination: Any, done: Any, valid: Any) -> Any:
        """Of one trajectory, [T] each."""
        deltas = jnp.where(valid, reward + discount * jnp.where(termination, 0.0, next_value) - value, 0.0)
        decays = discount * trace_decay * (~done.astype(bool) & valid).astype(value.dtype)

        def backward(next_advantage: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            delta, decay = step
            advantage = delta + decay * next_advantage
            return advantage, advantage

        _, advantages = jax.lax.scan(backward, jnp.zeros_like(value[0]), (deltas, decays), reverse=True)
        return advantages, advantages + value

    result: tuple[jax.Array, jax.Array] = jax.vmap(of_one, in_axes=1, out_axes=1)(*arrays)
    return result


def successor_values(
    value_of: Callable[[jax.Array], jax.Array], values: jax.Array, next_observations: jax.Array, dones: jax.Array
) -> jax.Array:
    """Return V [N, T] of every true next observation, evaluating only those that no other row holds.

    Within an episode the next observation is the next row's, whose value is known. Only the observations that ended
    something, an episode or the trajectory, are evaluated, one of each environment at a time: a pass over as many as
    the busiest environment has ends, instead of one over the whole batch.

    Args:
        value_of: observations [N, observation] -> V [N].
        values: [N, T] V(s_t).
        next_observations: [N, T, observation] before any reset.
        dones: [N, T] ends of any kind.
    """
    ends = jnp.asarray(dones, bool).at[:, -1].set(True)
    order = jnp.cumsum(ends, axis=1)
    most = jnp.max(order[:, -1])  # before the loop: it crosses devices

    def unfinished(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return carry[0] <= most

    def evaluate(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, found = carry
        chosen = ends & (order == number)
        time = jnp.argmax(chosen, axis=1)
        observation = jnp.take_along_axis(next_observations, time[:, None, None], axis=1)[:, 0]
        return number + 1, jnp.where(chosen, value_of(observation)[:, None], found)

    following = jnp.concatenate([values[:, 1:], values[:, -1:]], axis=1)
    first = jnp.ones((), order.dtype)
    return jax.lax.while_loop(unfinished, evaluate, (first, following))[1]


def weighted_moments(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean [] and standard deviation [] of `values` [...] under weights [...] that sum to one.

    Entries of weight 0 may hold anything, NaN included. A standard deviation whose square the dtype cannot hold is
    infinite, and NaN where the values themselves are not finite.
    """
    used = weights > 0
    mean = jnp.sum(jnp.where(used, weights * values, 0.0))
    # A long float32 sum is off by hundreds of roundings; the deviations from it are small, and their sum is not.
    mean += jnp.sum(jnp.where(used, weights * (values - mean), 0.0))
    variance = jnp.sum(jnp.where(used, weights * jnp.square(values - mean), 0.0))
    # Below rounding of the values themselves a spread carries no information: dividing by it would amplify noise.
    rounding = 8 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(jnp.where(used, values, 0.0)))
    std = jnp.sqrt(variance)
    return mean, jnp.where(std <= rounding, 0.0, std)


def standardize(values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Centre and scale `values` once over the whole batch.

    Args:
        values: [...].
        weights: [...], summing to one; entries of weight 0 come back as 0.

    Returns:
        (values - mean) / std [...], mean [] and std []. A batch without spread comes back as zeros, with std 0. Where
        std is not finite, what comes back means nothing.
    """
    mean, std = weighted_moments(values, weights)
    spread = (weights > 0) & (std > 0)
    return jnp.where(spread, (values - mean) / jnp.where(std > 0, std, 1.0), 0.0), mean, std
