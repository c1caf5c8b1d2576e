"""Betting bounds against their definitions, hand-worked cases and symmetries."""

import itertools
import math
import time

import numpy as np
import pytest

from trpo_brax.certification.betting import mean_lower_betting, mean_upper_betting


def capitals(values: list[float], mean: float, failure: float, anytime: bool = False) -> list[float]:
    """Return K_1(mean) ... K_n(mean), value by value as the paper writes it, for values in [0, 1]."""
    capital, history = 1.0, []
    total, squares, variance = 0.5, 0.25, 0.25
    for count, value in enumerate(values, start=1):
        size = count * math.log(1 + count) if anytime else len(values)
        bet = math.sqrt(2.0 * math.log(1.0 / failure) / (size * variance))
        capital *= 1.0 + min(bet, 0.75 / mean) * (value - mean)
        history.append(capital)
        total += value
        squares += (value - total / (count + 1)) ** 2
        variance = squares / (count + 1)
    return history


def by_definition(values: list[float], confidence: float, grid: int, anytime: bool = False) -> float:
    """Return the smallest of the means 1 / grid, 2 / grid ... that the gambler does not reject."""
    failure = 1.0 - confidence
    doubted = (k / grid for k in range(1, grid + 1))
    return next(mean for mean in doubted if max(capitals(values, mean, failure, anytime)) < 1.0 / failure)


@pytest.mark.parametrize("anytime", [False, True])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.9999])
@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).beta(5, 1, 80),
        np.random.default_rng(1).random(80) ** 6,
        (np.random.default_rng(2).random(80) > 0.05).astype(float),
        np.concatenate([np.ones(50), np.zeros(30)]),
        np.full(40, 0.625),
        np.array([0.0, 1.0]),
    ],
)
def test_lower_betting_bound_is_the_definition(values: np.ndarray, confidence: float, anytime: bool) -> None:
    grid = 2000
    reference = by_definition(values.tolist(), confidence, grid, anytime)
    bound = mean_lower_betting(values, floor=0.0, cap=1.0, confidence=confidence, anytime=anytime)
    assert reference - 1.0 / grid - 1e-9 <= bound <= reference + 1e-9


def test_running_maximum_keeps_what_was_won() -> None:
    """Winning first and losing later leaves the bound of the wins; the capital at the end would not."""
    values = np.concatenate([np.ones(50), np.zeros(30)])
    bound = mean_lower_betting(values, floor=0.0, cap=1.0, confidence=0.9)
    assert capitals(values.tolist(), bound, 0.1)[-1] < 1.0
    assert bound > 0.8


def test_lower_betting_bound_of_one_value_by_hand() -> None:
    """K_1(m) = 1 + min(sqrt(8 log(1 / delta)), 0.75 / m) (x - m), which must come to 1 / delta."""
    truncated = mean_lower_betting([1.0], floor=0.0, cap=1.0, confidence=0.5)
    assert truncated == pytest.approx(3.0 / 7.0, abs=1e-12)
    free = mean_lower_betting([0.3], floor=0.0, cap=1.0, confidence=0.1)
    assert free == pytest.approx(0.3 - (1.0 / 9.0) / math.sqrt(8.0 * math.log(10.0 / 9.0)), abs=1e-12)


