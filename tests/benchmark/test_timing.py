"""Timing, by a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trpo_brax.benchmark.timing import Samples, interleave


class Clock:
    """Stands still but for `spend`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def spend(self, name: str, seconds: list[float]) -> Callable[[], None]:
        """Return a piece of work that takes `seconds`, one after the other."""
        left = iter(seconds)

        def work() -> None:
            self.calls.append(name)
            self.now += next(left)

        return work


def test_pieces_are_timed_in_turn_and_warming_up_does_not_count() -> None:
    clock = Clock()
    pieces = {"a": clock.spend("a", [90.0, 9.0, 1.0, 5.0, 2.0]), "b": clock.spend("b", [50.0, 4.0, 3.0, 3.0, 8.0])}
    times = interleave(pieces, 3, clock=clock)
    assert clock.calls == ["a", "b"] * 5
    assert times == {"a": Samples((1.0, 5.0, 2.0)), "b": Samples((3.0, 3.0, 8.0))}


def test_medians_and_rates() -> None:
    samples = Samples((4.0, 1.0, 2.0))
    assert samples.median == 2.0
    assert samples.rates(100) == (25.0, 50.0, 100.0)
    assert samples.each(4) == Samples((1.0, 0.25, 0.5))


def test_a_machine_that_slows_down_does_not_change_the_ratio() -> None:
    slowing = [1.0, 1.5, 2.5, 7.0]
    once, thrice = Samples(tuple(slowing)), Samples(tuple(3.0 * seconds for seconds in slowing))
    assert thrice.over(once) == pytest.approx(3.0)
    assert once.over(thrice) == pytest.approx(1 / 3)


def test_rounds_of_different_speed_and_one_disturbed_do_not_change_the_ratio() -> None:
    # Not the ratio of the medians, which is 2 / 3.
    assert Samples((2.0, 6.0, 1.0)).over(Samples((1.0, 3.0, 10.0))) == 2.0
