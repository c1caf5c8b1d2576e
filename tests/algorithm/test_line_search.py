"""The line search on hand-made evaluations: one table of what each trial would find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithm.policies import bytes_of
from trpo_brax.algorithm import (
    Evaluation,
    FullStep,
    LineSearchResult,
    StepOutcome,
    all_finite,
    anywhere,
    backtracking_line_search,
    inside_the_region,
)

NAN, INF = float("nan"), float("inf")
TRIALS = 6
MAX_KL = 0.01
PARAMETERS = jnp.asarray([-0.0, 1e-40, 3.0, 0.1])
STEP = jnp.asarray([1.0, 2.0, -1.0, 8.0])


class Trials(NamedTuple):
    """What trial j = 0, 1, ... finds; beyond the table the last entry holds."""

    kl: list[float]
    improvement: list[float]
    kl_max: list[float] | None = None
    ratio_excess: list[float] | None = None


def padded(values: list[float] | None, default: float = 0.0) -> jax.Array:
    values = [default] if values is None else values
    return jnp.asarray(values + values[-1:] * (TRIALS - len(values)), jnp.float32)


@pytest.fixture(scope="module")
def search() -> Callable[..., LineSearchResult]:
    """The compiled search; the table is an argument, and a trial is known by how far the candidate has moved."""

    @jax.jit
    def compiled(
        tables: tuple[jax.Array, ...], step: Any, predicted: Any, outcome: Any, max_trials: Any, factor: Any, ratio: Any
    ) -> LineSearchResult:
        def evaluate(candidate: Any) -> Evaluation:
            moved = (candidate[3] - PARAMETERS[3]) / STEP[3]
            trial = jnp.round(jnp.log(moved) / jnp.log(factor)).astype(jnp.int32)
            kl, improvement, kl_max, ratio_excess = (table[trial] for table in tables)
            return Evaluation(improvement, kl, kl_max, ratio_excess)

        return backtracking_line_search(
            evaluate,
            PARAMETERS,
            FullStep(step, predicted, outcome),
            inside_the_region(MAX_KL, ratio),
            max_trials=max_trials,
            backtrack_factor=factor,
        )

    def call(
        trials: Trials,
        predicted: float = 1.0,
        *,
        outcome: StepOutcome = StepOutcome.ACCEPTED,
        max_trials: int = TRIALS,
        factor: float = 0.5,
        ratio: float = 0.1,
        step: Any = STEP,
    ) -> LineSearchResult:
        tables = tuple(padded(values) for values in (trials.kl, trials.improvement, trials.kl_max, trials.ratio_excess))
        scalars = (jnp.float32(predicted), jnp.int32(outcome), max_trials, jnp.float32(factor), jnp.float32(ratio))
        return compiled(tables, step, *scalars)

    return call


def assert_took(result: LineSearchResult, trial: int, factor: float = 0.5, predicted: float = 1.0) -> None:
    """The candidate of this trial, from 0, was kept."""
    fraction = factor**trial
    assert result.outcome == StepOutcome.ACCEPTED
    assert result.trials == trial + 1
    assert float(result.predicted_improvement) == pytest.approx(fraction * predicted, rel=1e-6)
    assert float(result.fraction) == pytest.approx(fraction, rel=1e-6)
    np.testing.assert_allclose(result.parameters, np.asarray(PARAMETERS) + fraction * np.asarray(STEP), rtol=1e-6)


def assert_refused(result: LineSearchResult, outcome: StepOutcome, trials: int = TRIALS) -> None:
    """The old parameters were kept bit for bit, and the outcome is this."""
    assert result.outcome == outcome
    assert result.trials == trials
    assert bytes_of(result.parameters) == bytes_of(PARAMETERS)
    assert float(result.fraction) == float(result.predicted_improvement) == 0.0
    assert jax.tree.map(float, result.evaluation) == Evaluation(0.0, 0.0, 0.0, 0.0)


ACCEPTED = {
    "the full step": (Trials([0.009], [0.5]), 0),
    "exactly at the limit": (Trials([MAX_KL], [0.5]), 0),
    "just enough improvement": (Trials([0.001], [0.101]), 0),
    "the first inside, not the best": (Trials([0.02, 0.011, 0.009, 0.008], [9.0, 8.0, 0.03, 5.0]), 2),
    "after a worse surrogate": (Trials([0.005], [-1.0, 0.0, 0.09]), 2),
    "after NaN": (Trials([NAN, NAN, NAN, 0.001], [0.5]), 3),
    "after infinity": (Trials([INF, INF, 0.001], [INF, 0.5]), 2),
    "at the last trial": (Trials([1.0, 1.0, 1.0, 1.0, 1.0, 0.001], [0.5]), TRIALS - 1),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_takes_the_first_acceptable_candidate(search: Callable[..., LineSearchResult], name: str) -> None:
    trials, trial = ACCEPTED[name]
    result = search(trials)
    assert_took(result, trial)
    assert float(result.evaluation.kl_mean) == np.float32(padded(trials.kl)[trial])
    assert float(result.evaluation.improvement) == np.float32(padded(trials.improvement)[trial])


REFUSED = {
    "outside throughout": (Trials([0.0101], [1.0]), StepOutcome.KL_EXCEEDED),
    "outside and worse": (Trials([0.0101], [-1.0]), StepOutcome.KL_EXCEEDED),
    "worse throughout": (Trials([0.001], [-1.0]), StepOutcome.NO_IMPROVEMENT),
    "no better": (Trials([0.001], [0.0]), StepOutcome.NO_IMPROVEMENT),
    "NaN divergence": (Trials([NAN], [1.0]), StepOutcome.NON_FINITE),
    "infinite divergence": (Trials([INF], [1.0]), StepOutcome.NON_FINITE),
    "divergence of minus infinity": (Trials([-INF], [1.0]), StepOutcome.NON_FINITE),
    "NaN improvement": (Trials([0.001], [NAN]), StepOutcome.NON_FINITE),
    "infinite improvement": (Trials([0.001], [INF]), StepOutcome.NON_FINITE),
    "NaN largest divergence": (Trials([0.001], [1.0], [NAN]), StepOutcome.NON_FINITE),
    "infinite largest divergence": (Trials([0.001], [1.0], [INF]), StepOutcome.NON_FINITE),
    "NaN ratio": (Trials([0.001], [1.0], [0.001], [NAN]), StepOutcome.NON_FINITE),
    "the last trial names it (1)": (Trials([NAN, 1.0, 1.0, 1.0, 0.001], [-1.0]), StepOutcome.NO_IMPROVEMENT),
    "the last trial names it (2)": (Trials([0.001, 0.001, 0.001, NAN, NAN, 1.0], [-1.0]), StepOutcome.KL_EXCEEDED),
    "the last trial names it (3)": (Trials([1.0, 1.0, 1.0, 1.0, 1.0, NAN], [1.0]), StepOutcome.NON_FINITE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_keeps_the_old_parameters_bit_for_bit_and_says_why(search: Callable[..., LineSearchResult], name: str) -> None:
    trials, outcome = REFUSED[name]
    assert_refused(search(trials), outcome)


@pytest.mark.parametrize("max_trials", [0, 1, 3])
def test_makes_no_more_trials_than_allowed(search: Callable[..., LineSearchResult], max_trials: int) -> None:
    trials = Trials([1.0, 1.0, 1.0, 0.001], [1.0])  # the fourth would do
    outcome = StepOutcome.KL_EXCEEDED if max_trials else StepOutcome.NO_IMPROVEMENT
    assert_refused(search(trials, max_trials=max_trials), outcome, max_trials)
    assert_took(search(trials, max_trials=4), 3)


@pytest.mark.parametrize("outcome", [one for one in StepOutcome if one is not StepOutcome.ACCEPTED])
def test_makes_no_trial_of_a_step_that_is_none(search: Callable[..., LineSearchResult], outcome: StepOutcome) -> None:
    assert_refused(search(Trials([0.001], [1.0]), outcome=outcome), outcome, 0)


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.9])
def test_shrinks_by_the_factor(search: Callable[..., LineSearchResult], factor: float) -> None:
    for trial in range(TRIALS):
        assert_took(search(Trials([1.0] * trial + [0.001], [1.0]), factor=factor), trial, factor)


@pytest.mark.parametrize("poison", [NAN, INF])
def test_a_candidate_that_is_not_finite_is_refused_whatever_its_evaluation(
    search: Callable[..., LineSearchResult], poison: float
) -> None:
    step = STEP.at[1].set(poison)
    assert_refused(search(Trials([0.001], [1.0]), step=step), StepOutcome.NON_FINITE)


@pytest.mark.parametrize("predicted", [NAN, INF])
def test_a_prediction_that_is_not_finite_accepts_nothing(
    search: Callable[..., LineSearchResult], predicted: float
) -> None:
    result = search(Trials([0.001], [1.0]), predicted=predicted)
    assert result.outcome != StepOutcome.ACCEPTED
    assert bytes_of(result.parameters) == bytes_of(PARAMETERS)


def test_no_prediction_still_asks_for_improvement(search: Callable[..., LineSearchResult]) -> None:
    assert_refused(search(Trials([0.001], [0.0]), predicted=0.0, ratio=0.0), StepOutcome.NO_IMPROVEMENT)
    assert_took(search(Trials([0.001], [1e-30]), predicted=0.0, ratio=0.0), 0, predicted=0.0)


def test_peer_defect_01_a_refused_step_is_undone(search: Callable[..., LineSearchResult]) -> None:
    """Peers leave the last candidate in the policy when every trial was refused."""
    result = search(Trials([1.0], [1.0]))
    assert bytes_of(result.parameters) == bytes_of(PARAMETERS)  # -0.0 and a subnormal number included


def test_peer_defect_02_a_non_finite_trial_shrinks_the_step(search: Callable[..., LineSearchResult]) -> None:
    """A peer retries the same non-finite step until its trials are used up, because it shrinks only finite ones."""
    assert_took(search(Trials([NAN, INF, NAN, NAN, 0.005], [NAN, 1.0, NAN, INF, 1.0])), 4)


def test_peer_defect_03_nan_divergence_is_not_inside_the_trust_region(search: Callable[..., LineSearchResult]) -> None:
    """A peer shrinks `while kl > delta`, which NaN ends as if the step were good."""
    assert_refused(search(Trials([NAN], [1.0])), StepOutcome.NON_FINITE)


def test_peer_defect_04_the_requirement_does_not_compound(search: Callable[..., LineSearchResult]) -> None:
    """A peer multiplies its acceptance threshold by the factor again at every trial, so that it loosens each time."""
    factor, ratio, predicted = 0.5, 0.4, 2.0
    required = [ratio * predicted * factor**trial for trial in range(TRIALS)]
    below, above = [[scale * value for value in required] for scale in (0.99, 1.01)]
    options = {"predicted": predicted, "factor": factor, "ratio": ratio}
    assert_refused(search(Trials([0.001], below), **options), StepOutcome.NO_IMPROVEMENT)
    for trial in range(TRIALS):
        assert_took(search(Trials([0.001], below[:trial] + above[trial:]), **options), trial, predicted=predicted)


def test_many_searches_at_once_are_each_made_alone() -> None:
    # Under vmap the loop runs until the last lane is done: the finished ones must not move.
    def one(kl: jax.Array) -> LineSearchResult:
        def evaluate(candidate: jax.Array) -> Evaluation:
            divergence = kl * candidate**2
            return Evaluation(candidate, divergence, divergence, candidate)

        outcome = jnp.where(kl > 0, StepOutcome.ACCEPTED, StepOutcome.ZERO_GRADIENT)
        full = FullStep(jnp.ones(()), jnp.ones(()), outcome)
        accept = inside_the_region(MAX_KL, 0.1)
        return backtracking_line_search(evaluate, jnp.zeros(()), full, accept, max_trials=4, backtrack_factor=0.5)

    # KL of the full step: 0 trials, then 1, 2, 3 by kl / 4^j <= 0.01, then never.
    results = jax.jit(jax.vmap(one))(jnp.asarray([-1.0, 0.009, 0.03, 0.15, 10.0]))
    np.testing.assert_array_equal(results.trials, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(results.parameters, [0, 1, 0.5, 0.25, 0])
    np.testing.assert_array_equal(results.fraction, [0, 1, 0.5, 0.25, 0])
    np.testing.assert_array_equal(results.outcome, [StepOutcome.ZERO_GRADIENT, 0, 0, 0, StepOutcome.KL_EXCEEDED])


@pytest.mark.parametrize(("kl", "improvement", "taken"), [(1e3, -5.0, True), (NAN, 1.0, False), (0.0, INF, False)])
def test_accepting_anything_still_refuses_what_is_not_finite(kl: float, improvement: float, taken: bool) -> None:
    full = FullStep(STEP, jnp.ones(()), jnp.int32(StepOutcome.ACCEPTED))
    found = Evaluation(*map(jnp.float32, (improvement, kl, 0.0, 0.0)))
    result = backtracking_line_search(lambda _: found, PARAMETERS, full, anywhere, max_trials=1, backtrack_factor=0.5)
    assert result.trials == 1
    if taken:
        assert_took(result, 0)
    else:
        assert_refused(result, StepOutcome.NON_FINITE, 1)


@pytest.mark.parametrize(("poison", "expected"), [(1.0, True), (NAN, False), (INF, False), (-INF, False)])
def test_all_finite_sees_every_leaf(poison: float, expected: bool) -> None:
    tree = {"a": jnp.zeros((2, 3)), "b": [jnp.asarray([1.0, poison]), jnp.asarray(7)]}
    assert bool(all_finite(tree)) is expected


def test_outcomes_have_the_names_and_numbers_of_the_metrics() -> None:
    names = ["accepted", "kl_exceeded", "no_improvement", "non_finite", "zero_gradient", "bad_curvature", "warm_up"]
    assert [outcome.name.lower() for outcome in sorted(StepOutcome)] == names