def test_bisection_ends_on_the_safe_side() -> None:
    """The bound itself is rejected by the definition: the smallest mean not rejected is not below it."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        values = rng.beta(4, 1, 50)
        bound = mean_lower_betting(values, floor=0.0, cap=1.0, confidence=0.9)
        assert max(capitals(values.tolist(), bound, 0.1)) >= 10.0 * (1.0 - 1e-12)
        assert max(capitals(values.tolist(), bound + 1e-9, 0.1)) < 10.0


def test_upper_bound_is_the_lower_one_reflected() -> None:
    values = np.random.default_rng(4).uniform(-3.0, 7.0, 200)
    upper = mean_upper_betting(values, floor=-3.0, cap=7.0, confidence=0.95)
    assert upper == -mean_lower_betting(-values, floor=-7.0, cap=3.0, confidence=0.95)
    scaled = 1.0 - (values + 3.0) / 10.0
    assert upper == pytest.approx(7.0 - 10.0 * by_definition(scaled.tolist(), 0.95, 2000), abs=10.0 / 2000 + 1e-9)
    assert values.mean() < upper < 7.0


def test_bounds_follow_shift_and_scale() -> None:
    values = np.random.default_rng(5).beta(3, 1, 300)
    plain = mean_lower_betting(values, floor=0.0, cap=1.0, confidence=0.95)
    moved = mean_lower_betting(-4000.0 + 250.0 * values, floor=-4000.0, cap=-3750.0, confidence=0.95)
    assert 0.0 < plain < values.mean()
    assert moved == pytest.approx(-4000.0 + 250.0 * plain, abs=1e-8)


def test_more_confidence_is_a_lower_mean_lower_betting() -> None:
    values = np.random.default_rng(6).beta(3, 1, 300)
    bounds = [mean_lower_betting(values, floor=0.0, cap=1.0, confidence=c) for c in (0.5, 0.8, 0.9, 0.95, 0.99, 0.9999)]
    assert all(above > below for above, below in itertools.pairwise(bounds))


def test_bounds_never_leave_the_range() -> None:
    for values in ([0.1], [0.3], [0.1, 0.3], [0.1] * 7, [0.3] * 7, [0.3] * 10_000):
        assert 0.1 <= mean_lower_betting(values, floor=0.1, cap=0.3, confidence=0.95) <= 0.3
    with np.errstate(all="raise"):
        assert mean_lower_betting([5.0, 5.0], floor=5.0, cap=5.0, confidence=0.95) == 5.0
        assert mean_lower_betting(np.zeros(1000), floor=0.0, cap=1.0, confidence=0.95) == 0.0
    assert mean_lower_betting([0.1] * 1000, floor=0.1, cap=0.3, confidence=0.95) == 0.1
    assert mean_lower_betting([0.2], floor=0.1, cap=0.3, confidence=0.999) == 0.1


def test_upper_bound_never_leaves_the_range() -> None:
    assert mean_upper_betting([0.3] * 1000, floor=0.1, cap=0.3, confidence=0.95) == 0.3
    assert mean_upper_betting([5.0], floor=5.0, cap=5.0, confidence=0.95) == 5.0
    assert 0.1 < mean_upper_betting([0.1] * 1000, floor=0.1, cap=0.3, confidence=0.95) < 0.102


def test_constant_values_are_bounded_closely() -> None:
    """Values that never lose: the capital grows by the stake each time, so the gap is about log(1 / delta) / (c n)."""
    gap = 1.0 - mean_lower_betting(np.ones(10_000), floor=0.0, cap=1.0, confidence=0.95)
    assert math.log(20.0) / 0.75 / 10_000 < gap < 1.1 * math.log(20.0) / 0.75 / 10_000


@pytest.mark.parametrize(
    ("values", "floor", "cap", "confidence", "words"),
    [
        ([], 0.0, 1.0, 0.9, "one value at least"),
        ([[0.5]], 0.0, 1.0, 0.9, "one axis"),
        ([0.5, 1.5], 0.0, 1.0, 0.9, "every value must lie in"),
        ([-0.5, 0.5], 0.0, 1.0, 0.9, "every value must lie in"),
        ([float("nan"), 0.5], 0.0, 1.0, 0.9, "every value must lie in"),
        ([float("-inf"), 0.5], 0.0, 1.0, 0.9, "every value must lie in"),
        ([0.5], float("-inf"), 1.0, 0.9, "must be finite"),
        ([0.5], 0.0, float("inf"), 0.9, "must be finite"),
        ([0.5], -1e308, 1e308, 0.9, "must be finite"),
        ([0.5], 1.0, 0.0, 0.9, "not above the cap"),
        ([0.5], 0.0, 1.0, 1.0, "confidence"),
        ([0.5], 0.0, 1.0, 0.0, "confidence"),
    ],
)
def test_what_cannot_be_bounded_is_refused(
    values: list[float], floor: float, cap: float, confidence: float, words: str
) -> None:
    for bound in (mean_lower_betting, mean_upper_betting):
        with pytest.raises(ValueError, match=words):
            bound(values, floor=floor, cap=cap, confidence=confidence)


def test_ten_thousand_values_take_a_fraction_of_a_second() -> None:
    values = np.random.default_rng(7).random(10_000)
    started = time.process_time()
    mean_lower_betting(values, floor=0.0, cap=1.0, confidence=0.95)
    assert time.process_time() - started < 0.5
