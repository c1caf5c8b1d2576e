"""Observations to compare actions over: those that a policy meets, and those that nobody hopes to meet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trpo_brax.deployment.description import ArtifactError
from trpo_brax.deployment.findings import OpenLoop
from trpo_brax.deployment.formats import Act
from trpo_brax.evaluation import EvaluationStopped, Watcher
from trpo_brax.policy import Policy
from trpo_brax.randomness import Stream
from trpo_brax.runs.evaluator import Evaluator, episode_key
from trpo_brax.runs.storage import first_line

BATCHES = (1, 2, 7)

_MOST_BATCHES = 1000
_MOST_AT_ONCE = 128
"""Episodes of a batch that are kept: of humanoid's they are 125 MB."""
_LARGEST = float(np.finfo(np.float32).max)
_DECADES = 30.0
"""Of magnitudes on either side of 1: nearly all that float32 has."""


def visited_observations(
    evaluator: Evaluator,
    act: Act,
    count: int,
    *,
    episodes: int,
    most_steps: int | None = None,
) -> np.ndarray:
    """Return observations of episodes that a policy runs, float32 [count, observation], drawn evenly from all it met.

    Where its episodes are so short that `_MOST_BATCHES` batches hold fewer, some appear more than once.

    Args:
        evaluator: of the policy's environment.
        act: the policy, observations [B, observation] -> actions [B, A].
        count: how many observations.
        episodes: how many to run at a time.
        most_steps: of each episode; by default all.

    Raises:
        ArtifactError: no episode began with a finite observation.
    """
    found: list[np.ndarray] = []
    for number in range(_MOST_BATCHES):
        found += _one_batch(evaluator, act, number, min(episodes, _MOST_AT_ONCE), most_steps)
        if not found:
            raise ArtifactError(f"no episode of {evaluator.task.name} begins with a finite state.")
        if sum(map(len, found)) >= count:
            break
    met = np.concatenate(found)
    generator = np.random.default_rng(0)
    return met[generator.choice(len(met), count, replace=len(met) < count)]


def _one_batch(evaluator: Evaluator, act: Act, seed: int, episodes: int, most_steps: int | None) -> list[np.ndarray]:
    """Return what each of a batch's episodes observed, the starting observation first."""
    steps: list[np.ndarray] = []

    def recorded(observations: np.ndarray) -> np.ndarray:
        # A copy: the simulator takes the buffer back with its next step.
        steps.append(np.array(observations[:episodes], np.float32))
        return act(observations)

    enough = Watcher(stopped=lambda: most_steps is not None and len(steps) >= most_steps)
    try:
        key = episode_key(seed, Stream.VERIFICATION)
        lengths = evaluator.runner.run_by_host(recorded, key, episodes=episodes, watcher=enough).lengths
    except EvaluationStopped:
        # Whose episode had ended by then is not known; what follows an end is as good an observation, if finite.
        met = np.stack(steps)
        return [row[np.isfinite(row).all(axis=1)] for row in np.moveaxis(met, 1, 0)]
    return [np.stack(steps)[:length, index] for index, length in enumerate(lengths) if length]


def corner_observations(policy: Policy, count: int) -> np.ndarray:
    """Return finite observations that no simulator gives, float32 [count, observation].

    In turn: nothing but zeros; everything at the mean, at either clip limit, huge, the largest there is, tiny; each
    component by itself at its limits and beyond; and then at random every component at a limit, between the limits, or
    of any magnitude and sign.

    Args:
        policy: whose normalisation sets the limits.
        count: how many.
    """
    low, high = clip_limits(policy)
    mean = np.asarray(policy.statistics.mean, np.float64)
    size = mean.size
    rows = [np.zeros(size), mean, low, high]
    for magnitude in (1e-45, 1e-38, 1e-6, 1e6, 1e30, _LARGEST):
        rows += [np.full(size, magnitude), np.full(size, -magnitude), magnitude * (-1.0) ** np.arange(size)]
    for component in range(size):
        for value in (low[component], high[component], -_LARGEST, _LARGEST):
            rows.append(mean.copy())
            rows[-1][component] = value
    generator = np.random.default_rng(1)
    drawn = max(0, count - len(rows))
    kind = generator.integers(0, 4, (drawn, size), np.int8)
    between = low + (high - low) * generator.random((drawn, size), np.float32)
    any_size = 10.0 ** generator.uniform(-_DECADES, _DECADES, (drawn, size))
    any_size *= np.where(generator.random((drawn, size), np.float32) < 0.5, -1.0, 1.0)
    random = np.select([kind == 0, kind == 1, kind == 2], [low, high, between], any_size).astype(np.float32)
    clipped = np.clip(np.stack(rows[:count]), -_LARGEST, _LARGEST).astype(np.float32)
    return np.concatenate([clipped, random])


def compare_actions(
    act: Act, reference: Act, policy: Policy, observations: Mapping[str, np.ndarray], batches: Sequence[int] = BATCHES
) -> OpenLoop:
    """Compare actions over all observations at several batch sizes.

    Args:
        act: the exported policy.
        reference: the policy itself.
        policy: whose action range is the unit.
        observations: kind -> float32 [N, observation].
        batches: their sizes.
    """
    wanted = {kind: reference(values) for kind, values in observations.items()}
    units = action_range(policy, np.concatenate(list(wanted.values())))
    differences: dict[str, float] = {}
    refused: dict[int, str] = {}
    for batch in batches:
        try:
            for kind, values in observations.items():
                parts = [act(values[first : first + batch]) for first in range(0, len(values), batch)]
                actions = np.concatenate(parts)
                if actions.shape != wanted[kind].shape:
                    raise ValueError(f"it gives actions of shape {parts[0].shape}")
                difference = float(np.max(np.abs(actions.astype(np.float64) - wanted[kind]) / units))
                differences[f"{kind}, batch {batch}"] = difference if math.isfinite(difference) else math.inf
        except Exception as error:  # what a runtime raises of a model that it cannot run shares no base class
            refused[batch] = first_line(error)
    return OpenLoop(sum(map(len, observations.values())), differences, refused)


def clip_limits(policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest observation [observation], float64, between which a policy makes a difference."""
    mean, std = (np.asarray(part, np.float64) for part in (policy.statistics.mean, policy.statistics.std()))
    reach = policy.specification.network.observation_clip * std
    return mean - reach, mean + reach


def action_range(policy: Policy, actions: np.ndarray) -> np.ndarray:
    """Return the units of action differences [A]: high - low, or where unbounded what these actions span, at least 2.

    Args:
        policy: whose actions they are.
        actions: [N, A].
    """
    bounds = policy.specification.bounds
    width = np.asarray(bounds.high, np.float64) - np.asarray(bounds.low, np.float64)
    return np.where(np.isfinite(width), width, np.maximum(np.ptp(actions.astype(np.float64), axis=0), 2.0))
