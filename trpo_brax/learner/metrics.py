"""What an iteration says about itself: computed on the device, written by the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_brax.algorithm import (
    StepOutcome,
    TrustRegionStep,
    improvement_lower_bound,
    penalty_coefficient,
)
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.policy import ActionBounds, ObservationStatistics

Metrics = dict[str, Any]
"""Name -> scalar array; NaN stands for a quantity that has no value in the iteration. `environment` is nested."""
_ROUNDING = 1e-6
"""Of a float32, relative, after a few operations."""


def experience_metrics(
    trajectory: Trajectory, normalized: jax.Array, statistics: ObservationStatistics, bounds: ActionBounds
) -> Metrics:
    """Return what a rollout says: its episodes, what in it was not finite, its actions and observations.

    `normalized` [N, T, observation] is what `statistics` made of the observations.
    """
    valid, reward = trajectory.transitions.valid, trajectory.transitions.reward
    return {
        **_episode_metrics(trajectory),
        "reward_max_abs": jnp.where(jnp.any(valid), jnp.max(jnp.where(valid, jnp.abs(reward), 0.0)), jnp.nan),
        **observation_metrics(trajectory, normalized, statistics),
        "nonfinite_envs": jnp.sum(jnp.any(~valid, axis=1)).astype(jnp.int32),
        "nonfinite_share": jnp.mean(~valid, dtype=jnp.float32),
        "action_saturation": jnp.mean(bounds.saturated(trajectory.actions).astype(jnp.float32)),
    }


def step_metrics(
    step: TrustRegionStep, surrogate_gain: jax.Array, advantage_max_abs: jax.Array, discount: float | jax.Array
) -> Metrics:
    """Return what a step says of itself, and of the bound; gain [] and largest [] are of the raw advantages."""
    taken, evaluation = step.taken, step.taken.evaluation
    return {
        "surrogate_improvement": evaluation.improvement,
        "surrogate_improvement_predicted": taken.predicted_improvement,
        "kl_mean": evaluation.kl_mean,
        "kl_max": evaluation.kl_max,
        "cg_iterations": step.solved.iterations,
        "cg_relative_residual": step.solved.relative_residual,
        "line_search_trials": taken.trials,
        "step_fraction": taken.fraction,
        "step_outcome": taken.outcome,
        "advantage_max_abs": advantage_max_abs,
        "penalty_coefficient": penalty_coefficient(advantage_max_abs, discount),
        "improvement_lower_bound": improvement_lower_bound(
            surrogate_gain, advantage_max_abs, evaluation.kl_max, discount
        ),
    }


def observation_metrics(trajectory: Trajectory, normalized: jax.Array, statistics: ObservationStatistics) -> Metrics:
    """Return how observations lie within the statistics that they were normalised with; NaN without a valid sample.

    observation_constant_share: of the components, those that are the same in all samples. observation_max_abs: the
    largest distance from the mean before clipping, in standard deviations. observation_spread_min: of the components
    that vary, the smallest mean of min(distance, 1), 0.63 for normal ones; near 0 where outliers have spread the
    statistics.
    """
    valid = trajectory.transitions.valid
    used, count = valid[..., None], jnp.sum(valid, dtype=jnp.float32)
    # Of the extremes of each component, so that distances need no second pass over the batch.
    lowest = jnp.min(jnp.where(used, trajectory.observations, jnp.inf), axis=(0, 1))
    highest = jnp.max(jnp.where(used, trajectory.observations, -jnp.inf), axis=(0, 1))
    farthest = jnp.maximum(highest - statistics.mean, statistics.mean - lowest) / statistics.std()
    spread = jnp.sum(jnp.where(used, jnp.minimum(jnp.abs(normalized), 1.0), 0.0), axis=(0, 1)) / count
    # A constant may come out of the simulator's arithmetic in the last bits.
    varies = highest - lowest > _ROUNDING * jnp.maximum(jnp.abs(highest), jnp.abs(lowest))
    values = {
        "observation_constant_share": jnp.mean(~varies, dtype=jnp.float32),
        "observation_max_abs": jnp.max(farthest),
        "observation_spread_min": jnp.min(jnp.where(varies, spread, jnp.inf)),
    }
    return {name: jnp.where(count > 0, value, jnp.nan) for name, value in values.items()}


def fingerprint(tree: Any) -> jax.Array:
    """Return uint32 []: a checksum of every bit of a tree of float32 arrays; equal trees agree on any device."""
    total, offset = jnp.zeros((), jnp.uint32), 0
    for leaf in jax.tree.leaves(tree):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        # Each word is mixed with its place, so that no two changes cancel but by chance. Integers add in any order.
        place = jnp.arange(offset, offset + bits.size, dtype=jnp.uint32)
        total += jnp.sum(_mixed(bits + _mixed(place)), dtype=jnp.uint32)
        offset += bits.size
    return total


def _mixed(words: jax.Array) -> jax.Array:
    """Return MurmurHash3's finaliser of uint32 words, a bijection."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ (words >> shift)) * jnp.uint32(factor)
    return words ^ (words >> 16)


def record(metrics: Metrics) -> dict[str, Any]:
    """Return one iteration's metrics as JSON-ready values: NaN becomes None, codes become words."""
    return {name: _plain(name, value) for name, value in metrics.items()}


def across_seeds(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one line of an iteration of several seeds: their mean return, their largest KL, how many steps went in."""
    if len(records) == 1:
        return records[0]
    returns = [row["episode_return_mean"] for row in records if row["episode_return_mean"] is not None]
    accepted = sum(row["step_outcome"] == "accepted" for row in records)
    return {
        **records[0],
        "env_steps": sum(row["env_steps"] for row in records),
        "steps_per_second": sum(row["steps_per_second"] for row in records),
        "episode_return_mean": float(np.mean(returns)) if returns else None,
        "kl_mean": max(row["kl_mean"] for row in records),
        "step_outcome": f"{accepted} of {len(records)} accepted",
        "nonfinite_envs": sum(row["nonfinite_envs"] for row in records),
    }


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        # By no name of ours: an author may call a metric as he likes.
        return {key: _plain("", item) for key, item in value.items()}
    if name == "step_outcome":
        return StepOutcome(int(value)).name.lower()
    if name == "parameter_fingerprint":
        return f"{int(value):08x}"
    if np.issubdtype(np.asarray(value).dtype, np.integer):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _episode_metrics(trajectory: Trajectory) -> Metrics:
    transitions = trajectory.transitions
    ended = transitions.episode_ended
    count = jnp.sum(ended)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(ended, values, 0.0)) / count  # no episode: 0 / 0 is NaN, which stands for no value

    returns = transitions.episode_return
    average = mean(returns)
    return {
        "episodes": count.astype(jnp.int32),
        "episode_return_mean": average,
        "episode_return_std": jnp.sqrt(mean(jnp.square(returns - average))),
        "episode_return_min": jnp.where(count > 0, jnp.min(jnp.where(ended, returns, jnp.inf)), jnp.nan),
        "episode_length_mean": mean(transitions.episode_length.astype(jnp.float32)),
        "environment": {name: mean(values) for name, values in transitions.episode_metrics.items()},
    }
