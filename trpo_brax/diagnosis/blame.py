"""Naming the operation that made a non-finite number.

A function is traced and its equations are evaluated one by one, un-jitted. From a bad output element the number is
walked back, element by element, to an operation that made it of finite ones: the first non-finite number met on the way
forward may well be one that `where` masks. Loops are iterated in Python, so that the step is known as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, primitives

source_info_util.register_exclusion(__file__)

_BODY_OF_CALL = {
    primitives.jit_p: "jaxpr",
    primitives.remat_p: "jaxpr",
    primitives.call_p: "call_jaxpr",
    primitives.closed_call_p: "call_jaxpr",
    primitives.custom_jvp_call_p: "call_jaxpr",
    primitives.custom_vjp_call_p: "call_jaxpr",
}
"""Operations that do no more than call a function, and where they keep it."""
_MOST_OPERANDS = 6
"""Operands described of one operation."""
_PACKAGE = Path(__file__).parents[1]
Index = tuple[int, ...]
"""Of one element of an array."""


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
    level = _Level(traced.closed, traced.arguments)
    level.evaluate()
    masks = jax.tree.leaves((bad or not_finite)(jax.tree.unflatten(traced.structure, level.outputs)))
    for atom, mask, output in zip(traced.closed.jaxpr.outvars, masks, level.outputs, strict=True):
        counted = np.asarray(mask) & _not_finite(output)
        if counted.any():
            walk = _Walk()
            return traced.named(walk, walk.back(level, atom, _first(counted)))
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
    return jax.tree.map(_not_finite, tree)


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

    def named(self, walk: _Walk, found: Culprit | _Place | None) -> Culprit | None:
        """Return what a walk found, an input by its name."""
        if not isinstance(found, _Place):
            return found
        value = _element(self.arguments[found.position], found.at)
        name = self.names[found.position] + (str(list(found.at)) if found.at else "")
        return walk.given(Culprit("input", "", (), (name,), _number(value)), value)


class _Place(NamedTuple):
    """An element of an operand, or of an argument."""

    position: int
    """Of the operand."""
    at: Index


class _Made(NamedTuple):
    """An equation's evaluation."""

    equation: JaxprEqn
    operands: list[Any]
    outputs: list[Any]


class _Level:
    """One evaluation of one jaxpr, un-jitted; of equations with a non-finite output it keeps what was read and made."""

    def __init__(self, closed: ClosedJaxpr, arguments: Sequence[Any]) -> None:
        self.jaxpr: Jaxpr = closed.jaxpr
        self.constants = dict(zip(self.jaxpr.constvars, closed.consts, strict=True))
        self.inputs = {var: position for position, var in enumerate(self.jaxpr.invars)}
        self.made: dict[Var, tuple[_Made, int]] = {}
        self.outputs: list[Any] = []
        self._arguments = arguments

    def evaluate(self) -> list[Any]:
        """Evaluate everything and return the outputs."""
        for _ in self.steps():
            pass
        return self.outputs

    def steps(self) -> Iterator[_Made]:
        """Evaluate equation by equation."""
        values = self.constants | dict(zip(self.jaxpr.invars, self._arguments, strict=True))

        def read(atom: Any) -> Any:
            return _literal(atom) if isinstance(atom, Literal) else values[atom]

        last_use = {atom: number for number, equation in enumerate(self.jaxpr.eqns) for atom in _variables(equation)}
        returned = set(_variables(self.jaxpr))
        for number, equation in enumerate(self.jaxpr.eqns):
            operands = [read(atom) for atom in equation.invars]
            nested = _nested(equation, operands)
            made = _Made(equation, operands, nested.outputs() if nested else _bind(equation, operands))
            values.update(zip(equation.outvars, made.outputs, strict=True))
            if any(_not_finite(output).any() for output in made.outputs):
                self.made |= {var: (made, at) for at, var in enumerate(equation.outvars)}
            yield made
            for atom in {*_variables(equation), *equation.outvars} - returned:
                if last_use.get(atom, number) == number:
                    del values[atom]
        self.outputs = [read(atom) for atom in self.jaxpr.outvars]


