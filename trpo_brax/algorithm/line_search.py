"""Backtracking line search with the trust region's acceptance test, in one `lax.while_loop`."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from optax.tree_utils import tree_add_scale, tree_where

from trpo_brax.algorithm.surrogate import Evaluation, Parameters


class StepOutcome(enum.IntEnum):
    """Why a step was accepted or not."""

    ACCEPTED = 0
    KL_EXCEEDED = 1
    NO_IMPROVEMENT = 2
    NON_FINITE = 3
    ZERO_GRADIENT = 4
    BAD_CURVATURE = 5


class LineSearchResult(NamedTuple):
    """The candidate kept."""

    parameters: Parameters
    """The accepted candidate's, or bit for bit the old ones."""
    evaluation: Evaluation
    """Of the parameters kept; zero where none was accepted."""
    fraction: jax.Array
    """[]: of the full step that was taken; 0 where none was."""
    trials: jax.Array
    """int32 []: candidates evaluated."""
    outcome: jax.Array
    """int32 []: `StepOutcome`; where none was accepted, why the last trial was not."""


class _State(NamedTuple):
    accepted: jax.Array
    result: LineSearchResult


def all_finite(tree: Parameters) -> jax.Array:
    """Return bool []: every number in the tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def candidate_outcome(finite: jax.Array, evaluation: Evaluation, required: jax.Array, max_kl: float) -> jax.Array:
    """Return the `StepOutcome` [] of one candidate.

    Accepted if everything is finite, mean KL <= `max_kl`, and the surrogate improvement is positive and at least
    `required`. Every test is written so that NaN fails it.
    """
    finite &= all_finite(evaluation)
    inside = evaluation.kl_mean <= max_kl
    improves = (evaluation.improvement > 0) & (evaluation.improvement >= required)
    refusal = jnp.where(inside, StepOutcome.NO_IMPROVEMENT, StepOutcome.KL_EXCEEDED)
    outcome = jnp.where(inside & improves, StepOutcome.ACCEPTED, refusal)
    return jnp.where(finite, outcome, StepOutcome.NON_FINITE).astype(jnp.int32)


def backtracking_line_search(
    evaluate: Callable[[Parameters], Evaluation],
    parameters: Parameters,
    full_step: Parameters,
    predicted_improvement: jax.Array,
    *,
    proceed: jax.Array,
    max_kl: float,
    max_trials: int,
    backtrack_factor: float,
    acceptance_ratio: float,
) -> LineSearchResult:
    """Take the first of `parameters + factor^j full_step` that is accepted (Schulman et al. 2015, appendix C).

    Args:
        evaluate: candidate -> its evaluation against the old policy.
        parameters: the old ones, returned untouched if no candidate is accepted.
        full_step: the longest step tried.
        predicted_improvement: [] linear prediction for the full step; a candidate must reach `acceptance_ratio`
            of its share, so the requirement shrinks with the step length and never otherwise.
        proceed: bool []: False makes no trial.
        max_kl: trust region in nats.
        max_trials: most candidates.
        backtrack_factor: ratio of successive step lengths.
        acceptance_ratio: see `predicted_improvement`.
    """
    zero = jnp.zeros_like(predicted_improvement)

    def refused(trials: jax.Array, outcome: jax.Array) -> LineSearchResult:
        return LineSearchResult(parameters, Evaluation(zero, zero, zero, zero), zero, trials, outcome)

    def unfinished(state: _State) -> jax.Array:
        return ~state.accepted & proceed & (state.result.trials < max_trials)

    def attempt(state: _State) -> _State:
        trials = state.result.trials
        fraction = jnp.asarray(backtrack_factor, zero.dtype) ** trials
        candidate = tree_add_scale(parameters, fraction, full_step)
        evaluation = evaluate(candidate)
        required = acceptance_ratio * fraction * predicted_improvement
        outcome = candidate_outcome(all_finite(candidate), evaluation, required, max_kl)
        accepted = outcome == StepOutcome.ACCEPTED
        taken = LineSearchResult(candidate, evaluation, fraction, trials + 1, outcome)
        kept: LineSearchResult = tree_where(accepted, taken, refused(trials + 1, outcome))
        return _State(accepted, kept)

    trials = jnp.zeros((), jnp.int32)
    outcome = jnp.full((), StepOutcome.NO_IMPROVEMENT, jnp.int32)
    start = _State(jnp.zeros((), bool), refused(trials, outcome))
    return jax.lax.while_loop(unfinished, attempt, start).result
