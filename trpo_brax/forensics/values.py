"""Values under the same names, compared: which differ, by how much, and whether rounding explains it."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ROUNDING = 1e-3
"""Relative difference up to which rounding is enough to explain that two values are not the same.

Measured: the first iteration on 1, 2 and 4 CPU devices, which add up in different orders, differed by up to 1.2e-4 on
hopper and 1.0e-4 on inverted_pendulum (64 environments x 64 steps), apart from `LEFT_OF_ONE`; another seed by 3e-2.
"""

LEFT_OF_ONE = ("cg_relative_residual", "explained_variance")
"""What is left of 1 when most of it has cancelled is as uncertain as the 1 was: there `ROUNDING` is absolute."""

# A checksum has no size, and rounding may decide in which iteration a residual meets its tolerance: what such a
# difference amounts to shows in the other quantities.
_WITHOUT_SIZE = {"parameter_fingerprint", "cg_iterations"}
_MOST_CHARACTERS = 100
_ABSENT = object()


class Stretches(list[Any]):
    """What the stretches of a resumed run hold one after another, where that is not the same."""


@dataclass(frozen=True)
class ValueDifference:
    """A name under which runs A and B hold different values."""

    name: str
    a: Any
    b: Any
    only_in: Literal["a", "b"] | None
    """Which of them holds the name, if only one does; the other's value is None then."""
    relative: float | None
    """|a - b| / max(|a|, |b|); None where they are not both numbers."""

    @property
    def rounding(self) -> bool:
        """Whether rounding is enough to explain it; two whole numbers that differ are never that close."""
        if self.name in _WITHOUT_SIZE:
            return self.only_in is None
        if self.relative is None or (isinstance(self.a, int) and isinstance(self.b, int)):
            return False
        return self.relative <= ROUNDING or (self.name in LEFT_OF_ONE and abs(self.a - self.b) <= ROUNDING)

    def __str__(self) -> str:
        a = "not recorded" if self.only_in == "b" else _shown(self.a)
        b = "not recorded" if self.only_in == "a" else _shown(self.b)
        return f"{self.name}: {a} in A, {b} in B"


def names(*mappings: Mapping[str, Any]) -> list[str]:
    """Return the keys of all mappings, each once, in the order in which they come."""
    return list(dict.fromkeys(itertools.chain(*mappings)))


def differences(a: Mapping[str, Any], b: Mapping[str, Any], names: Sequence[str]) -> Iterator[ValueDifference]:
    """Yield those of `names` under which two mappings do not hold the same."""
    for name in names:
        left, right = a.get(name, _ABSENT), b.get(name, _ABSENT)
        if _same(left, right):
            continue
        only_in: Literal["a", "b"] | None = "b" if left is _ABSENT else "a" if right is _ABSENT else None
        shown_left, shown_right = (None if value is _ABSENT else _short(value) for value in (left, right))
        yield ValueDifference(name, shown_left, shown_right, only_in, _relative(left, right))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()  # The sign of a zero counts.
    return bool(a == b)


def _relative(a: Any, b: Any) -> float | None:
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (a, b)):
        return None
    try:
        scale = float(max(abs(a), abs(b)))
        # Divided first: the difference of two large numbers may be infinite.
        relative = abs(a / scale - b / scale) if scale else 0.0
    except OverflowError:
        return None
    return relative if math.isfinite(relative) else None


def _short(value: Any) -> Any:
    """Return a value as JSON can hold it; a long text, such as uncommitted changes, by first line and checksum."""
    if isinstance(value, list):
        return type(value)(_short(item) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if not isinstance(value, str) or len(value) <= _MOST_CHARACTERS:
        return value
    lines, checksum = value.splitlines() or [""], hashlib.sha256(value.encode(errors="replace")).hexdigest()
    return f"{lines[0][:_MOST_CHARACTERS]}... ({len(lines):,} lines, SHA-256 {checksum[:16]})"


def _shown(value: Any) -> str:
    return ", then ".join(map(json.dumps, value)) if isinstance(value, Stretches) else json.dumps(value)


def flat(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of a tree's leaves, names as group/name."""
    # Without recursion: somebody's file may nest deeper than Python does.
    left = list(data.items())[::-1]
    while left:
        name, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{name}/{inner}", item) for inner, item in value.items()][::-1]
        else:
            yield name, value
