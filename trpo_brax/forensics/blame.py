"""Naming the operation that made a non-finite number.

A function is traced and its equations are evaluated one by one, un-jitted. From a bad output element the number is
walked back, element by element, to an operation that made it of finite ones: the first non-finite number met on the way
forward may well be one that `where` masks. Loops are iterated in Python, so that the step is known as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, primitives

from trpo_brax.forensics.cause import cause_of, element, first_true
from trpo_brax.forensics.unjitted import (
    Evaluated,
    Index,
    Level,
    Nested,
    Place,
    bodies_of,
    inexact,
    is_key,
    literal,
    nested_in,
    non_finite,
)

source_info_util.register_exclusion(__file__)

_MOST_OPERANDS = 6
"""Operands described of one operation."""

_PACKAGE = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Culprit:
    """What made a non-finite number of finite ones."""

    operation: str
    """The primitive's name; `input` or `constant` where a number was not finite to begin with."""
    source: str
    """`file.py:line (function)` of the code that asked for it, outside of JAX; empty for an input."""
    path: tuple[str, ...]
    """The loops and branches it is in, outermost first, such as `scan step 3`; steps count from 0."""
    operands: tuple[str, ...]
    """Each operand: shape, and its value at the bad element where there is one such, else smallest and largest."""
    value: str
    """What it made: nan, inf or -inf."""
    called_from: str = ""
    """The nearest of its callers that is not installed code, where `source` is."""
    given_by: str = ""
    """Where it made NaN of an infinity that was an input or a constant: which."""

    def __str__(self) -> str:
        """Return one sentence."""
        operands = ", ".join(self.operands)
        caller = f", called from {self.called_from}" if self.called_from else ""
        place = f", at {self.source}{caller}" if self.source else ""
        path = f", in {', '.join(self.path)}" if self.path else ""
        given = f"; the infinity is that of {self.given_by}" if self.given_by else ""
        if self.operation in ("input", "constant"):
            return f"{' '.join((self.operation, *self.operands))} was {self.value} to begin with{place}{path}."
        return f"{self.operation} of {operands} gave {self.value}{place}{path}{given}."


def find_culprit(
    function: Callable[..., Any], *arguments: Any, bad: Callable[[Any], Any] | None = None
) -> Culprit | None:
    """Return what made the first bad number in what a function returns, or None if nothing there is bad.

    An infinity given as input or constant is a number like any other, until an operation makes NaN of it, which is
    then the culprit, or until it is the output itself.

    Args:
        function: of pytrees of arrays; traceable.
        *arguments: its arguments.
        bad: outputs -> a tree of the same structure of bool arrays, True where a number counts as bad; by default
            where it is not finite. An element that is finite never counts.
    """
    traced = _Traced.of(function, arguments)
    level = Level(traced.closed, traced.arguments)
    level.evaluate()
    masks = jax.tree.leaves((bad or not_finite)(jax.tree.unflatten(traced.structure, level.outputs)))
    for atom, mask, output in zip(traced.closed.jaxpr.outvars, masks, level.outputs, strict=True):
        counted = np.asarray(mask) & non_finite(output)
        if counted.any():
            walk = _Walk()
            return traced.named(walk, walk.back(level, atom, first_true(counted)))
    return None


def find_guarded(function: Callable[..., Any], *arguments: Any, within: Path = _PACKAGE) -> Culprit | None:
    """Return what made the first non-finite number that a guard met on the way, or None if none did.

    A guard is a call of `jnp.isfinite`, or of `jnp.isnan` for NaN alone. What it turns away never reaches an output.

    Args:
        function: of pytrees of arrays; traceable.
        *arguments: its arguments.
        within: only guards in files below this folder count; by default those of this package.
    """
    traced = _Traced.of(function, arguments)
    walk = _Walk()
    return traced.named(walk, walk.first_guarded(traced.closed, traced.arguments, within))


def not_finite(tree: Any) -> Any:
    """Return a tree of bool arrays, True where a number is neither finite nor an integer."""
    return jax.tree.map(non_finite, tree)


