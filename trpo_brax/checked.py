"""Frozen dataclasses that reject what cannot work: bounds beside the types, trees to and from JSON.

A field's bounds stand beside its type, as in `Annotated[int, Bounds(1)]`, and are enforced by `Checked.__post_init__`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from trpo_brax.errors import ConfigError


@dataclass(frozen=True)
class Bounds:
    """An interval of allowed numbers; `low_open`/`high_open` exclude its ends."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        # Not `math.isfinite`: it cannot take a whole number beyond all floats.
        return -math.inf < value < math.inf and above and below

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return "a finite number"
        low = f"{'greater than' if self.low_open else 'at least'} {self.low:.10g}"
        high = f"{'less than' if self.high_open else 'at most'} {self.high:.10g}"
        return low if math.isinf(self.high) else f"{low} and {high}"


def Count(low: int) -> Bounds:
    """Whole numbers not below `low` that a device counts as int32."""
    return Bounds(low, 2**31 - 1)


POSITIVE = Bounds(0.0, low_open=True)
FINITE = Bounds()
FRACTION = Bounds(0.0, 1.0, low_open=True)
MOST_TEXT = 500
"""Characters of a text: names and paths."""


class Checked:
    """Base of the configuration dataclasses: rejects wrong types and values outside a field's bounds."""

    # Filled by @dataclass in every subclass; declared so that `dataclasses.fields(self)` type-checks here.
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            value = _checked_value(name, getattr(self, name), hint)
            object.__setattr__(self, name, value)


def walk(config: Checked) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, value, annotated type) of every leaf field of the tree."""
    for name, hint in field_types(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, Checked):
            yield from walk(value)
        else:
            yield name, value, hint


def replace_fields(node: Any, values: Mapping[str, Any]) -> Any:
    """Return the tree with leaf fields replaced by name."""
    changes = {}
    for name in field_types(type(node)):
        value = getattr(node, name)
        changes[name] = replace_fields(value, values) if isinstance(value, Checked) else values.get(name, value)
    return type(node)(**changes)


def from_fields(cls: type[Checked], data: Any, where: str, may_lack: str | None = None) -> Checked:
    """Build a tree from JSON's dictionaries; unknown and missing fields are refused by name.

    Fields of nested dataclasses whose annotations hold `may_lack` take their defaults where they are missing.

    Raises:
        ConfigError: with one sentence that names `where` and the field.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is not a JSON object.")
    fields = field_types(cls)
    for name in data:
        if name not in fields:
            raise ConfigError(f"{where} holds the unknown field {str(name)[:40]!r}.")
    values = {}
    for name, hint in fields.items():
        nested = isinstance(hint, type) and issubclass(hint, Checked)
        if name in data:
            values[name] = _nested(hint, data[name], f"{where}, {name},", may_lack) if nested else data[name]
        else:
            raise ConfigError(f"{where} lacks the field {name!r}.")
    return cls(**values)


def _nested(cls: type[Checked], data: Any, where: str, may_lack: str | None) -> Checked:
    if isinstance(data, dict) and may_lack is not None:
        defaults = cls()
        hints = field_types(cls)
        data = {name: getattr(defaults, name) for name, hint in hints.items() if may_lack in get_args(hint)} | data
    return from_fields(cls, data, where, may_lack)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence's end: '; did you mean ...?' for the names nearest to `name`, or the known ones if none is."""
    names = sorted(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known are {', '.join(names)}." if len(names) <= 20 else "."


_FIELD_TYPES: dict[type, Mapping[str, Any]] = {}


def field_types(cls: type[Checked]) -> Mapping[str, Any]:
    """Return a configuration class's field names and annotated types, in order of declaration.

    Annotations are text, and making types of them is slow: every object of a class asks for them.
    """
    if cls not in _FIELD_TYPES:
        hints = typing.get_type_hints(cls, include_extras=True)
        _FIELD_TYPES[cls] = types.MappingProxyType({f.name: hints[f.name] for f in dataclasses.fields(cls)})
    return _FIELD_TYPES[cls]


def _checked_value(name: str, value: Any, hint: Any) -> Any:
    """Return `value` in the type that `hint` asks for, or raise a `ConfigError` that names the field."""
    bounds: Bounds | None = None
    if get_origin(hint) is Annotated:
        bounds = next((extra for extra in hint.__metadata__ if isinstance(extra, Bounds)), None)
        hint = hint.__origin__
    if get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        inner = next(member for member in get_args(hint) if member is not type(None))
        return _checked_value(name, value, Annotated[inner, bounds] if bounds else inner)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = get_args(hint)
            near = suggest(value[:40], choices) if isinstance(value, str) else "."
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {_short(value)}{near}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{name} must be a list, not {_short(value)}.")
        if len(value) > _MOST_ITEMS:
            raise ConfigError(f"{name} must be a list of at most {_MOST_ITEMS} items, not {len(value)}.")
        return tuple(_checked_value(name, item, get_args(hint)[0]) for item in value)
    if isinstance(hint, type) and issubclass(hint, Checked):
        wanted, allowed = hint, hint.__name__
    else:
        wanted, allowed = _SCALARS[hint]
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} must be {allowed}, not {_short(value)}.")
    if hint is str and not (len(typing.cast(str, value)) <= MOST_TEXT and typing.cast(str, value).isprintable()):
        raise ConfigError(f"{name} must be one line of at most {MOST_TEXT} characters, not {_short(value)}.")
    if bounds is not None and typing.cast(float, value) not in bounds:
        raise ConfigError(f"{name} must be {bounds}, not {_short(value)}.")
    if hint is int:
        return int(typing.cast(int, value))
    if hint is float:
        number = typing.cast(float, value)
        if number and not _SMALLEST <= abs(number) <= _LARGEST:
            raise ConfigError(f"{name} must be a number that single precision can hold, not {_short(value)}.")
        return float(number)
    return value


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of lists in lists
        return f"what {type(value).__name__} was given"
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"


_MOST_ITEMS = 64
"""Of a list: more hidden layers than this are somebody's joke."""

# Of float32: on the device anything beyond would become infinite or 0.
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127

_SCALARS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
}
