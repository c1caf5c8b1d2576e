"""Timing pieces of work side by side."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

_WARM_UPS = 2


@dataclasses.dataclass(frozen=True)
class Samples:
    """Repeated measurements of one piece of work."""

    seconds: tuple[float, ...]
    """Of one piece, in the order in which they were taken."""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def each(self, count: int) -> Samples:
        """Return the seconds of one of the `count` equal pieces that every measurement held."""
        return Samples(tuple(seconds / count for seconds in self.seconds))

    def rates(self, amount: float) -> tuple[float, float, float]:
        """Return lowest, median and highest of `amount` a second."""
        return amount / max(self.seconds), amount / self.median, amount / min(self.seconds)

    def over(self, other: Samples) -> float:
        """Return the median of the ratios, round by round: what slows a whole round down cancels."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True))


def interleave(
    pieces: Mapping[str, Callable[[], Any]], repeats: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Samples]:
    """Time every piece once a round, `repeats` rounds, after rounds that only warm up.

    In turn, and not one piece after the other's last repeat: a machine that grows slower or busier meanwhile slows
    all of them.

    Args:
        pieces: name -> call that returns its arrays; it is over when they are ready.
        repeats: rounds that count.
        clock: seconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in pieces}
    for _ in range(_WARM_UPS + repeats):
        for name, piece in pieces.items():
            began = clock()
            jax.block_until_ready(piece())
            taken[name].append(clock() - began)
    return {name: Samples(tuple(seconds[_WARM_UPS:])) for name, seconds in taken.items()}
