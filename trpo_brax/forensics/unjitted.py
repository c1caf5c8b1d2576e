"""Evaluating a traced function equation by equation, un-jitted, loops step by step in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

Index = tuple[int, ...]
"""Of one element of an array."""


class Place(NamedTuple):
    """An element of an operand, or of an argument."""

    position: int
    """Of the operand."""
    at: Index


class Evaluated(NamedTuple):
    """An equation's evaluation."""

    equation: JaxprEqn
    operands: list[Any]
    outputs: list[Any]


class Level:
    """One evaluation of one jaxpr, un-jitted; of equations with a non-finite output it keeps what was read and made."""

    def __init__(self, closed: ClosedJaxpr, arguments: Sequence[Any]) -> None:
        self.jaxpr: Jaxpr = closed.jaxpr
        self.constants = dict(zip(self.jaxpr.constvars, closed.consts, strict=True))
        self.inputs = {var: position for position, var in enumerate(self.jaxpr.invars)}
        self.made: dict[Var, tuple[Evaluated, int]] = {}
        self.outputs: list[Any] = []
        self._arguments = arguments

    def evaluate(self) -> list[Any]:
        """Evaluate everything and return the outputs."""
        for _ in self.steps():
            pass
        return self.outputs

    def steps(self) -> Iterator[Evaluated]:
        """Evaluate equation by equation."""
        values = self.constants | dict(zip(self.jaxpr.invars, self._arguments, strict=True))

        def read(atom: Any) -> Any:
            return literal(atom) if isinstance(atom, Literal) else values[atom]

        last_use = {atom: number for number, equation in enumerate(self.jaxpr.eqns) for atom in _variables(equation)}
        returned = set(_variables(self.jaxpr))
        for number, equation in enumerate(self.jaxpr.eqns):
            operands = [read(atom) for atom in equation.invars]
            nested = nested_in(equation, operands)
            made = Evaluated(equation, operands, nested.outputs() if nested else bind(equation, operands))
            values.update(zip(equation.outvars, made.outputs, strict=True))
            if any(non_finite(output).any() for output in made.outputs):
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


def bind(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Return the outputs of an equation by its operation itself."""
    with equation.ctx.manager:
        outputs = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return list(outputs) if equation.primitive.multiple_results else [outputs]


class Nested:
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

    def carried_at(self, place: Place) -> int | None:
        """Return which of the body's outputs, at the step before, an argument is; None if it is none."""
        number = place.position - self.constants
        return number if 0 <= number < self.carried else None

    def outside(self, step: int, place: Place) -> Place:
        """Return the equation's operand that an argument of the body at a step came from."""
        return Place(self._skipped + place.position, place.at)

    def unchanged(self, arguments: list[Any], output: int, index: Index) -> Place | None:
        """Return the argument that an element of the body's output is without having been computed, else None."""
        return None

    def _iterate(self) -> Iterator[tuple[list[Any], list[Any]]]:
        arguments = self._operands[self._skipped :]
        yield arguments, Level(self.body, arguments).evaluate()


class _Branch(Nested):
    def __init__(self, equation: JaxprEqn, operands: Sequence[Any]) -> None:
        branches = equation.params["branches"]
        self._number = int(np.clip(int(operands[0]), 0, len(branches) - 1))
        super().__init__(equation, operands, branches[self._number], skipped=1)

    def label(self, step: int) -> list[str]:
        return [f"cond branch {self._number}"]


class _Scan(Nested):
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

    def outside(self, step: int, place: Place) -> Place:
        scanned = place.position >= self.constants + self.carried
        return Place(place.position, (self._row(step), *place.at) if scanned else place.at)

    def _row(self, step: int) -> int:
        """Return which row a step reads and writes; and the other way round."""
        return self._length - 1 - step if self._reverse else step

    def _iterate(self) -> Iterator[tuple[list[Any], list[Any]]]:
        given = self.constants + self.carried
        carry, scanned = self._operands[self.constants : given], [_rows(operand) for operand in self._operands[given:]]
        for step in range(self._length):
            row = [rows[self._row(step)] for rows in scanned]
            arguments = [*self._operands[: self.constants], *carry, *row]
            outputs = Level(self.body, arguments).evaluate()
            yield arguments, outputs
            carry = outputs[: self.carried]


class _While(Nested):
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

    def unchanged(self, arguments: list[Any], output: int, index: Index) -> Place | None:
        goes_on = self._goes_on(arguments[self.constants :])
        return None if goes_on[index[: goes_on.ndim]] else Place(self.constants + output, index)

    def _iterate(self) -> Iterator[tuple[list[Any], list[Any]]]:
        given = self._skipped + self.constants
        constants, carry = self._operands[self._skipped : given], self._operands[given:]
        while (goes_on := self._goes_on(carry)).any():
            arguments = [*constants, *carry]
            outputs = Level(self.body, arguments).evaluate()
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
        condition = Level(self._equation.params["cond_jaxpr"], [*self._operands[: self._skipped], *carry])
        return np.asarray(condition.evaluate()[0])


def nested_in(equation: JaxprEqn, operands: Sequence[Any]) -> Nested | None:
    """Return what an equation runs; None if it is an operation."""
    kinds = {primitives.cond_p: _Branch, primitives.scan_p: _Scan, primitives.while_p: _While}
    if equation.primitive in kinds:
        return kinds[equation.primitive](equation, operands)
    if equation.primitive in _BODY_OF_CALL:
        return Nested(equation, operands, equation.params[_BODY_OF_CALL[equation.primitive]])
    return None


def bodies_of(equation: JaxprEqn) -> list[Jaxpr]:
    """Return all that an equation may run."""
    names = {primitives.scan_p: "jaxpr", primitives.while_p: "body_jaxpr", **_BODY_OF_CALL}
    if equation.primitive is primitives.cond_p:
        return [branch.jaxpr for branch in equation.params["branches"]]
    if equation.primitive in names:
        body = equation.params[names[equation.primitive]]
        return [body.jaxpr if isinstance(body, ClosedJaxpr) else body]
    return []


def literal(atom: Any) -> Any:
    """Return the value of a constant in a jaxpr, in its dtype."""
    return np.asarray(atom.val, atom.aval.dtype) if np.isscalar(atom.val) else atom.val


def is_key(value: Any) -> bool:
    """Return whether an array holds something that is no number, such as new-style random keys."""
    return bool(jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended))


def inexact(value: Any) -> bool:
    """Return whether a value is of floating point, real or complex."""
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))


def non_finite(value: Any) -> np.ndarray:
    """Return a mask of the elements that are NaN or infinite; of whole numbers none is."""
    return ~np.isfinite(np.asarray(value)) if inexact(value) else np.zeros(np.shape(value), bool)


def _rows(operand: Any) -> Any:
    """Return an array that is quickly indexed."""
    return operand if is_key(operand) else np.asarray(operand)


def _stacked(rows: list[Any], shape: Any) -> Any:
    if rows and is_key(rows[0]):
        return jnp.stack(rows)
    return np.stack([np.asarray(row) for row in rows]) if rows else np.zeros(shape.shape, shape.dtype)
