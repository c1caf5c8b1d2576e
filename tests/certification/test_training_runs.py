"""What is said of the next training run, against exact fractions, simulation and what the sentences hold."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

from trpo_brax.certification.training_runs import training_runs_statement


def exact_share_confidence(runs: int, rank: int, share: Fraction) -> Fraction:
    """Return P(at least `share` of all runs reach the rank-th lowest of m), for figures without ties.

    The rank-th lowest is below the (1 - share) quantile where `rank` or more of the m fall below it.
    """
    q = 1 - share
    return sum((math.comb(runs, k) * q**k * share ** (runs - k) for k in range(rank, runs + 1)), Fraction(0))


@pytest.mark.parametrize("runs", [1, 2, 4, 5, 11, 20, 59, 150])
def test_tolerances_are_the_highest_order_statistics_with_the_confidence(runs: int) -> None:
    figures = np.random.default_rng(runs).permutation(runs) + 1.0
    tolerances = dict(training_runs_statement(figures, 0.95).tolerances)
    for share in (Fraction(1, 2), Fraction(3, 4), Fraction(9, 10), Fraction(19, 20)):
        ranks = [k for k in range(1, runs + 1) if exact_share_confidence(runs, k, share) >= Fraction(19, 20)]
        assert tolerances.get(float(share)) == (max(ranks) if ranks else None)


def test_small_numbers_of_runs_have_no_tolerance_statement() -> None:
    assert training_runs_statement(np.arange(4.0), 0.95).tolerances == ()
    assert training_runs_statement(np.arange(5.0), 0.95).tolerances == ((0.5, 0.0),)
    assert len(training_runs_statement(np.arange(59.0), 0.95).tolerances) == 4


def test_the_figures_of_five_runs_by_hand() -> None:
    statement = training_runs_statement([410.0, 395.5, 402.0, 500.0, 460.0], 0.95)
    assert (statement.runs, statement.worst, statement.confidence) == (5, 395.5, 0.95)
    assert statement.probability_next_below_worst == pytest.approx(1.0 / 6.0)
    assert statement.share_reaching_worst_lower == pytest.approx(0.5492803, abs=1e-7)
    assert statement.sentences() == (
        "The next training run ends below 395.5, the worst of the 5 training runs, with probability at most "
        "1/6 (16.7%).",
        "With 95% confidence, at least 54.9% of all training runs reach 395.5.",
    )


def test_sentences_name_a_tolerance_only_where_it_says_more() -> None:
    sentences = training_runs_statement(np.arange(20.0), 0.95).sentences()
    assert sentences[1] == "With 95% confidence, at least 86.0% of all training runs reach 0."  # 0.86089, rounded down
    assert sentences[2:] == (
        "With 95% confidence, at least 50% of all training runs reach 5.",
        "With 95% confidence, at least 75% of all training runs reach 1.",
    )
    assert "1 training run," in training_runs_statement([3.0], 0.95).sentences()[0]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("runs", [1, 3, 8])
def test_statements_hold_in_simulation(runs: int, ties: bool) -> None:
    """Uniform figures, or of ten levels: each statement fails as often as it says, and with ties at most as often."""
    repetitions = 4000
    uniform = np.random.default_rng(runs).random((repetitions, runs + 1))
    draws = np.floor(uniform * 10.0) / 10.0 if ties else uniform
    statements = [training_runs_statement(row[:-1], 0.9) for row in draws]
    next_below = sum(row[-1] < s.worst for row, s in zip(draws, statements, strict=True))
    share_missed = sum(1.0 - s.worst < s.share_reaching_worst_lower for s in statements)
    medians_missed = sum(1.0 - dict(s.tolerances).get(0.5, 0.0) < 0.5 for s in statements)
    for missed, allowed in ((next_below, 1.0 / (runs + 1)), (share_missed, 0.1), (medians_missed, 0.1)):
        assert missed <= binom.ppf(1.0 - 1e-4, repetitions, allowed)
    if not ties:
        assert next_below >= binom.ppf(1e-4, repetitions, 1.0 / (runs + 1))
        assert share_missed >= binom.ppf(1e-4, repetitions, 0.1)


def test_a_run_that_came_to_nothing_counts() -> None:
    statement = training_runs_statement([400.0, -np.inf, 410.0], 0.95)
    assert statement.worst == -np.inf
    assert "reach -inf" in statement.sentences()[1]


@pytest.mark.parametrize("figures", [[], [1.0, float("nan")], [[1.0, 2.0]]])
def test_figures_that_say_nothing_are_refused(figures: list[float]) -> None:
    with pytest.raises(ValueError, match="one figure at least"):
        training_runs_statement(figures, 0.95)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_must_be_inside_the_unit_interval(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        training_runs_statement([1.0, 2.0], confidence)
