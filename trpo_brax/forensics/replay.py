"""Replaying one iteration part by part, to find the first that makes a non-finite number, and the operation in it.

Every part is a compiled program of its own. Only the first bad one is run again un-jitted, and of a rollout only one
step of one environment.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.extend import source_info_util

from trpo_brax.algorithm import (
    CriticFit,
    FullStep,
    LineSearchResult,
    PolicyBatch,
    StepOutcome,
    TrustRegionStep,
    weighted_moments,
)
from trpo_brax.algorithm.policy_update import PolicyUpdate, StepSamples
from trpo_brax.algorithm.surrogate import Distribution
from trpo_brax.forensics.blame import Culprit, find_culprit, find_guarded, not_finite
from trpo_brax.forensics.rollout_fault import Gathered, first_invalid, only_compiled, rollout_fault
from trpo_brax.learner.iteration import Iteration, Judgement
from trpo_brax.learner.metrics import Metrics
from trpo_brax.learner.state import TrainState
from trpo_brax.policy import CriticParameters, ObservationStatistics

source_info_util.register_exclusion(__file__)


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
    """Where programs that should agree did not."""

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
        if self.culprit is not None:
            sentence = str(self.culprit)
            lines.append(sentence[0].upper() + sentence[1:])
        return [*lines, self.note] if self.note else lines


def replay(iteration: Iteration, state: TrainState) -> Replay:
    """Compile and run an iteration's parts one after the other, and explain the first that is not finite.

    Args:
        iteration: of the run.
        state: of one seed, before the iteration; it is not changed.
    """
    made: dict[str, Any] = {"state": state}
    parts: list[Part] = []
    for piece in _pieces(iteration):
        arguments = [made[name] for name in piece.reads]
        outputs = made[piece.name] = jax.jit(piece.function)(*arguments)
        bad = _names(piece.bad(made, outputs))
        said = piece.says(made, outputs)
        if not bad and not said:
            parts.append(Part(piece.name, True))
        elif piece.name == "rollout":
            fault = rollout_fault(iteration, state) or first_invalid(outputs)
            return Replay((*parts, Part(piece.name, False, (*bad, *said))), *fault)
        elif bad:
            culprit = find_culprit(piece.function, *arguments, bad=functools.partial(piece.bad, made))
            note = "" if culprit else only_compiled(piece.name)
            return Replay((*parts, Part(piece.name, False, (*bad, *said))), culprit, note=note)
        else:
            # A step may be refused for other reasons than a number that was not finite.
            culprit = find_guarded(piece.function, *arguments)
            parts.append(Part(piece.name, culprit is None, said if culprit else ()))
            if culprit is not None:
                return Replay(tuple(parts), culprit)
    return Replay(tuple(parts), note=_compared_with_whole(iteration, made))


class _Gradient(NamedTuple):
    gradient: jax.Array
    old: Distribution


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
    bad: Callable[[Made, Any], Any] = lambda made, outputs: not_finite(outputs)
    """(what was made, outputs) -> masks of the outputs' structure, True where a number should have been finite."""
    says: Callable[[Made, Any], tuple[str, ...]] = lambda made, outputs: ()
    """(what was made, outputs) -> what of the outputs tells of a number that was turned away on the way."""


def _pieces(iteration: Iteration) -> list[_Piece]:
    """Return the iteration's parts in order, those of the policy's step as `trust_region_step` composes them."""
    settings = iteration.config.trust_region

    def update_of(state: TrainState) -> PolicyUpdate:
        damping = state.damping.value(settings)
        return PolicyUpdate(iteration.networks.distribution, state.policy, settings, damping)

    def samples_of(update: PolicyUpdate, rollout: Gathered, judged: Judgement) -> StepSamples:
        actions = rollout.trajectory.actions
        return update.samples(PolicyBatch(judged.observations, actions, judged.advantages, judged.weights))

    def gradient(state: TrainState, rollout: Gathered, advantages: Judgement) -> _Gradient:
        update = update_of(state)
        return _Gradient(*update.gradient(update.vector, samples_of(update, rollout, advantages).batch))

    def solve(state: TrainState, rollout: Gathered, advantages: Judgement, gradient: _Gradient) -> FullStep:
        update = update_of(state)
        return update.solve(update.vector, gradient.gradient, samples_of(update, rollout, advantages))

    def search(
        state: TrainState, rollout: Gathered, advantages: Judgement, gradient: _Gradient, full: FullStep
    ) -> LineSearchResult:
        update = update_of(state)
        return update.search(update.vector, full, gradient.old, samples_of(update, rollout, advantages).batch)

    batch = ("state", "rollout", "advantages")
    return [
        _Piece(
            "rollout",
            lambda state: Gathered(*iteration.gather(state)),
            ("state",),
            bad=lambda made, gathered: {"trajectory": not_finite(gathered.trajectory)},
            says=lambda made, gathered: _faults(gathered),
        ),
        _Piece(
            "advantages",
            lambda state, rollout: iteration.judge(state, rollout.trajectory),
            ("state", "rollout"),
        ),
        _Piece("gradient", gradient, batch),
        _Piece("conjugate gradient", solve, (*batch, "gradient"), says=_refusal),
        _Piece("line search", search, (*batch, "gradient", "conjugate gradient"), says=_refusal),
        _Piece(
            "trust-region step",
            lambda state, rollout, advantages: iteration.improve(state, rollout.trajectory, advantages),
            batch,
            says=_refusal,
        ),
        _Piece(
            "critic fit",
            lambda state, rollout, advantages: _Fitted(*iteration.fit(state, rollout.trajectory, advantages)),
            batch,
            says=lambda made, fitted: _refused_minibatches(iteration, made, fitted),
        ),
        _Piece(
            "observation statistics",
            lambda state, rollout: state.statistics.updated(
                rollout.trajectory.observations, rollout.trajectory.transitions.valid
            ),
            ("state", "rollout"),
            says=_unmoved,
        ),
        _Piece(
            "metrics",
            lambda state, rollout, advantages, step, fitted: iteration.describe(
                state, rollout.trajectory, advantages, step, fitted.fit
            ),
            (*batch, "trust-region step", "critic fit"),
            bad=lambda made, metrics: _bad_metrics(iteration, made, metrics),
        ),
    ]


