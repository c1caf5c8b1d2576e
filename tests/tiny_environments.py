"""Environments of a few lines that compile in a blink, each with one property that a trainer has to get right.

All arithmetic is on multiples of small powers of two wherever a test compares exactly: float32 and Python then agree.
`reset` takes a legacy key, uint32 [2], as Brax's own environments do, and reads its words as the random numbers that
they are: a generator would take most of the time to compile.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from trpo_brax.environments.quiet import quiet

with quiet():
    from brax.envs import Env, State

ZERO = jnp.zeros(())


def unit(rng: jax.Array) -> jax.Array:
    """Return two numbers in [-1, 1] from a key's words."""
    return rng.astype(jnp.float32) / 2.0**31 - 1.0


def whole(word: jax.Array, low: int, high: int) -> jax.Array:
    """Return an int32 in low..high from one of a key's words."""
    return low + (word % (high - low + 1)).astype(jnp.int32)


class TinyEnvironment(Env):
    """One action and one observation component unless said otherwise; the physics is a single position."""

    observation_size = 1
    action_size = 1
    backend = "none"

    def reset(self, rng: jax.Array) -> State:
        """Start anywhere in [-1, 1]."""
        position = unit(rng)[:1]
        return State(position, position, ZERO, ZERO, {}, {})


class PointMass(TinyEnvironment):
    """Push a point to the origin; never ends by itself. Linear dynamics and a quadratic reward."""

    observation_size = 2

    def reset(self, rng: jax.Array) -> State:
        state = unit(rng)
        return State(state, state, ZERO, ZERO, {"distance": jnp.abs(state[0])}, {})

    def step(self, state: State, action: jax.Array) -> State:
        position, velocity = state.pipeline_state
        after = jnp.stack([position + 0.1 * velocity, 0.9 * velocity + 0.1 * action[0]])
        reward = -(position**2) - 0.1 * action[0] ** 2
        metrics = {"distance": jnp.abs(after[0])}
        return state.replace(pipeline_state=after, obs=after, reward=reward, metrics=metrics)


class Countdown(TinyEnvironment):
    """Ends by itself after `info["limit"]` steps, drawn at reset from shortest..longest, and pays 1 a step."""

    def __init__(self, shortest: int = 2, longest: int = 7) -> None:
        self.shortest, self.longest = shortest, longest

    def reset(self, rng: jax.Array) -> State:
        limit = whole(rng[0], self.shortest, self.longest)
        return State(None, limit[None] / 8.0, ZERO, ZERO, {}, {"limit": limit, "steps_taken": jnp.zeros((), jnp.int32)})

    def step(self, state: State, action: jax.Array) -> State:
        taken = state.info["steps_taken"] + 1
        left = state.info["limit"] - taken
        info = {**state.info, "steps_taken": taken}
        return state.replace(obs=left[None] / 8.0, reward=ZERO + 1.0, done=jnp.where(left <= 0, 1.0, 0.0), info=info)


class History(TinyEnvironment):
    """Keeps everything in `info` and `metrics`, and updates both in place: a leak across episodes shows in all of it.

    The position starts at a multiple of 1/8 and moves by half the action; an episode ends by itself after
    `info["limit"]` steps (2 to 7). Reward: action + position / 2.
    """

    observation_size = 2

    def reset(self, rng: jax.Array) -> State:
        position = whole(rng[0], -8, 8) / 8.0
        info = {
            "limit": whole(rng[1], 2, 7),
            "count": jnp.zeros((), jnp.int32),
            "past": {"actions": jnp.zeros(3), "start": position},
        }
        metrics = {"distance": jnp.abs(position), "effort": ZERO}
        return State(position, jnp.stack([position, ZERO]), ZERO, ZERO, metrics, info)

    def step(self, state: State, action: jax.Array) -> State:
        position = state.pipeline_state + action[0] / 2
        state.info["count"] = state.info["count"] + 1
        state.info["past"]["actions"] = jnp.concatenate([action, state.info["past"]["actions"][:2]])
        state.metrics.update(distance=jnp.abs(position), effort=jnp.abs(action[0]))
        done = jnp.where(state.info["count"] >= state.info["limit"], 1.0, 0.0)
        observation = jnp.stack([position, state.info["count"] / 8.0])
        return state.replace(pipeline_state=position, obs=observation, reward=action[0] + position / 2, done=done)


