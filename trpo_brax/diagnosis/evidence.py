"""What a finding is, and what it is found in: the metrics of one seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trpo_brax.config import Config
from trpo_brax.diagnosis.trends import Floats, Lasting

Level = Literal["problem", "note"]

USUAL = 0.8
"""What is so in at least this share of a window's iterations is usual; healthy runs show all of it now and then."""
MOSTLY = 0.5
"""Share of a window's iterations that is most of them."""
_LARGEST = 1e300
"""What is larger than any float32 by far is no measurement."""


@dataclass(frozen=True)
class Finding:
    """Something in a run's metrics that explains how it went."""

    name: str
    level: Level
    """problem: it keeps the policy from learning, and goes on; note: worth knowing, or over."""
    metric: str
    """In metrics.jsonl."""
    iteration: int
    """Where it began."""
    value: float | str | None
    """Of the metric there."""
    last_iteration: int
    """Where it was seen last."""
    explanation: str
    """One sentence."""
    advice: str
    """One sentence."""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return dataclasses.asdict(self)

    def line(self) -> str:
        """Return it in one line, without the advice."""
        return f"{self.name.replace('_', ' ')} {self._since()}: {self.explanation}"

    def report(self) -> list[str]:
        """Return it in a few lines."""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        there = "" if value is None else f" ({self.metric} {value})"
        head = f"{self.level}: {self.name.replace('_', ' ')} {self._since()}{there}"
        return [head, f"  {self.explanation}", f"  {self.advice}"]

    def _since(self) -> str:
        if self.iteration == self.last_iteration:
            return f"in iteration {self.iteration}"
        return f"from iteration {self.iteration} to {self.last_iteration}"


@dataclass(frozen=True)
class Evidence:
    """The metrics of one seed."""

    rows: Sequence[dict[str, Any]]
    """Of metrics.jsonl, at least one, in the order of their iterations."""
    config: Config
    """Of the run."""

    def column(self, name: str) -> Floats:
        """Return a quantity of each row, [rows]; NaN where it has no value, or is no number of a sane size."""

        def number(value: Any) -> float:
            sound = isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
            return float(value) if sound else np.nan

        return np.array([number(row.get(name)) for row in self.rows], np.float64)

    def returns(self) -> Floats:
        """Return those that there are."""
        returns = self.column("episode_return_mean")
        return returns[~np.isnan(returns)]

    def finding(
        self, name: str, metric: str, where: Lasting, explanation: str, advice: str, level: Level | None = None
    ) -> Finding:
        """Return a finding, a note where it is over."""
        first = self.rows[where.first]
        value = first.get(metric)
        return Finding(
            name=name,
            level=(level or "problem") if where.current else "note",
            metric=metric,
            iteration=int(first["iteration"]),
            value=float(value) if isinstance(value, (int, float)) else value,
            last_iteration=int(self.rows[where.last]["iteration"]),
            explanation=explanation,
            advice=advice,
        )