def _variables(owner: Jaxpr | JaxprEqn) -> list[Var]:
    """Return what an equation reads, or a jaxpr returns, but for literals."""
    atoms = owner.outvars if isinstance(owner, Jaxpr) else owner.invars
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _bind(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Return the outputs of an equation by its operation itself."""
    with equation.ctx.manager:
        outputs = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return list(outputs) if equation.primitive.multiple_results else [outputs]


class _Nested:
    """What an equation runs: a function that it calls, in one step, or a loop's body, step after step, in Python.

    The body's arguments are constants, then what is carried, then, in a scan, the step's row of what is scanned over.
    """

    def __init__(self, equation: JaxprEqn, operands: Sequence[Any], body: Any, skipped: int = 0) -> None:
        self.body = body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())
        self.constants = len(operands) - skipped
        self.carried = 0
        self._equation = equation
        self._skipped = skipped
        """Operands that the body does not take."""
        self._operands = list(operands)

    def steps(self) -> list[list[Any]]:
        """Return the body's arguments of every step, in the order in which they are taken."""
        return [arguments for arguments, _ in self._iterate()]

    def outputs(self) -> list[Any]:
        """Return what the equation returns."""
        return list(self._iterate())[-1][1]

    def label(self, step: int) -> list[str]:
        """Return what a step adds to a path."""
        return []

    def entry(self, output: int, index: Index, steps: int) -> tuple[int, Index]:
        """Return at which step an output's element was made, and which element it is there."""
        return steps - 1, index

    def carried_at(self, place: _Place) -> int | None:
        """Return which of the body's outputs, at the step before, an argument is; None if it is none."""
        number = place.position - self.constants
        return number if 0 <= number < self.carried else None

    def outside(self, step: int, place: _Place) -> _Place:
        """Return the equation's operand that an argument of the body at a step came from."""
        return _Place(self._skipped + place.position, place.at)

    def unchanged(self, arguments: list[Any], output: int, index: Index) -> _Place | None:
        """Return the argument that an element of the body's output is without having been computed, else None."""
        return None

    def _iterate(self) -> Iterator[tuple[list[Any], list[Any]]]:
        arguments = self._operands[self._skipped :]
        yield arguments, _Level(self.body, arguments).evaluate()


class _Branch(_Nested):
    def __init__(self, equation: JaxprEqn, operands: Sequence[Any]) -> None:
        branches = equation.params["branches"]
        self._number = int(np.clip(int(operands[0]), 0, len(branches) - 1))
        super().__init__(equation, operands, branches[self._number], skipped=1)

    def label(self, step: int) -> list[str]:
        return [f"cond branch {self._number}"]


class _Scan(_Nested):
    def __init__(self, equation: JaxprEqn, operands: Sequence[Any]) -> None:
        super().__init__(equation, operands, equation.params["jaxpr"])
        self.constants, self.carried = equation.params["num_consts"], equation.params["num_carry"]
        self._length, self._reverse = equation.params["length"], equation.params["reverse"]

    def outputs(self) -> list[Any]:
        carry, rows = self._operands[self.constants :][: self.carried], []
        for _, outputs in self._iterate():
            carry = outputs[: self.carried]
            rows.append(outputs[self.carried :])
        if self._reverse:
            rows.reverse()
        shapes = [var.aval for var in self._equation.outvars[self.carried :]]
        return [*carry, *(_stacked([row[at] for row in rows], shape) for at, shape in enumerate(shapes))]

    def label(self, step: int) -> list[str]:
        return [f"scan step {step}{' (from the end)' if self._reverse else ''}"]

    def entry(self, output: int, index: Index, steps: int) -> tuple[int, Index]:
        return (steps - 1, index) if output < self.carried else (self._row(index[0]), index[1:])

    def outside(self, step: int, place: _Place) -> _Place:
        scanned = place.position >= self.constants + self.carried
        return _Place(place.position, (self._row(step), *place.at) if scanned else place.at)

    def _row(self, step: int) -> int:
        """Return which row a step reads and writes; and the other way round."""
        return self._length - 1 - step if self._reverse else step

    def _iterate(self) -> Iterator[tuple[list[Any], list[Any]]]:
        given = self.constants + self.carried
        carry, scanned = self._operands[self.constants : given], [_rows(operand) for operand in self._operands[given:]]
        for step in range(self._length):
            row = [rows[self._row(step)] for rows in scanned]
            arguments = [*self._operands[: self.constants], *carry, *row]
            outputs = _Level(self.body, arguments).evaluate()
            yield arguments, outputs
            carry = outputs[: self.carried]


class _While(_Nested):
    def __init__(self, equation: JaxprEqn, operands: Sequence[Any]) -> None:
        super().__init__(equation, operands, equation.params["body_jaxpr"], equation.params["cond_nconsts"])
        self.constants = equation.params["body_nconsts"]
        self.carried = len(operands) - self._skipped - self.constants

    def outputs(self) -> list[Any]:
        carry = self._operands[self._skipped + self.constants :]
        for step in self._iterate():
            carry = step[1]
        return carry

    def label(self, step: int) -> list[str]:
        return [f"while step {step}"]

    def unchanged(self, arguments: list[Any], output: int, index: Index) -> _Place | None:
        goes_on = self._goes_on(arguments[self.constants :])
        return None if goes_on[index[: goes_on.ndim]] else _Place(self.constants + output, index)

    def _iterate(self) -> Iterator[tuple[list[Any], list[Any]]]:
        given = self._skipped + self.constants
        constants, carry = self._operands[self._skipped : given], self._operands[given:]
        while (goes_on := self._goes_on(carry)).any():
            arguments = [*constants, *carry]
            outputs = _Level(self.body, arguments).evaluate()
            if goes_on.ndim:
                carry = [
                    np.where(goes_on.reshape(goes_on.shape + (1,) * (np.ndim(old) - goes_on.ndim)), new, old)
                    for new, old in zip(outputs, carry, strict=True)
                ]
            else:
                carry = outputs
            yield arguments, carry

    def _goes_on(self, carry: list[Any]) -> np.ndarray:
        """Return bool [], or [...]: of a loop that was mapped over copies, each of which ends by itself."""
        condition = _Level(self._equation.params["cond_jaxpr"], [*self._operands[: self._skipped], *carry])
        return np.asarray(condition.evaluate()[0])


def _nested(equation: JaxprEqn, operands: Sequence[Any]) -> _Nested | None:
    """Return what an equation runs; None if it is an operation."""
    kinds = {primitives.cond_p: _Branch, primitives.scan_p: _Scan, primitives.while_p: _While}
    if equation.primitive in kinds:
        return kinds[equation.primitive](equation, operands)
    if equation.primitive in _BODY_OF_CALL:
        return _Nested(equation, operands, equation.params[_BODY_OF_CALL[equation.primitive]])
    return None


def _bodies(equation: JaxprEqn) -> list[Jaxpr]:
    """Return all that an equation may run."""
    names = {primitives.scan_p: "jaxpr", primitives.while_p: "body_jaxpr", **_BODY_OF_CALL}
    if equation.primitive is primitives.cond_p:
        return [branch.jaxpr for branch in equation.params["branches"]]
    if equation.primitive in names:
        body = equation.params[names[equation.primitive]]
        return [body.jaxpr if isinstance(body, ClosedJaxpr) else body]
    return []


class _Walk:
    """The way back of one number through the levels of one function."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._frames: list[list[str]] = []
        self._turned: Culprit | None = None
        """The operation that made NaN of the infinity that is followed now."""

    def back(self, level: _Level, atom: Any, index: Index) -> Culprit | _Place:
        """Follow an element of a variable to what made it, or to an input of its level."""
        reader: JaxprEqn | None = None
        while isinstance(atom, Var) and atom in level.made:
            made, output = level.made[atom]
            found = self._through(made, output, index)
            if isinstance(found, Culprit):
                return found
            reader, atom, index = made.equation, made.equation.invars[found.position], found.at
        if isinstance(atom, Var) and atom in level.inputs:
            return _Place(level.inputs[atom], index)
        value = _element(_literal(atom) if isinstance(atom, Literal) else level.constants[atom], index)
        source, caller = self._source(reader)
        return self.given(Culprit("constant", source, tuple(self._path), (), _number(value), caller), value)

    def given(self, origin: Culprit, value: Any) -> Culprit:
        """Return whom to blame for an input or a constant: what made NaN of an infinity, else the number itself."""
        if self._turned is None or np.isnan(value):
            return origin
        place = f" at {origin.source}" if origin.source else ""
        return dataclasses.replace(self._turned, given_by=f"{' '.join((origin.operation, *origin.operands))}{place}")

    def first_guarded(self, closed: ClosedJaxpr, arguments: Sequence[Any], within: Path) -> Culprit | _Place | None:
        """Return what made the first non-finite number that a guard meets, or the input that it was."""
        level = _Level(closed, arguments)
        for made in level.steps():
            found = self._at_guard(made) if self._is_guard(made.equation, within) else self._inside_of(made, within)
            if isinstance(found, _Place):
                found = self.back(level, made.equation.invars[found.position], found.at)
            if found is not None:
                return found
        return None

    @staticmethod
    def _at_guard(made: _Made) -> Culprit | _Place | None:
        operand = made.operands[0]
        wrong = _not_finite(operand) if _is_finite_test(made.equation) else np.isnan(operand)
        return _Place(0, _first(wrong)) if wrong.any() else None

    def _inside_of(self, made: _Made, within: Path) -> Culprit | _Place | None:
        """Search what an equation runs for guards; a place is an operand of the equation."""
        nested = _nested(made.equation, made.operands)
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
                self._is_guard(inner, within) or any(self._holds_guard(inner, body, within) for body in _bodies(inner))
                for inner in body.eqns
            )

    def _is_guard(self, equation: JaxprEqn, within: Path) -> bool:
        if not (_is_finite_test(equation) or _is_nan_test(equation)):
            return False
        return Path(self._source(equation)[0].partition(":")[0]).is_relative_to(within)

    def _through(self, made: _Made, output: int, index: Index) -> Culprit | _Place:
        """Follow an element of an equation's output to one of its operands, unless it was made here."""
        nested = _nested(made.equation, made.operands)
        if nested is not None:
            return self._through_nested(made.equation, nested, output, index)
        cause = _cause(made, output, index)
        if cause is None:
            return self._culprit(made, output, index)
        came_of = _element(made.operands[cause.position], cause.at)
        if np.isnan(_element(made.outputs[output], index)) and not np.isnan(came_of):
            self._turned = self._culprit(made, output, index)
        return cause

    def _through_nested(self, equation: JaxprEqn, nested: _Nested, output: int, index: Index) -> Culprit | _Place:
        steps = nested.steps()
        if not steps:  # a loop returns what it was given
            return nested.outside(0, _Place(nested.constants + output, index))
        step, index = nested.entry(output, index, len(steps))
        found = self._at_step(equation, nested, steps, step, output, index)
        return self._out_of(equation, nested, steps, step, found)

    def _out_of(
        self, equation: JaxprEqn, nested: _Nested, steps: list[list[Any]], step: int, found: Culprit | _Place
    ) -> Culprit | _Place:
        """Follow what was found at a step to the steps before, while it is carried, and out of the loop."""
        while isinstance(found, _Place):
            carried = nested.carried_at(found)
            if carried is None or step == 0:
                return nested.outside(step, found)
            step -= 1
            found = self._at_step(equation, nested, steps, step, carried, found.at)
        return found

    def _at_step(
        self, equation: JaxprEqn, nested: _Nested, steps: list[list[Any]], step: int, output: int, index: Index
    ) -> Culprit | _Place:
        """Follow an element of the body's output at a step to what made it there, or to one of its arguments."""
        unchanged = nested.unchanged(steps[step], output, index)
        if unchanged is not None:
            return unchanged
        level = _Level(nested.body, steps[step])
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

    def _culprit(self, made: _Made, output: int, index: Index) -> Culprit:
        value = _element(made.outputs[output], index)
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


def _cause(made: _Made, output: int, index: Index) -> _Place | None:
    """Return the non-finite operand element that reaches an element of the output; None where none does.

    The operation itself is asked: with 1 in the place of every non-finite operand element, putting NaN back for one of
    them shows whether the output element reads it. That holds of reductions, gathers and selections alike.
    """
    masks = [_not_finite(operand) for operand in made.operands]
    if not any(mask.any() for mask in masks):
        return None
    candidates = _candidates(made, masks, output, index)

    def reached(count: int) -> Any:
        """Return the output element with NaN in the place of the first `count` candidates and 1 in that of others."""
        operands = list(made.operands)
        for position, mask in enumerate(masks):
            if mask.any():
                changed = np.where(mask, np.ones((), operands[position].dtype), np.asarray(operands[position]))
                chosen = candidates.flat[:count][candidates.position[:count] == position]
                changed.reshape(-1)[chosen] = np.nan
                operands[position] = changed
        return _element(_bind(made.equation, operands)[output], index)

    repaired = reached(0)
    if np.isnan(repaired):
        return candidates.place(0, masks)  # nothing can be told apart; its inputs were not finite
    total = len(candidates.flat)
    low, high = 0, 1
    while high < total and not np.isnan(reached(high)):
        low, high = high, min(2 * high, total)
    if not np.isnan(reached(high)):
        return candidates.place(0, masks) if np.isfinite(repaired) else None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if np.isnan(reached(middle)) else (middle, high)
    return candidates.place(high - 1, masks)


class _Candidates(NamedTuple):
    """Non-finite operand elements, the likeliest first."""

    position: np.ndarray
    """[C]: of the operand."""
    flat: np.ndarray
    """[C]: index into the operand as one axis."""

    def place(self, number: int, masks: Sequence[np.ndarray]) -> _Place:
        position = int(self.position[number])
        return _Place(position, _index(int(self.flat[number]), masks[position].shape))


def _candidates(made: _Made, masks: Sequence[np.ndarray], output: int, index: Index) -> _Candidates:
    """Return all non-finite operand elements: first those at the same index, of the same kind, and no literals."""
    result = _element(made.outputs[output], index)
    shape = np.shape(made.outputs[output])
    positions, flats = [], []
    for aligned, literal, alike in itertools.product((True, False), (False, True), (True, False)):
        for position, (operand, mask) in enumerate(zip(made.operands, masks, strict=True)):
            if not mask.any() or isinstance(made.equation.invars[position], Literal) != literal:
                continue
            array = np.asarray(operand)
            if aligned:
                chosen = np.zeros(array.shape, bool)
                if array.shape == shape:
                    chosen[index] = mask[index]
            else:
                chosen = mask
            same = np.isnan(array) if np.isnan(result) else array == result
            flat = np.flatnonzero(chosen & (same == alike))
            positions.append(np.full(len(flat), position))
            flats.append(flat)
    return _Candidates(np.concatenate(positions), np.concatenate(flats))


def _frames(equation: JaxprEqn) -> list[str]:
    """Return `file.py:line (function)` of the frames outside JAX that asked for an equation, innermost first."""
    lines = source_info_util.summarize(equation.source_info, num_frames=100).splitlines()
    return [re.sub(r":(\d+):\d+ \(", r":\1 (", line) for line in reversed(lines)]


def _literal(atom: Any) -> Any:
    return np.asarray(atom.val, atom.aval.dtype) if np.isscalar(atom.val) else atom.val


def _is_key(value: Any) -> bool:
    """Return whether an array holds something that is no number, such as new-style random keys."""
    return bool(jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended))


