"""What counts as a failed episode."""

from __future__ import annotations

import dataclasses
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
_CLAUSE = re.compile(r"(return|length)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")


@dataclasses.dataclass(frozen=True)
class Failure:
    """A predicate over episodes; one that went non-finite always fails.

    Raises:
        ConfigError: the text is no such predicate.
    """

    text: str
    """`return < 500`, `length < 100`, `terminated` (ended by the task before its time limit), or several with `or`."""

    def __post_init__(self) -> None:
        nothing = np.zeros(0)
        self(Episodes(nothing, nothing, nothing > 0, nothing > 0))

    def __call__(self, episodes: Episodes) -> np.ndarray:
        """Return bool [E]: which of the episodes failed."""
        failed = episodes.nonfinite.copy()
        for part in re.split(r"\bor\b", self.text):
            failed |= self._clause(part.strip(), episodes)
        return failed

    def __str__(self) -> str:
        return f"{self.text} or non-finite"

    def _clause(self, part: str, episodes: Episodes) -> np.ndarray:
        if part == "terminated":
            return episodes.terminated
        match = _CLAUSE.fullmatch(part)
        if match is None or not np.isfinite(float(match[3])):
            raise ConfigError(
                'failure must be like "return < 500", "length < 100" or "terminated", or several of them with "or", '
                f"not {self.text[:80]!r}."
            )
        values = episodes.lengths if match[1] == "length" else episodes.returns.astype(np.float64)
        failed: np.ndarray = _COMPARISONS[match[2]](values, float(match[3]))
        return failed


DEFAULT_FAILURE = Failure("terminated")
"""An episode that ended before its time limit, or went non-finite."""
