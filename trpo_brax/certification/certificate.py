"""What is stated about a policy, with which confidence, and that it was declared before the episodes were drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any, Literal

import numpy as np

from trpo_brax.certification.betting import mean_lower_betting
from trpo_brax.certification.bounds import cvar_lower, failure_probability_upper, quantile_lower
from trpo_brax.evaluation.episodes import Episodes
from trpo_brax.evaluation.failure import Failure
from trpo_brax.evaluation.statistics import conditional_value_at_risk, lower_quantile

Source = Literal["given", "known", "assumed", "observed"]

QUANTILE = 0.05
FAILURE, LOW_QUANTILE, MEAN, CVAR = (
    "failure_probability_upper",
    "return_quantile_05_lower",
    "return_mean_lower",
    "return_cvar_lower",
)
STATEMENTS = (FAILURE, LOW_QUANTILE, MEAN, CVAR)


@dataclasses.dataclass(frozen=True)
class ReturnRange:
    """Between what a return lies."""

    floor: float
    """No return is lower: the bounds on mean and CVaR rest on it."""
    floor_source: Source
    """`given` by the user, `known` of the task, or `assumed` from other episodes."""
    cap: float
    """Higher returns are counted as this, which can only lower the bounds: nothing rests on it."""
    cap_source: Source
    """`given`, `known`, or `observed` in other episodes."""


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What will be stated, fixed before an episode is drawn."""

    episodes: int
    confidence: float
    """With which all of a family's statements hold together."""
    alpha: float
    """Of the CVaR: the mean of the worst share alpha."""
    failure: Failure
    returns: ReturnRange
    worlds: int = 1
    """How many worlds four statements each are made of, all of them together at `confidence`."""

    @property
    def confidence_each(self) -> float:
        """Of one statement by itself, so that all hold together (Bonferroni)."""
        return 1.0 - (1.0 - self.confidence) / (len(STATEMENTS) * self.worlds)

    def to_dict(self) -> dict[str, Any]:
        """Return what a certificate says was declared."""
        return {
            "statements": list(STATEMENTS),
            "worlds": self.worlds,
            "episodes": self.episodes,
            "confidence": self.confidence,
            "confidence_each": self.confidence_each,
            "alpha": self.alpha,
            "failure": str(self.failure),
            "return_floor": self.returns.floor,
            "return_floor_source": self.returns.floor_source,
            "return_cap": self.returns.cap,
            "return_cap_source": self.returns.cap_source,
        }


@dataclasses.dataclass(frozen=True)
class Statement:
    """One sentence with a number in it."""

    name: str
    """Its key in certificate.json."""
    bound: float | None
    """None: nothing can be stated, and `sentence` says why."""
    observed: float
    """The same quantity of the episodes drawn."""
    sentence: str


def certify_episodes(episodes: Episodes, declaration: Declaration) -> tuple[Statement, ...]:
    """Return what independent episodes of one policy in one world say, as declared; in the order of `STATEMENTS`.

    An episode that went non-finite has failed, and its return counts as the floor, in the quantile as minus infinity.
    The episodes must be in the order in which they were drawn: two of the bounds depend on it.

    Raises:
        ValueError: they are not as many as declared.
    """
    if len(episodes.returns) != declaration.episodes:
        raise ValueError(f"{declaration.episodes} episodes were declared, and there are {len(episodes.returns)}")
    return (
        _failure(episodes, declaration),
        _quantile(episodes, declaration),
        _mean(episodes, declaration),
        _cvar(episodes, declaration),
    )


def observed_range(
    returns: np.ndarray, given: tuple[float | None, float | None], known: tuple[float | None, float | None]
) -> ReturnRange:
    """Return the range to declare, from what is given and known, and else from other episodes than those to come.

    The assumed floor lies below 0 and below every return seen by as much as those are apart (by a tenth of the lowest
    where they all agree): a fall that ends an episode early must not come out below it.

    Args:
        returns: [E], of other episodes.
        given: floor and cap, by the user.
        known: floor and cap, of the task.
    """
    low, high = float(returns.min()), float(returns.max())
    floor, floor_source = _first(given[0], known[0], min(0.0, low) - max(high - low, 0.1 * abs(low)), "assumed")
    cap, cap_source = _first(given[1], known[1], high, "observed")
    return ReturnRange(floor, floor_source, max(cap, floor), cap_source)