class _Traced(NamedTuple):
    """A function's jaxpr, and the leaves of its arguments."""

    closed: ClosedJaxpr
    arguments: list[Any]
    names: list[str]
    """Of the arguments' leaves."""
    structure: Any
    """Of the outputs."""

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: Sequence[Any]) -> _Traced:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        try:
            parameters = list(inspect.signature(function).bind(*arguments).arguments)
        except (TypeError, ValueError):  # no signature is known of some built-in functions
            parameters = []
        if len(parameters) != len(arguments):
            parameters = [f"argument {number}" for number in range(len(arguments))]
        leaves, names = [], []
        for parameter, argument in zip(parameters, arguments, strict=True):
            for path, leaf in jax.tree_util.tree_leaves_with_path(argument):
                leaves.append(jnp.asarray(leaf))
                names.append(parameter + jax.tree_util.keystr(path))
        return cls(closed, leaves, names, jax.tree.structure(shapes))

    def named(self, walk: _Walk, found: Culprit | Place | None) -> Culprit | None:
        """Return what a walk found, an input by its name."""
        if not isinstance(found, Place):
            return found
        value = element(self.arguments[found.position], found.at)
        name = self.names[found.position] + (str(list(found.at)) if found.at else "")
        return walk.given(Culprit("input", "", (), (name,), _number(value)), value)


class _Walk:
    """The way back of one number through the levels of one function."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._frames: list[list[str]] = []
        self._turned: Culprit | None = None
        """The operation that made NaN of the infinity that is followed now."""

    def back(self, level: Level, atom: Any, index: Index) -> Culprit | Place:
        """Follow an element of a variable to what made it, or to an input of its level."""
        reader: JaxprEqn | None = None
        while isinstance(atom, Var) and atom in level.made:
            made, output = level.made[atom]
            found = self._through(made, output, index)
            if isinstance(found, Culprit):
                return found
            reader, atom, index = made.equation, made.equation.invars[found.position], found.at
        if isinstance(atom, Var) and atom in level.inputs:
            return Place(level.inputs[atom], index)
        value = element(literal(atom) if isinstance(atom, Literal) else level.constants[atom], index)
        source, caller = self._source(reader)
        return self.given(Culprit("constant", source, tuple(self._path), (), _number(value), caller), value)

    def given(self, origin: Culprit, value: Any) -> Culprit:
        """Return whom to blame for an input or a constant: what made NaN of an infinity, else the number itself."""
        if self._turned is None or np.isnan(value):
            return origin
        place = f" at {origin.source}" if origin.source else ""
        return dataclasses.replace(self._turned, given_by=f"{' '.join((origin.operation, *origin.operands))}{place}")

    def first_guarded(self, closed: ClosedJaxpr, arguments: Sequence[Any], within: Path) -> Culprit | Place | None:
        """Return what made the first non-finite number that a guard meets, or the input that it was."""
        level = Level(closed, arguments)
        for made in level.steps():
            found = self._at_guard(made) if self._is_guard(made.equation, within) else self._inside_of(made, within)
            if isinstance(found, Place):
                found = self.back(level, made.equation.invars[found.position], found.at)
            if found is not None:
                return found
        return None

    @staticmethod
    def _at_guard(made: Evaluated) -> Culprit | Place | None:
        operand = made.operands[0]
        wrong = non_finite(operand) if _is_finite_test(made.equation) else np.isnan(operand)
        return Place(0, first_true(wrong)) if wrong.any() else None

    def _inside_of(self, made: Evaluated, within: Path) -> Culprit | Place | None:
        """Search what an equation runs for guards; a place is an operand of the equation."""
        nested = nested_in(made.equation, made.operands)
        # Where no guard is written, nothing is evaluated once more: physics is long.
        if nested is None or not self._holds_guard(made.equation, nested.body.jaxpr, within):
            return None
        steps = nested.steps()
        for step, arguments in enumerate(steps):
            with self._inside(made.equation, nested.label(step)):
                found = self.first_guarded(nested.body, arguments, within)
            if found is not None:
                return self._out_of(made.equation, nested, steps, step, found)
        return None

    def _holds_guard(self, equation: JaxprEqn, body: Jaxpr, within: Path) -> bool:
        """Return whether a guard is written in what an equation runs."""
        with self._inside(equation, []):
            return any(
                self._is_guard(inner, within)
                or any(self._holds_guard(inner, body, within) for body in bodies_of(inner))
                for inner in body.eqns
            )

    def _is_guard(self, equation: JaxprEqn, within: Path) -> bool:
        if not (_is_finite_test(equation) or _is_nan_test(equation)):
            return False
        return Path(self._source(equation)[0].partition(":")[0]).is_relative_to(within)

    def _through(self, made: Evaluated, output: int, index: Index) -> Culprit | Place:
        """Follow an element of an equation's output to one of its operands, unless it was made here."""
        nested = nested_in(made.equation, made.operands)
        if nested is not None:
            return self._through_nested(made.equation, nested, output, index)
        cause = cause_of(made, output, index)
        if cause is None:
            return self._culprit(made, output, index)
        came_of = element(made.operands[cause.position], cause.at)
        if np.isnan(element(made.outputs[output], index)) and not np.isnan(came_of):
            self._turned = self._culprit(made, output, index)
        return cause

    def _through_nested(self, equation: JaxprEqn, nested: Nested, output: int, index: Index) -> Culprit | Place:
        steps = nested.steps()
        if not steps:  # a loop returns what it was given
            return nested.outside(0, Place(nested.constants + output, index))
        step, index = nested.entry(output, index, len(steps))
        found = self._at_step(equation, nested, steps, step, output, index)
        return self._out_of(equation, nested, steps, step, found)

    def _out_of(
        self, equation: JaxprEqn, nested: Nested, steps: list[list[Any]], step: int, found: Culprit | Place
    ) -> Culprit | Place:
        """Follow what was found at a step to the steps before, while it is carried, and out of the loop."""
        while isinstance(found, Place):
            carried = nested.carried_at(found)
            if carried is None or step == 0:
                return nested.outside(step, found)
            step -= 1
            found = self._at_step(equation, nested, steps, step, carried, found.at)
        return found

    def _at_step(
        self, equation: JaxprEqn, nested: Nested, steps: list[list[Any]], step: int, output: int, index: Index
    ) -> Culprit | Place:
        """Follow an element of the body's output at a step to what made it there, or to one of its arguments."""
        unchanged = nested.unchanged(steps[step], output, index)
        if unchanged is not None:
            return unchanged
        level = Level(nested.body, steps[step])
        level.evaluate()
        with self._inside(equation, nested.label(step)):
            return self.back(level, level.jaxpr.outvars[output], index)

    @contextlib.contextmanager
    def _inside(self, equation: JaxprEqn, labels: list[str]) -> Iterator[None]:
        path = self._path
        self._path = [*path, *labels]
        self._frames.append(_frames(equation))
        yield
        self._frames.pop()
        self._path = path

    def _culprit(self, made: Evaluated, output: int, index: Index) -> Culprit:
        value = element(made.outputs[output], index)
        shape = np.shape(made.outputs[output])
        operands = [_described(operand, shape, index) for operand in made.operands[:_MOST_OPERANDS]]
        if len(made.operands) > _MOST_OPERANDS:
            operands.append(f"{len(made.operands) - _MOST_OPERANDS} more")
        source, caller = self._source(made.equation)
        name = made.equation.primitive.name
        return Culprit(name, source, tuple(self._path), tuple(operands), _number(value), caller)

    def _source(self, equation: JaxprEqn | None) -> tuple[str, str]:
        """Return where an equation was asked for, and, where that is installed code, what of the user's called it."""
        # JAX's own functions are traced once for all callers, and say nothing of them: the call itself does.
        own = [] if equation is None else _frames(equation)
        frames = own + [frame for frames in reversed(self._frames) for frame in frames]
        if not frames:
            return "unknown", ""
        users = [frame for frame in frames if "site-packages" not in frame]
        return frames[0], users[0] if users and users[0] != frames[0] else ""