class ConstantReward(TinyEnvironment):
    """Pays 1 whatever happens and never ends: V is 1 / (1 - discount), through time limits only."""

    def step(self, state: State, action: jax.Array) -> State:
        return state.replace(reward=ZERO + 1.0)


class RewardByObservation(TinyEnvironment):
    """Observes +1 or -1, drawn afresh every step, and pays what it observed."""

    def reset(self, rng: jax.Array) -> State:
        sign = jax.random.rademacher(rng, (1,), jnp.float32)
        return State(None, sign, ZERO, ZERO, {}, {"key": rng})

    def step(self, state: State, action: jax.Array) -> State:
        key, draw = jax.random.split(state.info["key"])
        sign = jax.random.rademacher(draw, (1,), jnp.float32)
        return state.replace(obs=sign, reward=state.obs[0], info={"key": key})


class RewardByAction(TinyEnvironment):
    """A bandit: pays 1 - (action - target)^2 and ends after every step."""

    def __init__(self, target: float = 0.5) -> None:
        self.target = target

    def step(self, state: State, action: jax.Array) -> State:
        return state.replace(reward=1.0 - (action[0] - self.target) ** 2, done=ZERO + 1.0)


class DelayedReward(TinyEnvironment):
    """Pays the first action of an episode at its last of `delay` steps."""

    def __init__(self, delay: int = 4) -> None:
        self.delay = delay

    def reset(self, rng: jax.Array) -> State:
        return State(None, jnp.zeros(1), ZERO, ZERO, {}, {"first": ZERO, "count": ZERO})

    def step(self, state: State, action: jax.Array) -> State:
        first = jnp.where(state.info["count"] == 0, action[0], state.info["first"])
        count = state.info["count"] + 1
        done = jnp.where(count >= self.delay, 1.0, 0.0)
        return state.replace(
            obs=count[None] / self.delay, reward=done * first, done=done, info={"first": first, "count": count}
        )


class EndsItself(TinyEnvironment):
    """Pays 1 a step and ends after `length` steps: a real end, or a time limit that `info["truncation"]` tells.

    The observation says nothing, so that only the kind of end tells the two apart: 1 + d + ... against 1 / (1 - d).
    """

    def __init__(self, length: int = 5, truncates: bool = False) -> None:
        self.length, self.truncates = length, truncates

    def reset(self, rng: jax.Array) -> State:
        return State(None, jnp.ones(1), ZERO, ZERO, {}, {"count": ZERO, "truncation": ZERO})

    def step(self, state: State, action: jax.Array) -> State:
        count = state.info["count"] + 1
        done = jnp.where(count >= self.length, 1.0, 0.0)
        info = {"count": count, "truncation": done if self.truncates else ZERO}
        return state.replace(reward=ZERO + 1.0, done=done, info=info)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong in `Faulty`, when and for whom."""

    part: str
    """observation, reward, done or physics."""
    value: float = math.nan
    step: int = 3
    """Steps into an episode; 0: at reset."""
    key: tuple[int, int] | None = None
    """Only episodes begun with this reset key."""
    one_in: int = 1
    """Only episodes whose reset key's second word is a multiple of this."""


class Faulty(TinyEnvironment):
    """A position moved by half the action, which pays itself and never ends, with faults; physics is [position, 0]."""

    observation_size = 2

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults

    def reset(self, rng: jax.Array) -> State:
        position = whole(rng[0], -8, 8) / 8.0
        return self._state(position, {"key": rng, "count": jnp.zeros((), jnp.int32)})

    def step(self, state: State, action: jax.Array) -> State:
        info = {"key": state.info["key"], "count": state.info["count"] + 1}
        return self._state(state.pipeline_state[0] + action[0] / 2, info)

    def _state(self, position: jax.Array, info: dict[str, jax.Array]) -> State:
        count = info["count"]
        parts = {
            "observation": jnp.stack([position, count / 8.0]),
            "reward": jnp.where(count == 0, 0.0, position),
            "done": ZERO,
            "physics": jnp.stack([position, ZERO]),
        }
        for fault in self.faults:
            strikes = (count == fault.step) & (info["key"][1] % fault.one_in == 0)
            if fault.key is not None:
                strikes &= jnp.all(info["key"] == jnp.array(fault.key, jnp.uint32))
            sound = parts[fault.part]
            last = sound.at[-1].set(fault.value) if sound.ndim else ZERO + fault.value
            parts[fault.part] = jnp.where(strikes, last, sound)
        metrics = {"clock": parts["observation"][1]}
        return State(parts["physics"], parts["observation"], parts["reward"], parts["done"], metrics, info)


