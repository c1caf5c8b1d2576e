"""The samples of a step, of an iteration's arrays [N, T], and the policy's step as the configuration asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trpo_brax.algorithm import (
    Accept,
    ConjugateGradientResult,
    Distribution,
    FullStep,
    PolicyBatch,
    Scale,
    StepOutcome,
    TrustRegionStep,
    ValueBatch,
    anywhere,
    inside_the_region,
    to_the_edge,
    trust_region_step,
)
from trpo_brax.config import TrustRegionConfig


def policy_batch(
    observations: jax.Array, actions: jax.Array, advantages: jax.Array, weights: jax.Array, fisher_fraction: float
) -> PolicyBatch:
    """Return the samples [N, T] of a policy's step; Fisher products see every k-th time step, k = 1 / fisher_fraction.

    [N, T] is merged into one axis: a weight gradient that contracts two axes costs a copy of everything it reads.
    """
    parts = (observations, actions, advantages, weights, *every_kth(observations, weights, fisher_fraction))
    return PolicyBatch(*(_merged(part) for part in parts))


def value_batch(observations: jax.Array, targets: jax.Array, weights: jax.Array, fraction: float) -> ValueBatch:
    """Return the samples [N, T] of a critic's fit; Gauss-Newton products see every k-th time step, k = 1 / fraction."""
    parts = (observations, targets, weights, *every_kth(observations, weights, fraction))
    return ValueBatch(*(_merged(part) for part in parts))


def every_kth(observations: jax.Array, weights: jax.Array, fraction: float) -> tuple[jax.Array, jax.Array]:
    """Return the observations of every k-th time step, k = 1 / fraction, and their weights, which sum to one."""
    stride = max(round(1.0 / fraction), 1)
    chosen = weights[:, ::stride]
    total = jnp.sum(chosen)
    return observations[:, ::stride], chosen / jnp.where(total > 0, total, 1.0)


def _merged(array: jax.Array) -> jax.Array:
    return array.reshape(-1, *array.shape[2:])


def policy_step(
    policy: Callable[[Any, jax.Array], Distribution],
    parameters: Any,
    batch: PolicyBatch,
    settings: TrustRegionConfig,
    *,
    max_kl: float | jax.Array,
    ready: jax.Array | bool = True,
) -> TrustRegionStep:
    """Take the step that `settings` ask for, within `max_kl` [] nats; none before `ready` (bool [])."""
    scale, accept, max_trials = step_rules(settings, max_kl)

    def from_then_on(solved: ConjugateGradientResult, gradient: jax.Array) -> FullStep:
        full = scale(solved, gradient)
        return full._replace(outcome=jnp.where(ready, full.outcome, StepOutcome.WARM_UP))

    return trust_region_step(
        policy,
        parameters,
        batch,
        damping=settings.damping,
        cg_iterations=settings.cg_iterations,
        cg_tolerance=settings.cg_tolerance,
        scale=from_then_on,
        accept=accept,
        max_trials=max_trials,
        backtrack_factor=settings.backtrack_factor,
    )


def step_rules(settings: TrustRegionConfig, max_kl: float | jax.Array) -> tuple[Scale, Accept, int]:
    """Return how far to go, what to keep and how often to try: TRPO's, or the natural gradient's, which tries once."""
    scale = to_the_edge(max_kl)
    if settings.mode == "natural_gradient":
        return scale, anywhere, 1
    return scale, inside_the_region(max_kl, settings.acceptance_ratio), settings.line_search_steps
