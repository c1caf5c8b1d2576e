"""What a vectorised environment should do, as plain Python loops over one environment and one step at a time."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.tiny_environments import Fault
from trpo_brax.config import RolloutConfig
from trpo_brax.environments import EnvironmentState, Transition, VectorizedEnvironment, own_task
from trpo_brax.environments.vectorized import POOL_SIZE


class Run(NamedTuple):
    """A rollout as NumPy arrays that lead with [T, N]."""

    start: EnvironmentState
    """Leads with [N]."""
    pool: Any
    """Brax States; leaves lead with [N, POOL_SIZE]."""
    observation: Any
    """What the policy saw before the step."""
    after: EnvironmentState
    """The environments after the step and any reset."""
    transitions: Transition
    taken: Any
    """int [T, N]: how many of its pool an environment has used after the step."""


def vectorized(environment: Any, episode_length: int, action_repeat: int = 1) -> VectorizedEnvironment:
    """Return the environment under test."""
    task = own_task(environment, RolloutConfig())
    return VectorizedEnvironment(task, episode_length=episode_length, action_repeat=action_repeat)


@functools.cache
def compiled(environment: VectorizedEnvironment) -> Any:
    """Return compiled reset, starting_pool, and (start, pool, actions [T, N, A]) -> all that happened."""

    def scan(start: EnvironmentState, pool: Any, actions: jax.Array) -> Any:
        def step(carry: Any, action: jax.Array) -> Any:
            current, taken = carry
            after, transition, taken = environment.step(current, action, pool, taken)
            return (after, taken), (current.observation, after, transition, taken)

        return jax.lax.scan(step, (start, jax.numpy.zeros_like(start.steps)), actions)[1]

    return jax.jit(environment.reset), jax.jit(environment.starting_pool), jax.jit(scan)


def collect(
    environment: VectorizedEnvironment,
    actions: Any,
    *,
    start: EnvironmentState | None = None,
    seed: int = 0,
    spread: bool = False,
) -> Run:
    """Roll `actions` [T, N, A] out, from fresh environments or on from `start`, with a pool drawn from `seed`."""
    reset, starting_pool, scan = compiled(environment)
    keys = keys_of(seed, actions.shape[1])
    if start is None:
        start = reset(keys.start, keys.spread if spread else None)
    pool = starting_pool(keys.pool)
    outcome = scan(start, pool, np.asarray(actions, np.float32))
    return Run(*jax.tree.map(np.asarray, (start, pool, *outcome)))


class Keys(NamedTuple):
    """uint32 [N, 2] each."""

    start: jax.Array
    pool: jax.Array
    spread: jax.Array


def keys_of(seed: int, num_envs: int) -> Keys:
    """Return the keys that `collect` uses."""
    return Keys(*(jax.random.split(key, num_envs) for key in jax.random.split(jax.random.PRNGKey(seed), 3)))


def eighths(seed: int, length: int, num_envs: int) -> Any:
    """Return random actions [T, N, 1] that are multiples of 1/8 in [-1, 1], so that sums of them are exact."""
    return np.random.default_rng(seed).integers(-8, 9, (length, num_envs, 1)) / 8.0


class Step(NamedTuple):
    """One simulator step in Python numbers."""

    observation: tuple[float, ...]
    reward: float
    done: float
    metrics: dict[str, float]
    physics: tuple[float, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether a trainer may use it: only NaN is a fault in physics."""
        return all(map(math.isfinite, (*self.observation, self.reward, self.done))) and not any(
            map(math.isnan, self.physics)
        )


class PlainHistory:
    """`tests.tiny_environments.History`, from a starting state on."""

    def __init__(self, environment: Any, key: tuple[int, int]) -> None:
        self.position, self.limit, self.count = (key[0] % 17 - 8) / 8, 2 + key[1] % 6, 0

    def now(self) -> Step:
        return Step((self.position, self.count / 8), 0.0, 0.0, {})

    def step(self, action: float) -> Step:
        self.position += action / 2
        self.count += 1
        metrics = {"distance": abs(self.position), "effort": abs(action)}
        done = float(self.count >= self.limit)
        return Step((self.position, self.count / 8), action + self.position / 2, done, metrics)


