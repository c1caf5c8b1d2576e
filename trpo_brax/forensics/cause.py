"""Which operand element of an operation reached an element of its output."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import source_info_util
from jax.extend.core import Literal

from trpo_brax.forensics.unjitted import Evaluated, Index, Place, bind, non_finite

source_info_util.register_exclusion(__file__)


def cause_of(made: Evaluated, output: int, index: Index) -> Place | None:
    """Return the non-finite operand element that reaches an element of the output; None where none does.

    The operation itself is asked: with 1 in the place of every non-finite operand element, putting NaN back for one of
    them shows whether the output element reads it. That holds of reductions, gathers and selections alike.
    """
    masks = [non_finite(operand) for operand in made.operands]
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
        return element(bind(made.equation, operands)[output], index)

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

    def place(self, number: int, masks: Sequence[np.ndarray]) -> Place:
        position = int(self.position[number])
        return Place(position, _index(int(self.flat[number]), masks[position].shape))


def _candidates(made: Evaluated, masks: Sequence[np.ndarray], output: int, index: Index) -> _Candidates:
    """Return all non-finite operand elements: first those at the same index, of the same kind, and no literals."""
    result = element(made.outputs[output], index)
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


def first_true(mask: np.ndarray) -> Index:
    """Return where a mask is first true, in the order of memory."""
    return _index(int(np.argmax(mask)), mask.shape)


def _index(flat: int, shape: tuple[int, ...]) -> Index:
    return tuple(int(at) for at in np.unravel_index(flat, shape))


def element(value: Any, index: Index) -> Any:
    """Return one element of an array."""
    return np.asarray(value)[index]