def _first(given: float | None, known: float | None, otherwise: float, source: Source) -> tuple[float, Source]:
    if given is not None:
        return given, "given"
    return (otherwise, source) if known is None else (known, "known")


def _failure(episodes: Episodes, declaration: Declaration) -> Statement:
    failed = int(declaration.failure(episodes).sum())
    bound = failure_probability_upper(failed, declaration.episodes, declaration.confidence_each)
    sentence = (
        f"An episode fails with probability at most {_up(100 * bound)}% (failed: {declaration.failure}; "
        f"{failed:,} of {declaration.episodes:,} did)."
    )
    return Statement(FAILURE, bound, failed / declaration.episodes, sentence)


def _quantile(episodes: Episodes, declaration: Declaration) -> Statement:
    values = np.where(episodes.nonfinite, -math.inf, episodes.returns.astype(np.float64))
    bound = quantile_lower(values, QUANTILE, declaration.confidence_each)
    observed = lower_quantile(counted_returns(episodes, declaration), QUANTILE)
    if bound is None:
        return Statement(LOW_QUANTILE, None, observed, "So few episodes say nothing about the 5% quantile of return.")
    if math.isinf(bound):
        return Statement(
            LOW_QUANTILE, None, observed, "Too many episodes went non-finite for a statement about the 5% quantile."
        )
    return Statement(
        LOW_QUANTILE, bound, observed, f"At least 95% of all episodes return {_down(bound)} or more (5% quantile)."
    )


def _mean(episodes: Episodes, declaration: Declaration) -> Statement:
    def bound(values: np.ndarray) -> float:
        floor, cap = declaration.returns.floor, declaration.returns.cap
        each = declaration.confidence_each
        return mean_lower_betting(np.minimum(values, cap), floor=floor, cap=cap, confidence=each)

    observed = float(counted_returns(episodes, declaration).mean())
    return _resting_on_the_floor(
        MEAN, episodes, declaration, bound, observed, lambda number: f"The mean return is at least {number}"
    )


def _cvar(episodes: Episodes, declaration: Declaration) -> Statement:
    alpha, confidence = declaration.alpha, declaration.confidence_each

    def bound(values: np.ndarray) -> float:
        return cvar_lower(values, alpha, floor=declaration.returns.floor, confidence=confidence)

    observed = conditional_value_at_risk(counted_returns(episodes, declaration), alpha)
    worst = f"The mean of the worst {100 * alpha:g}% of all episodes is at least"
    return _resting_on_the_floor(
        CVAR, episodes, declaration, bound, observed, lambda number: f"{worst} {number} (CVaR)"
    )


def counted_returns(episodes: Episodes, declaration: Declaration) -> np.ndarray:
    """Return the returns float64 [E]; that of an episode that went non-finite counts as the lowest possible."""
    returns = episodes.returns.astype(np.float64)
    floor = min(declaration.returns.floor, float(returns.min()))
    return np.where(episodes.nonfinite, floor, returns)


def _resting_on_the_floor(
    name: str,
    episodes: Episodes,
    declaration: Declaration,
    bound: Callable[[np.ndarray], float],
    observed: float,
    sentence: Callable[[str], str],
) -> Statement:
    values, returns = counted_returns(episodes, declaration), declaration.returns
    if values.min() < returns.floor:
        said = f"Nothing is stated: an episode returned {values.min():,.6g}, below the floor {returns.floor:,.6g}"
        return Statement(name, None, observed, f"{said} that the bound rests on ({returns.floor_source}).")
    number = bound(values)
    if number <= returns.floor:
        return Statement(name, number, observed, f"So few episodes state no more than the floor, {_down(number)}.")
    grounds = {
        "assumed": f", assuming that no return is below {_down(returns.floor)}",
        "given": f", given that no return is below {_down(returns.floor)}",
    }
    rests = grounds.get(returns.floor_source, "")
    return Statement(name, number, observed, f"{sentence(_down(number))}{rests}.")


def _down(number: float) -> str:
    """Return a lower bound in six digits, never rounded up."""
    return _rounded(number, ROUND_FLOOR, 6)


def _up(number: float) -> str:
    """Return an upper bound in four digits, never rounded down."""
    return _rounded(number, ROUND_CEILING, 4)


def _rounded(number: float, rounding: str, digits: int) -> str:
    # What the arithmetic leaves over in the last digits of a double is not worth one here.
    shown = Context(prec=digits, rounding=rounding).create_decimal(f"{number + 0.0:.12g}")
    return f"{shown.normalize():,f}"