class WeaklyTyped(TinyEnvironment):
    """Python numbers in its State, as Brax's inverted_pendulum returns them; `time_out` says nothing of truncation."""

    def reset(self, rng: jax.Array) -> State:
        position = unit(rng)[:1]
        return State(position, position, 0.0, 0.0, {"speed": 0.0}, {"time_out": 0.0, "count": 0})

    def step(self, state: State, action: jax.Array) -> State:
        done = jnp.where(state.info["count"] >= 3, 1.0, 0.0)
        info = {"time_out": done, "count": state.info["count"] + 1}
        return state.replace(reward=1.0, done=done, metrics={"speed": 2.0}, info=info)


class IntegerReward(TinyEnvironment):
    """Begins with the Python integers 0 for reward, done and a metric, and goes on with fractions."""

    def reset(self, rng: jax.Array) -> State:
        return State(None, unit(rng)[:1], 0, 0, {"speed": 0}, {})

    def step(self, state: State, action: jax.Array) -> State:
        return state.replace(reward=action[0] / 2, done=ZERO, metrics={"speed": jnp.abs(action[0])})


class EveryType(TinyEnvironment):
    """Keeps in `info` what an author may: keys that move on, small floats, arrays without elements, odd names."""

    DTYPES = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8", "uint16", "complex64", "bool")

    def reset(self, rng: jax.Array) -> State:
        keys = {impl: jax.random.key(rng[0], impl=impl) for impl in ("threefry2x32", "rbg")}
        odd = {
            "a/b": rng[0],
            "\u00e9 \u2603": rng[1],
            "n": {"..": ZERO, "0": ZERO},
            "": ZERO,
            "nothing": jnp.zeros((0, 3)),
        }
        return self._state(jnp.zeros(1), {"keys": keys, "odd": odd})

    def step(self, state: State, action: jax.Array) -> State:
        keys = {impl: jax.random.split(key)[0] for impl, key in state.info["keys"].items()}
        return self._state(state.pipeline_state + action, {**state.info, "keys": keys})

    def _state(self, position: jax.Array, info: dict[str, Any]) -> State:
        types = {dtype: (3 * position).astype(dtype) for dtype in self.DTYPES}
        return State(position, position, -jnp.abs(position[0]), ZERO, {}, {**info, **types})


class DictObservation(TinyEnvironment):
    """Observes a dictionary."""

    def reset(self, rng: jax.Array) -> State:
        return State(None, {"state": jnp.zeros(2), "privileged": jnp.zeros(3)}, ZERO, ZERO, {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        return state


class ChangesShape(TinyEnvironment):
    """Observes one component more after a step than at reset, or, if `info_only`, adds an entry to `info`."""

    def __init__(self, info_only: bool = False) -> None:
        self.info_only = info_only

    def step(self, state: State, action: jax.Array) -> State:
        if self.info_only:
            return state.replace(info={**state.info, "extra": ZERO})
        return state.replace(obs=jnp.concatenate([state.obs, action]))


class Bounded(PointMass):
    """Two action components, with bounds of its own as attributes or as a simulator's actuators."""

    action_size = 2

    def __init__(
        self, low: Any = None, high: Any = None, control_range: Sequence[tuple[float, float]] | None = None
    ) -> None:
        if low is not None:
            self.action_low = low
        if high is not None:
            self.action_high = high
        if control_range is not None:
            self.sys = _System(_Actuator(jnp.array(control_range)))


@dataclasses.dataclass(frozen=True)
class _Actuator:
    ctrl_range: jax.Array


@dataclasses.dataclass(frozen=True)
class _System:
    actuator: _Actuator