class PlainFaulty:
    """`tests.tiny_environments.Faulty`, from a starting state on."""

    def __init__(self, environment: Any, key: tuple[int, int]) -> None:
        self.position, self.key = (key[0] % 17 - 8) / 8, key
        self.faults: Sequence[Fault] = environment.faults
        self.count = 0

    def now(self) -> Step:
        return self._result(0.0)

    def step(self, action: float) -> Step:
        self.position += action / 2
        self.count += 1
        return self._result(self.position)

    def _result(self, reward: float) -> Step:
        parts: dict[str, Any] = {
            "observation": (self.position, self.count / 8),
            "reward": reward,
            "done": 0.0,
            "physics": (self.position, 0.0),
        }
        for fault in self.faults:
            if fault.step != self.count or self.key[1] % fault.one_in or fault.key not in (None, self.key):
                continue
            sound = parts[fault.part]
            parts[fault.part] = (sound[0], fault.value) if isinstance(sound, tuple) else fault.value
        return Step(**parts, metrics={"clock": parts["observation"][1]})


@dataclasses.dataclass
class Episode:
    """One environment's bookkeeping."""

    world: Any
    steps: int
    counted: bool
    total: float = 0.0
    length: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


def simulate(
    plain: Any,
    environment: Any,
    actions: Any,
    *,
    episode_length: int,
    action_repeat: int = 1,
    seed: int = 0,
    first_steps: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return what `collect` should find from fresh environments, by name, each an array [T, N, ...]."""
    length, num_envs = actions.shape[:2]
    keys = keys_of(seed, num_envs)
    begin = lambda key: plain(environment, tuple(int(word) for word in key))
    rows: list[dict[str, Any]] = []
    for n in range(num_envs):
        pool = jax.random.split(keys.pool[n], POOL_SIZE)
        taken = 0
        first = 0 if first_steps is None else int(first_steps[n])
        episode = Episode(begin(keys.start[n]), first, first == 0)
        before = episode.world.now()
        for t in range(length):
            reward = 0.0
            for _ in range(action_repeat):
                after = episode.world.step(float(actions[t, n, 0]))
                reward += after.reward
                if after.done == 1:
                    break
            valid = before.sound and after.sound and math.isfinite(reward)
            seen = tuple(x if math.isfinite(x) else 0.0 for x in before.observation)
            episode.steps += 1
            episode.length += 1
            episode.total += reward if valid else 0.0
            for name, value in after.metrics.items():
                episode.metrics[name] = episode.metrics.get(name, 0.0) + (value if math.isfinite(value) else 0.0)
            termination = valid and after.done == 1
            done = termination or not valid or episode.steps >= episode_length
            row = {
                "observation": seen,
                "next_observation": after.observation if valid else seen,
                "reward": reward if valid else 0.0,
                "termination": termination,
                "done": done,
                "valid": valid,
                "episode_ended": done and valid and episode.counted,
                "episode_return": episode.total,
                "episode_length": episode.length,
                "episode_metrics": {name: total / episode.length for name, total in episode.metrics.items()},
                "taken": taken + done,
            }
            rows.append(row)
            before = after
            if done:
                episode = Episode(begin(pool[taken % POOL_SIZE]), 0, True)
                before = episode.world.now()
                taken += 1
    names = rows[0].keys()
    columns = {name: np.array([row[name] for row in rows]) for name in names if name != "episode_metrics"}
    table = {
        name: np.swapaxes(column.reshape(num_envs, length, *column.shape[1:]), 0, 1) for name, column in columns.items()
    }
    metrics = {name: np.array([row["episode_metrics"][name] for row in rows]) for name in rows[0]["episode_metrics"]}
    table["episode_metrics"] = {name: column.reshape(num_envs, length).T for name, column in metrics.items()}
    return table
