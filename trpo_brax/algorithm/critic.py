"""Fitting a value function by Gauss-Newton steps: the policy's own step, of a Gaussian of unit variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from trpo_brax.algorithm.advantages import weighted_moments
from trpo_brax.algorithm.line_search import StepOutcome, any_improvement
from trpo_brax.algorithm.surrogate import Evaluation, Parameters, weighted_mean
from trpo_brax.algorithm.trust_region import to_the_minimum, trust_region_step

_LENGTHS = 10
"""Most lengths tried of a step."""


class CriticFit(NamedTuple):
    """The fitted critic."""

    parameters: Parameters
    optimizer_state: Any
    """Of the optimiser; Gauss-Newton steps have none."""
    loss: jax.Array
    """[]: mean squared error, in units of the targets squared; NaN without a valid sample."""
    refused: jax.Array
    """int32 []: updates that changed nothing because they were not finite."""


@struct.dataclass
class UnitGaussian:
    """A value read as the mean of a Gaussian of variance 1: least squares is then its likelihood."""

    mean: jax.Array
    """[S, 1]: V(s), in units of the targets."""

    def kl(self, new: UnitGaussian) -> jax.Array:
        """Return KL(self || new) [S] = (V_new - V)^2 / 2."""
        return 0.5 * jnp.square(new.mean - self.mean)[..., 0]

    def fisher_metric(self, tangent: UnitGaussian) -> UnitGaussian:
        """Apply the Fisher metric, which is 1."""
        return tangent


class ValueBatch(NamedTuple):
    """Samples of one fit; what those of weight 0 hold is finite and counts for nothing."""

    inputs: jax.Array
    """[S, ...]: what the critic reads."""
    targets: jax.Array
    """[S]"""
    weights: jax.Array
    """[S]: of each sample, summing to one."""
    fisher_inputs: jax.Array
    """[F, ...]: those of the samples that Gauss-Newton products see."""
    fisher_weights: jax.Array
    """[F]: theirs, summing to one."""

    def against(self, old: UnitGaussian) -> Callable[[UnitGaussian], Evaluation]:
        """Return candidate -> its `Evaluation`; the improvement is the fall of E (V - y)^2 / 2."""
        errors = self.targets - old.mean[..., 0]

        def evaluate(new: UnitGaussian) -> Evaluation:
            # Of the change itself: the difference of two losses would lose the digits of a small one.
            change, kl = (new.mean - old.mean)[..., 0], old.kl(new)
            return Evaluation(
                improvement=weighted_mean(change * (errors - 0.5 * change), self.weights),
                kl_mean=weighted_mean(kl, self.weights),
                kl_max=jnp.max(jnp.where(self.weights > 0, kl, 0.0)),
                ratio_excess=jnp.zeros_like(kl, shape=()),
            )

        return evaluate


def fit_by_gauss_newton(
    value_of: Callable[[Parameters, jax.Array], jax.Array],
    parameters: Parameters,
    batch: ValueBatch,
    *,
    steps: int,
    damping: float,
    cg_iterations: int,
    cg_tolerance: float,
) -> CriticFit:
    """Minimise E (V(s) - y)^2 / 2 by steps (G + damping I) d = gradient, halved until the loss falls.

    G = E J^T J is the Gauss-Newton matrix, which is the Fisher matrix of `UnitGaussian`: so this is the policy's step
    with another objective and no edge (Levenberg 1944; Schulman et al. 2016, arXiv 1506.02438, section 5, fit theirs
    in a trust region by the same machinery). There is no learning rate, no order of samples and no state. A step that
    raises the loss or is not finite is not taken, and then the parameters are bit-identical.

    Args:
        value_of: (parameters, inputs [S, ...]) -> values [S], by matrix products of the highest precision.
        parameters: of the critic.
        batch: the samples.
        steps: how many, each linearised where the one before it ended.
        damping: in units of the targets squared.
        cg_iterations: most products of a step.
        cg_tolerance: conjugate gradient stops at this residual, relative to the gradient.
    """

    def model(candidate: Parameters, inputs: jax.Array) -> UnitGaussian:
        return UnitGaussian(value_of(candidate, inputs)[..., None])

    def step(current: Parameters, _: None) -> tuple[Parameters, jax.Array]:
        taken = trust_region_step(
            model,
            current,
            batch,
            damping=damping,
            cg_iterations=cg_iterations,
            cg_tolerance=cg_tolerance,
            scale=to_the_minimum,
            accept=any_improvement,
            max_trials=_LENGTHS,
            backtrack_factor=0.5,
        )
        unsound = jnp.array([StepOutcome.NON_FINITE, StepOutcome.BAD_CURVATURE])
        return taken.parameters, jnp.any(taken.taken.outcome == unsound)

    parameters, refused = jax.lax.scan(step, parameters, None, length=steps)
    errors = value_of(parameters, batch.inputs) - batch.targets
    loss = weighted_mean(jnp.square(errors), batch.weights)
    some = jnp.any(batch.weights > 0)
    return CriticFit(parameters, optax.EmptyState(), jnp.where(some, loss, jnp.nan), jnp.sum(refused, dtype=jnp.int32))


def explained_variance(predictions: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Return 1 - Var(targets - predictions) / Var(targets) [], NaN where the targets do not vary.

    Args:
        predictions: [...].
        targets: [...].
        weights: [...], summing to one.
    """

    spread = weighted_moments(targets, weights)[1]
    error = weighted_moments(targets - predictions, weights)[1]
    return jnp.where(spread > 0, 1.0 - jnp.square(error / jnp.where(spread > 0, spread, 1.0)), jnp.nan)