def _is_finite_test(equation: JaxprEqn) -> bool:
    return equation.primitive is primitives.is_finite_p


def _is_nan_test(equation: JaxprEqn) -> bool:
    """Return whether this is jnp.isnan(x), which is x != x."""
    return equation.primitive is primitives.ne_p and equation.invars[0] is equation.invars[1]


def _frames(equation: JaxprEqn) -> list[str]:
    """Return `file.py:line (function)` of the frames outside JAX that asked for an equation, innermost first."""
    lines = source_info_util.summarize(equation.source_info, num_frames=100).splitlines()
    return [re.sub(r":(\d+):\d+ \(", r":\1 (", line) for line in reversed(lines)]


def _number(value: Any) -> str:
    return f"{value:.7g}" if inexact(value) else str(value)


def _described(operand: Any, shape: tuple[int, ...], index: Index) -> str:
    """Return an operand's shape, and its value at `index` where it has the output's shape, else its range."""
    if is_key(operand):
        return str(jnp.result_type(operand))
    array = np.asarray(operand)
    kind = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    if not array.shape:
        return f"{kind} {_number(array[()])}"
    if array.shape == shape:
        return f"{kind} {_number(array[index])} at {list(index)}"
    numbers = array[~np.isnan(array)] if inexact(array) else array
    if numbers.size == 0 or np.iscomplexobj(array):
        return kind
    low, high = _number(np.min(numbers)), _number(np.max(numbers))
    values = f"{kind} all {low}" if low == high else f"{kind} from {low} to {high}"
    return values if numbers.size == array.size else f"{values}, some nan"
