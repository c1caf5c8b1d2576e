"""Whether one policy is better than another, and by how much: both meet the same episodes until that is known."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from trpo_brax.certification.betting import mean_lower_betting, mean_upper_betting
from trpo_brax.certification.settings import Listener, Pairing
from trpo_brax.config import Config
from trpo_brax.environments import Task, known_returns
from trpo_brax.errors import ConfigError
from trpo_brax.evaluation import Episodes, Failure, Watcher, summarize
from trpo_brax.policy import PolicySpecification
from trpo_brax.randomness import Stream
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.run import Run

if TYPE_CHECKING:
    from brax.envs import Env

LOOK = 128
"""Episodes of each policy between two looks at what they say."""

Verdict = Literal["better", "worse", "undecided"]
Source = Literal["given", "known", "assumed"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the episodes that two policies, A and B, both met say of B."""

    verdict: Verdict
    episodes: int
    """Of each policy."""
    confidence: float
    difference_mean: float
    """B's return less A's: the mean of these episodes."""
    difference_lower: float | None
    """The mean of all episodes is no less, and no more than `difference_upper`, with `confidence`; None where two
    returns of an episode differed by more than `largest_difference`."""
    difference_upper: float | None
    largest_difference: float
    """No two returns of an episode differ by more: the bounds rest on it."""
    largest_difference_source: Source
    """`given` by the user, `known` of the task, or `assumed` from other episodes."""
    return_means: tuple[float, float]
    """A's and B's."""
    failure_rates: tuple[float, float]
    failure: str
    """What counts as a failure."""

    def lines(self) -> list[str]:
        """Return it in sentences."""
        known = "It is not known which is better" if self.verdict == "undecided" else f"B is {self.verdict} than A"
        returns, failures = self.return_means, self.failure_rates
        lines = [
            f"{known}, after {self.episodes:,} episodes of each.",
            f"Mean return: {returns[0]:,.6g} (A) and {returns[1]:,.6g} (B); failure rate: {failures[0]:.4g} and "
            f"{failures[1]:.4g} (failed: {self.failure}).",
        ]
        rests = f"no two returns of an episode differ by more than {self.largest_difference:,.6g}"
        if self.difference_lower is None:
            return [*lines, f"Nothing is stated: two returns differ by more than {self.largest_difference:,.6g}."]
        grounds = {"known": "", "given": f", given that {rests}", "assumed": f", assuming that {rests}"}
        between = f"between {self.difference_lower:,.6g} and {self.difference_upper:,.6g}"
        told = f"With {100 * self.confidence:g}% confidence B's mean return less A's lies {between}"
        return [*lines, f"{told}{grounds[self.largest_difference_source]}."]


def compare(
    run: Run | str | os.PathLike[str],
    other: Run | str | os.PathLike[str],
    pairing: Pairing | None = None,
    *,
    checkpoint: str | int = "latest",
    other_checkpoint: str | int = "latest",
    policy_seed: int | None = None,
    other_policy_seed: int | None = None,
    environment: Env | Task | None = None,
    listener: Listener | None = None,
) -> Comparison:
    """Let two policies, A and B, meet the same episodes, and stop as soon as it is known which is better.

    Args:
        run: A's run, or its folder.
        other: B's; it may be the same.
        pairing: how long to look, and with which confidence.
        checkpoint: A's: `latest`, `best` or an iteration.
        other_checkpoint: B's.
        policy_seed: A's, in a run of several seeds; by default the first one's.
        other_policy_seed: B's.
        environment: for runs on an environment of the user's own, that environment.
        listener: told what goes on.

    Raises:
        UserError: a run, checkpoint or environment cannot be used, or the two are not of one world.
        EvaluationStopped: the listener said so.
    """
    if not isinstance(pairing, Pairing | None):
        raise ConfigError(f"pairing must be a Pairing, not {pairing!r:.40}.")
    pairing, listener = pairing or Pairing(), listener or Listener()
    failure, watcher = Failure(pairing.failure), Watcher(listener.stopped)
    first, second = Run.load(run), Run.load(other)
    _refuse_two_worlds(first.config, second.config)
    task = first.task(environment)

    def side(one: Run, which: str | int, seed: int | None) -> Evaluator:
        seeds = [one.config.check_seed(seed)]
        return Evaluator(one, episodes=LOOK, checkpoint=which, policy_seeds=seeds, environment=task)

    a, b = side(first, checkpoint, policy_seed), side(second, other_checkpoint, other_policy_seed)
    if _specification(a) == _specification(b):
        b.runner = a.runner  # one program serves both

    def draw(stream: Stream, begin: int, episodes: int) -> list[Episodes]:
        return [one.run(episodes, seed=pairing.seed, stream=stream, begin=begin, watcher=watcher) for one in (a, b)]

    largest, source = _known_difference(pairing, first.config)
    if largest is None:
        with listener.counting("Looking at what returns there are", LOOK) as progress:
            largest = _assumed_difference(draw(Stream.CHOICE, 0, LOOK))
            progress(LOOK)
    drawn: list[list[Episodes]] = []
    with listener.counting("Comparing, at most", pairing.episodes) as progress:
        for begin in range(0, pairing.episodes, LOOK):
            drawn.append(draw(Stream.COMPARISON, begin, min(LOOK, pairing.episodes - begin)))
            of_a, of_b = (Episodes.joined(parts) for parts in zip(*drawn, strict=True))
            found = differences(of_a, of_b, largest)
            progress(len(found))
            bounds = difference_bounds(found, largest, pairing.confidence)
            if bounds is None or _verdict(bounds) != "undecided":
                break
    lower, upper = bounds or (None, None)
    reports = summarize(of_a, failure), summarize(of_b, failure)
    return Comparison(
        verdict=_verdict(bounds),
        episodes=len(found),
        confidence=pairing.confidence,
        difference_mean=float(found.mean()),
        difference_lower=lower,
        difference_upper=upper,
        largest_difference=largest,
        largest_difference_source=source,
        return_means=(reports[0].return_mean, reports[1].return_mean),
        failure_rates=(reports[0].failure_rate, reports[1].failure_rate),
        failure=str(failure),
    )


