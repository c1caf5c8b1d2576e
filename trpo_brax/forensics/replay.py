"""Replaying one iteration part by part, to find the first that makes a non-finite number, and the operation in it.

Every part is a compiled program of its own. Only the first bad one is run again un-jitted, and of a rollout only one
step of one environment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_brax.algorithm import CriticFit, StepOutcome, TrustRegionStep, weighted_moments
from trpo_brax.forensics.blame import Culprit, find_culprit, names, no_operation, not_finite
from trpo_brax.forensics.rollout_fault import Gathered, rollout_fault, without_physics
from trpo_brax.learner.iteration import Iteration, Judgement
from trpo_brax.learner.metrics import Metrics
from trpo_brax.learner.state import TrainState
from trpo_brax.policy import CriticParameters, ObservationStatistics

_MAYBE = "outcome is bad_curvature"
"""A step may be refused for it of finite numbers too."""
_BATCH = ("state", "advantages")
_ALL_FINITE = (
    "Every part is finite here, by itself: the iteration as one program, or on another device, rounds differently."
)
_NO_VALUE = "The metrics: no operation is looked for, as they hold NaN and divide by zero wherever there is no value."


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of an iteration, compiled and run by itself."""

    name: str
    finite: bool
    outputs: tuple[str, ...] = ()
    """What of its outputs was not finite, or says that something on the way was not."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """What replaying an iteration showed."""

    parts: tuple[Part, ...]
    """In order, up to the first that was not finite."""
    culprit: Culprit | None = None
    """The operation that made the number, where running the part un-jitted showed it."""
    environment: int | None = None
    """Which one, where a rollout was at fault."""
    time: int | None = None
    """The rollout's time step at which it was, from 0."""
    note: str = ""
    """Why there is no culprit."""

    @property
    def finite(self) -> bool:
        """Whether every part was."""
        return all(part.finite for part in self.parts)

    def report(self) -> list[str]:
        """Return lines for a terminal."""
        width = max(len(part.name) for part in self.parts)
        lines = []
        for part in self.parts:
            verdict = "finite" if part.finite else f"not finite: {', '.join(part.outputs)}"
            lines.append(f"{part.name:<{width}}  {verdict}")
        if self.environment is not None:
            lines.append(f"In environment {self.environment} at time step {self.time}.")
        return [*lines, str(self.culprit or self.note)]


def replay(iteration: Iteration, state: TrainState) -> Replay:
    """Compile and run an iteration's parts one after the other, and explain the first that is not finite.

    Args:
        iteration: of the run.
        state: of one seed, before the iteration; it is not changed.
    """
    gathered = jax.jit(lambda state: Gathered(*iteration.gather(state)))(state)
    if bad := _faults(gathered):
        return Replay((Part("rollout", False, bad),), *rollout_fault(iteration, state, gathered))
    parts = [Part("rollout", True)]
    made: Made = {"state": without_physics(state), "rollout": gathered.trajectory}
    for piece in _pieces(iteration):
        arguments = {name: made[name] for name in piece.reads}
        outputs = made[piece.name] = jax.jit(piece.function)(*arguments.values())
        bad = piece.bad(made, outputs)
        culprit = find_culprit(piece.function, arguments) if bad else None
        if culprit or (bad and bad != (_MAYBE,)):
            note = "" if culprit else no_operation(piece.name)
            return Replay((*parts, Part(piece.name, False, bad)), culprit, note=note)
        parts.append(Part(piece.name, True))
    fitted = made["critic fit"]
    batch = (made[name] for name in ("state", "rollout", "advantages", "trust-region step"))
    metrics = jax.jit(iteration.describe)(*batch, fitted.fit, made["observation statistics"])
    bad = _bad_metrics(iteration, made["advantages"], metrics)
    parts.append(Part("metrics", not bad, bad))
    return Replay(tuple(parts), note=_NO_VALUE if bad else _ALL_FINITE)


class _Fitted(NamedTuple):
    critic: CriticParameters
    fit: CriticFit


Made = dict[str, Any]
"""What the parts so far returned, by their names, and the state."""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A part of the iteration and how to tell whether it was finite."""

    name: str
    function: Callable[..., Any]
    reads: tuple[str, ...]
    """Names of what `function` takes."""
    bad: Callable[[Made, Any], tuple[str, ...]] = lambda made, outputs: _not_finite(outputs)
    """(what was made, outputs) -> what of them is not finite, or tells of a number that was turned away on the way."""


def _pieces(iteration: Iteration) -> list[_Piece]:
    """Return the iteration's parts between rollout and metrics, as `Iteration.with_batch` composes them."""
    return [
        _Piece("advantages", iteration.judge, ("state", "rollout")),
        _Piece("trust-region step", iteration.improve, _BATCH, lambda made, step: _not_finite(step) + _refusal(step)),
        _Piece(
            "critic fit",
            lambda *given: _Fitted(*iteration.fit(*given)),
            _BATCH,
            lambda made, fitted: _not_finite(fitted) + _refused_updates(fitted),
        ),
        _Piece(
            "observation statistics",
            lambda state, rollout, step, fitted: iteration.fold(state, rollout, step, fitted.critic),
            ("state", "rollout", "trust-region step", "critic fit"),
            lambda made, folded: _not_finite(folded) + _unmoved(made["state"], folded.statistics),
        ),
    ]


def _not_finite(outputs: Any) -> tuple[str, ...]:
    return names(not_finite(outputs))


def _faults(gathered: Gathered) -> tuple[str, ...]:
    """Return what is not finite, and the flags that tell of an environment whose numbers were replaced."""
    flags = {
        "transitions.valid": gathered.trajectory.transitions.valid,
        "environments.healthy": gathered.environments.healthy,
    }
    told = tuple(f"{name} is False" for name, flag in flags.items() if not np.all(flag))
    # Of what physics and a user's own `info` hold, infinity may be a value: only the trajectory counts.
    return _not_finite({"trajectory": gathered.trajectory}) + told


def _refusal(step: TrustRegionStep) -> tuple[str, ...]:
    outcome = StepOutcome(int(step.taken.outcome))
    suspicious = outcome in (StepOutcome.NON_FINITE, StepOutcome.BAD_CURVATURE)
    return (f"outcome is {outcome.name.lower()}",) if suspicious else ()


def _refused_updates(fitted: _Fitted) -> tuple[str, ...]:
    """Tell of the critic's updates that changed nothing."""
    refused = int(fitted.fit.refused)
    return (f"{refused} updates were refused as not finite",) if refused else ()


def _unmoved(state: TrainState, statistics: ObservationStatistics) -> tuple[str, ...]:
    return ("count did not grow",) if float(statistics.count) == float(state.statistics.count) else ()


def _bad_metrics(iteration: Iteration, judgement: Judgement, metrics: Metrics) -> tuple[str, ...]:
    """Return the metrics that should have been finite: NaN stands for no value where there is none to give."""
    valueless = set()
    if not int(metrics["episodes"]):
        valueless |= {name for name in metrics if name.startswith("episode_")} | {"environment"}
    if iteration.config.trust_region.discount >= 1.0:
        valueless |= {"penalty_coefficient", "improvement_lower_bound"}
    # Of finite moments it is NaN only where targets do not vary.
    explained = {"explained_variance": judgement.targets, "explained_variance_of_returns": judgement.returns}
    valueless |= {name for name, of in explained.items() if np.isfinite(weighted_moments(of, judgement.weights)[1])}
    return names(
        {
            name: jax.tree.map(np.isinf, value) if name in valueless else not_finite(value)
            for name, value in metrics.items()
        }
    )