def _faults(gathered: Gathered) -> tuple[str, ...]:
    """Return the names of the flags that tell of an environment whose numbers were replaced."""
    flags = {
        "transitions.valid": gathered.trajectory.transitions.valid,
        "environments.healthy": gathered.environments.healthy,
    }
    return tuple(f"{name} is False" for name, flag in flags.items() if not np.all(flag))


def _refusal(made: Made, outputs: FullStep | LineSearchResult | TrustRegionStep) -> tuple[str, ...]:
    outcome = StepOutcome(int(outputs.outcome))
    suspicious = outcome in (StepOutcome.NON_FINITE, StepOutcome.BAD_CURVATURE)
    return (f"outcome is {outcome.name.lower()}",) if suspicious else ()


def _refused_minibatches(iteration: Iteration, made: Made, fitted: _Fitted) -> tuple[str, ...]:
    """Tell of minibatches that changed nothing: all of them have valid samples, or the rollout would not be finite."""
    settings = iteration.config.critic
    asked = settings.critic_epochs * min(settings.critic_minibatches, iteration.config.rollout.unroll_length)
    before, after = (
        int(optax.tree_utils.tree_get(state, "count"))
        for state in (made["state"].critic_optimizer, fitted.fit.optimizer_state)
    )
    refused = asked - (after - before)
    return (f"{refused} of {asked} minibatches were refused",) if refused else ()


def _unmoved(made: Made, statistics: ObservationStatistics) -> tuple[str, ...]:
    unchanged = float(statistics.count) == float(made["state"].statistics.count)
    return ("count did not grow",) if unchanged else ()


def _bad_metrics(iteration: Iteration, made: Made, metrics: Metrics) -> Metrics:
    """Return masks of metrics that should have been finite: NaN stands for no value where there is none to give."""
    judgement, valueless = made["advantages"], set()
    if not int(metrics["episodes"]):
        valueless |= {name for name in metrics if name.startswith("episode_")} | {"environment"}
    if iteration.config.trust_region.discount >= 1.0:
        valueless |= {"penalty_coefficient", "improvement_lower_bound"}
    # Of finite moments it is NaN only where targets do not vary.
    if np.isfinite(weighted_moments(judgement.targets, judgement.weights)[1]):
        valueless.add("explained_variance")
    return {
        name: jax.tree.map(np.isinf, value) if name in valueless else not_finite(value)
        for name, value in metrics.items()
    }


def _compared_with_whole(iteration: Iteration, made: Made) -> str:
    """Run the iteration as one program and say whether it agrees that everything is finite."""
    new_state, metrics = jax.jit(iteration)(made["state"])
    learner = dataclasses.replace(new_state, environments=None)
    seen = [*_names(not_finite(learner)), *_names(_bad_metrics(iteration, made, metrics))]
    if int(metrics["nonfinite_envs"]):
        seen.append("nonfinite_envs")
    if int(metrics["step_outcome"]) == StepOutcome.NON_FINITE:
        seen.append("step_outcome")
    if seen:
        return (
            f"The iteration as one program is not finite ({', '.join(seen)}), and its parts one at a time are: "
            "programs round differently, and here that decides."
        )
    return (
        "Neither the parts nor the iteration as one program made a non-finite number here: programs and devices round "
        "differently, and another one may have."
    )


def _names(masks: Any) -> tuple[str, ...]:
    """Return the dotted paths of the leaves in which something is True."""
    return tuple(
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, mask in jax.tree_util.tree_leaves_with_path(masks)
        if np.any(mask)
    )
