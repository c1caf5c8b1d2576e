"""What counts as a failed episode."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_brax.errors import ConfigError
from trpo_brax.evaluation.episodes import Episodes

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ENDED_EARLY = "terminated"
_CLAUSE = re.compile(r"(return|length)\s*(<=|>=|<|>)\s*(\S+)")


@dataclasses.dataclass(frozen=True)
class Failure:
    """A predicate over episodes; one that went non-finite always fails.

    Raises:
        ConfigError: the text is no such predicate.
    """

    text: str
    """`return < 500`, `length < 100`, `terminated` (ended by the task before its time limit), or several with `or`."""

    def __post_init__(self) -> None:
        self._clauses()

    def __call__(self, episodes: Episodes) -> np.ndarray:
        """Return bool [E]: which of the episodes failed."""
        failed = episodes.nonfinite.copy()
        for quantity, compare, limit in self._clauses():
            failed |= episodes.terminated if compare is None else compare(_values(episodes, quantity), limit)
        return failed

    def __str__(self) -> str:
        return f"{self.text} or non-finite"

    def _clauses(self) -> list[tuple[str, Callable[[Any, Any], Any] | None, float]]:
        return [self._clause(part.strip()) for part in re.split(r"\bor\b", self.text)]

    def _clause(self, part: str) -> tuple[str, Callable[[Any, Any], Any] | None, float]:
        if part == _ENDED_EARLY:
            return part, None, 0.0
        match = _CLAUSE.fullmatch(part)
        limit = _number(match[3]) if match else None
        if match is None or limit is None:
            raise ConfigError(
                'failure must be like "return < 500", "length < 100" or "terminated", or several of them with "or", '
                f"not {self.text[:80]!r}."
            )
        return match[1], _COMPARISONS[match[2]], limit


DEFAULT_FAILURE = Failure(_ENDED_EARLY)
"""An episode that ended before its time limit, or went non-finite."""


def _values(episodes: Episodes, quantity: str) -> np.ndarray:
    return episodes.lengths if quantity == "length" else episodes.returns.astype(np.float64)


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