def differences(a: Episodes, b: Episodes, largest: float) -> npt.NDArray[np.float64]:
    """Return what B returned more than A in each episode, float64 [E].

    One that went non-finite has lost by the largest difference to one that did not.
    """
    found = b.returns.astype(np.float64) - a.returns
    lost = a.nonfinite.astype(np.float64) - b.nonfinite
    return np.where(a.nonfinite | b.nonfinite, largest * lost, found)


def difference_bounds(found: npt.NDArray[np.float64], largest: float, confidence: float) -> tuple[float, float] | None:
    """Return bounds on the mean of what differences `[n]`, in the order of the episodes, are drawn from.

    Both hold with `confidence` at every n at once: whoever looks after each difference and stops when he likes is
    misled no more often. None where a difference is larger than the largest.
    """
    if np.abs(found).max() > largest:
        return None
    each = 1.0 - (1.0 - confidence) / 2.0
    bounds = [
        bound(found, floor=-largest, cap=largest, confidence=each, anytime=True)
        for bound in (mean_lower_betting, mean_upper_betting)
    ]
    return bounds[0], bounds[1]


def _verdict(bounds: tuple[float, float] | None) -> Verdict:
    """Return what bounds on B's mean return less A's say of B."""
    if bounds is None or bounds[0] <= 0.0 <= bounds[1]:
        return "undecided"
    return "better" if bounds[0] > 0.0 else "worse"


def _known_difference(pairing: Pairing, config: Config) -> tuple[float | None, Source]:
    """Return the largest difference that two returns of an episode can have, None where that has to be assumed."""
    if pairing.largest_difference is not None:
        return pairing.largest_difference, "given"
    low, high = known_returns(config)
    return (None, "assumed") if low is None or high is None else (high - low, "known")


def _assumed_difference(pilot: Sequence[Episodes]) -> float:
    """Return twice the range of what both returned in other episodes, and of 0: what one that ends at once returns."""
    returns = np.concatenate([[0.0], *(one.returns.astype(np.float64) for one in pilot)])
    return 2.0 * float(np.ptp(returns)) or 1.0


def _refuse_two_worlds(a: Config, b: Config) -> None:
    """Raise a `ConfigError` where two runs' episodes are not the same."""

    def world(config: Config) -> dict[str, Any]:
        rollout = config.rollout
        return {
            "task": config.environment or config.task,
            "environment_arguments": config.environment_arguments,
            "backend": rollout.backend,
            "episode_length": rollout.episode_length,
            "action_repeat": rollout.action_repeat,
        }

    for (name, ours), theirs in zip(world(a).items(), world(b).values(), strict=True):
        if ours != theirs:
            raise ConfigError(f"compare needs two runs of one {name}, and theirs are {ours} and {theirs}.")


def _specification(evaluator: Evaluator) -> PolicySpecification:
    return next(iter(evaluator.policies.values())).specification
