"""Backtracking line search with the trust region's acceptance test, in one `lax.while_loop`."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from optax.tree_utils import tree_where

from trpo_brax.algorithm.surrogate import Evaluation, Parameters


class StepOutcome(enum.IntEnum):
    """Why a step was accepted or not."""

    ACCEPTED = 0
    KL_EXCEEDED = 1
    NO_IMPROVEMENT = 2
    NON_FINITE = 3
    ZERO_GRADIENT = 4
    BAD_CURVATURE = 5
    WARM_UP = 6


class FullStep(NamedTuple):
    """The longest step to try."""

    step: jax.Array
    """[P]"""
    predicted_improvement: jax.Array
    """[]: g . step, the linear prediction of the surrogate's improvement."""
    outcome: jax.Array
    """int32 []: ACCEPTED where it may be tried, else why not."""


Accept = Callable[[Evaluation, jax.Array], jax.Array]
"""(evaluation of a candidate, improvement predicted for its length []) -> `StepOutcome` []; NaN must fail its tests."""


class LineSearchResult(NamedTuple):
    """The candidate kept."""

    parameters: jax.Array
    """[P]: the accepted candidate's, or bit for bit the old ones."""
    evaluation: Evaluation
    """Of the parameters kept; zero where none was accepted."""
    predicted_improvement: jax.Array
    """[]: of the step taken; 0 where none was."""
    fraction: jax.Array
    """[]: of the full step that was taken; 0 where none was."""
    trials: jax.Array
    """int32 []: candidates evaluated."""
    outcome: jax.Array
    """int32 []: `StepOutcome`; where none was accepted, why the last trial was not, or why there was none."""


class _State(NamedTuple):
    accepted: jax.Array
    result: LineSearchResult


def all_finite(tree: Parameters) -> jax.Array:
    """Return bool []: every number in the tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def inside_the_region(max_kl: float | jax.Array, acceptance_ratio: float) -> Accept:
    """Return TRPO's test: mean KL <= `max_kl` (nats), and an improvement that is positive and near its prediction.

    Near means at least `acceptance_ratio` of it; so the requirement shrinks with the step length, and never otherwise.
    """

    def accept(evaluation: Evaluation, predicted: jax.Array) -> jax.Array:
        inside = evaluation.kl_mean <= max_kl
        improves = (evaluation.improvement > 0) & (evaluation.improvement >= acceptance_ratio * predicted)
        refusal = jnp.where(inside, StepOutcome.NO_IMPROVEMENT, StepOutcome.KL_EXCEEDED)
        return jnp.where(inside & improves, StepOutcome.ACCEPTED, refusal)

    return accept


def any_improvement(evaluation: Evaluation, predicted: jax.Array) -> jax.Array:
    """Accept every candidate that improves: a fit to targets has no region to stay in."""
    improves = evaluation.improvement > 0
    return jnp.where(improves, StepOutcome.ACCEPTED, StepOutcome.NO_IMPROVEMENT)


def anywhere(evaluation: Evaluation, predicted: jax.Array) -> jax.Array:
    """Accept every candidate: the natural gradient (Kakade 2001) asks nothing of its step."""
    return jnp.full_like(evaluation.improvement, StepOutcome.ACCEPTED, jnp.int32)


def backtracking_line_search(
    evaluate: Callable[[jax.Array], Evaluation],
    parameters: jax.Array,
    full: FullStep,
    accept: Accept,
    *,
    max_trials: int,
    backtrack_factor: float,
) -> LineSearchResult:
    """Take the first of `parameters + factor^j step` that is accepted (Schulman et al. 2015, appendix C).

    A candidate that is not finite, or whose evaluation is not, is refused whatever `accept` says.

    Args:
        evaluate: candidate [P] -> its evaluation against the old policy.
        parameters: [P] the old ones, returned untouched if no candidate is accepted.
        full: the longest step; no trial is made where its outcome is not ACCEPTED.
        accept: whether a candidate may be kept.
        max_trials: most candidates.
        backtrack_factor: ratio of successive step lengths.
    """
    zero = jnp.zeros_like(full.predicted_improvement)
    proceed = full.outcome == StepOutcome.ACCEPTED

    def refused(trials: jax.Array, outcome: jax.Array) -> LineSearchResult:
        return LineSearchResult(parameters, Evaluation(zero, zero, zero, zero), zero, zero, trials, outcome)

    def unfinished(state: _State) -> jax.Array:
        return ~state.accepted & proceed & (state.result.trials < max_trials)

    def attempt(state: _State) -> _State:
        trials = state.result.trials
        fraction = jnp.asarray(backtrack_factor, zero.dtype) ** trials
        predicted = fraction * full.predicted_improvement
        candidate = parameters + fraction * full.step
        evaluation = evaluate(candidate)
        finite = all_finite((candidate, evaluation))
        outcome = jnp.where(finite, accept(evaluation, predicted), StepOutcome.NON_FINITE).astype(jnp.int32)
        accepted = outcome == StepOutcome.ACCEPTED
        taken = LineSearchResult(candidate, evaluation, predicted, fraction, trials + 1, outcome)
        kept: LineSearchResult = tree_where(accepted, taken, refused(trials + 1, outcome))
        return _State(accepted, kept)

    outcome = jnp.where(proceed, StepOutcome.NO_IMPROVEMENT, full.outcome).astype(jnp.int32)
    start = _State(jnp.zeros((), bool), refused(jnp.zeros((), jnp.int32), outcome))
    return jax.lax.while_loop(unfinished, attempt, start).result
