"""One trust-region policy step: gradient, conjugate gradient, step length, line search, accept or keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from trpo_brax.algorithm.line_search import StepOutcome
from trpo_brax.algorithm.policy_update import PolicyUpdate, TrustRegionSettings
from trpo_brax.algorithm.surrogate import Distribution, Evaluation, Parameters, PolicyBatch


class TrustRegionStep(NamedTuple):
    """The parameters kept, and how they came about."""

    parameters: Parameters
    evaluation: Evaluation
    predicted_improvement: jax.Array
    fraction: jax.Array
    trials: jax.Array
    cg_iterations: jax.Array
    cg_relative_residual: jax.Array
    outcome: jax.Array


def trust_region_step(
    distribution_of: Callable[[Parameters, jax.Array], Distribution],
    parameters: Parameters,
    batch: PolicyBatch,
    settings: TrustRegionSettings,
    damping: jax.Array | None = None,
) -> TrustRegionStep:
    """Maximise the surrogate within mean KL(old || new) <= max_kl (Schulman et al. 2015, equation 12).

    A refused step returns the parameters bit for bit. Fisher products see every k-th time step,
    k = round(1 / fisher_fraction); gradient and line search see all.

    Args:
        distribution_of: (parameters, observations [..., observation]) -> action distribution over them.
        parameters: of the policy; any pytree of float arrays.
        batch: the samples [N, T], environments leading.
        settings: a `TrustRegionConfig`.
        damping: [] lambda in F + lambda I, if it is not the settings'.
    """
    update = PolicyUpdate(distribution_of, parameters, settings, damping)
    samples = update.samples(batch)
    gradient, old = update.gradient(update.vector, samples.batch)
    full = update.solve(update.vector, gradient, samples)
    taken = update.search(update.vector, full, old, samples.batch)
    return TrustRegionStep(
        parameters=update.as_tree(taken.parameters),
        evaluation=taken.evaluation,
        predicted_improvement=jnp.where(taken.fraction > 0, taken.fraction * full.predicted_improvement, 0.0),
        fraction=taken.fraction,
        trials=taken.trials,
        cg_iterations=full.cg_iterations,
        cg_relative_residual=full.cg_relative_residual,
        outcome=jnp.where(full.outcome == StepOutcome.ACCEPTED, taken.outcome, full.outcome),
    )
