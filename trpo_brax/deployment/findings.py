"""What a verification found, in figures and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trpo_brax.deployment.artifact import Artifact
from trpo_brax.evaluation import Episodes


@dataclass(frozen=True)
class Finding:
    """One question that a verification asks."""

    name: str
    passed: bool
    sentence: str
    """What was found, against what was allowed."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Of the sentence, by name."""


@dataclass(frozen=True)
class OpenLoop:
    """Actions compared observation by observation."""

    observations: int
    differences: Mapping[str, float]
    """Largest, in units of the action range, by kind of observation and batch size, as in `visited, batch 1`."""
    refused: Mapping[int, str]
    """Batch sizes that the artifact could not do, and why."""

    @property
    def largest(self) -> float:
        """Largest difference; infinite where an action is not finite or a batch was refused."""
        return math.inf if self.refused else max(self.differences.values())

    def finding(self, tolerance: float) -> Finding:
        """Return whether no action is off by more than `tolerance`."""
        if self.refused:
            batch, reason = next(iter(self.refused.items()))
            sentence = f"the model cannot act on a batch of {batch}: {reason}"
            return Finding("max_action_difference", False, sentence)
        where = max(self.differences, key=lambda kind: self.differences[kind])
        return Finding(
            "max_action_difference",
            self.largest <= tolerance,
            f"over {self.observations:,} observations actions differ by at most {self.largest:.2e} of their range, at "
            f"{where}; {tolerance:.0e} is allowed",
        )


@dataclass(frozen=True)
class ClosedLoop:
    """Episodes compared: the exported policy's, and on the same seeds the reference's."""

    reference: Episodes
    exported: Episodes
    comparisons: tuple[Finding, ...]
    statements: tuple[Finding, ...]
    """Those of the certificate, with what the exported policy's episodes say of them."""
    statements_note: str | None
    """Why the certificate's statements were not checked, where there are some."""


@dataclass(frozen=True)
class Verification:
    """What was asked of an exported policy, and whether it passed."""

    artifact: Artifact
    open_loop: OpenLoop
    closed_loop: ClosedLoop | None
    """None where the artifact cannot act on a batch."""
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every finding passed."""
        return all(finding.passed for finding in self.findings)

    @property
    def max_action_difference(self) -> float:
        """Largest difference of an action, in units of the action range."""
        return self.open_loop.largest

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON; what is not finite is null."""
        loop = self.closed_loop
        return {
            "max_action_difference": finite_or_none(self.max_action_difference),
            "passed": self.passed,
            "artifact": str(self.artifact.file),
            "checkpoint_iteration": self.artifact.description.checkpoint_iteration,
            "failed": [finding.name for finding in self.findings if not finding.passed],
            "findings": {finding.name: [finding.passed, finding.sentence] for finding in self.findings},
            "observations": self.open_loop.observations,
            "action_differences": {name: finite_or_none(value) for name, value in self.open_loop.differences.items()},
            "episodes": 0 if loop is None else len(loop.reference.returns),
            "certified": loop is not None and bool(loop.statements),
            "differences": {} if loop is None else _figures(loop.comparisons),
            "statements": {} if loop is None else _figures(loop.statements),
            "statements_note": None if loop is None else loop.statements_note,
        }


def _figures(findings: Sequence[Finding]) -> dict[str, dict[str, float | None]]:
    return {one.name: {name: finite_or_none(value) for name, value in one.figures.items()} for one in findings}


def finite_or_none(value: float) -> float | None:
    """Return a number as JSON can hold it."""
    return value if math.isfinite(value) else None