def _inexact(value: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))


def _not_finite(value: Any) -> np.ndarray:
    return ~np.isfinite(np.asarray(value)) if _inexact(value) else np.zeros(np.shape(value), bool)


def _first(mask: np.ndarray) -> Index:
    return _index(int(np.argmax(mask)), mask.shape)


def _index(flat: int, shape: tuple[int, ...]) -> Index:
    return tuple(int(at) for at in np.unravel_index(flat, shape))


def _element(value: Any, index: Index) -> Any:
    return np.asarray(value)[index]


def _number(value: Any) -> str:
    return f"{value:.7g}" if _inexact(value) else str(value)


def _described(operand: Any, shape: tuple[int, ...], index: Index) -> str:
    """Return an operand's shape, and its value at `index` where it has the output's shape, else its range."""
    if _is_key(operand):
        return str(jnp.result_type(operand))
    array = np.asarray(operand)
    kind = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    if not array.shape:
        return f"{kind} {_number(array[()])}"
    if array.shape == shape:
        return f"{kind} {_number(array[index])} at {list(index)}"
    numbers = array[~np.isnan(array)] if _inexact(array) else array
    if numbers.size == 0 or np.iscomplexobj(array):
        return kind
    low, high = _number(np.min(numbers)), _number(np.max(numbers))
    values = f"{kind} all {low}" if low == high else f"{kind} from {low} to {high}"
    return values if numbers.size == array.size else f"{values}, some nan"


def _rows(operand: Any) -> Any:
    """Return an array that is quickly indexed."""
    return operand if _is_key(operand) else np.asarray(operand)


def _stacked(rows: list[Any], shape: Any) -> Any:
    if rows and _is_key(rows[0]):
        return jnp.stack(rows)
    return np.stack([np.asarray(row) for row in rows]) if rows else np.zeros(shape.shape, shape.dtype)
