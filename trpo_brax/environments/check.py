"""What a trainer needs of an environment, told to its author in one sentence each.

Two programs are compiled, a batch of resets and a batch of steps that takes its actions as an argument; the checks are
NumPy on what these return. Episodes are followed to their own end and never reset, so that nothing is hidden.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_brax.config import SQUARABLE
from trpo_brax.environments.actuators import own_range, reached_range
from trpo_brax.environments.own import reason, traced
from trpo_brax.environments.tasks import KEY, Task, leaf_name
from trpo_brax.environments.vectorized import VectorizedEnvironment, finite_physics
from trpo_brax.errors import TaskError

NUM_ENVS = 64
CHUNK = 25
"""Steps in one call of the compiled program."""
_ADDED = 10.0
"""Rewards in a row that an advantage adds up, at least."""

Level = Literal["ok", "warning", "error"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing a trainer needs, and whether the environment has it."""

    level: Level
    topic: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.level:8} {self.topic}: {self.sentence}"


class Record(NamedTuple):
    """What happened, row 0 being the reset; all leaves are NumPy arrays that lead with [1 + T, N]."""

    observation: Any
    reward: Any
    done: Any
    truncation: Any
    """The environment's own `info["truncation"]`, else 0."""
    physics: Any
    """bool: every number of the physics state is finite."""

    @property
    def broken(self) -> dict[str, Any]:
        """Part of the state -> bool [1 + T, N]: it is not finite."""
        broken = {name: ~np.isfinite(getattr(self, name)) for name in ("observation", "reward", "done")}
        return broken | {"observation": broken["observation"].any(axis=-1), "physics state": ~self.physics}

    @property
    def alive(self) -> Any:
        """bool [1 + T, N]: not after the environment's first end or first number that is not finite."""
        ended = np.logical_or.reduce([self.done > 0.5, *self.broken.values()]).astype(int)
        return np.cumsum(ended, axis=0) == ended

    @property
    def sound(self) -> Any:
        """bool [1 + T, N]: alive and finite."""
        return self.alive & ~np.logical_or.reduce(list(self.broken.values()))


def check_environment(task: Task, *, episode_length: int = 1000, seconds: float = 2.0, seed: int = 0) -> list[Finding]:
    """Step a batch of environments in several ways and say what a trainer would meet.

    What `own_task` refuses (dictionaries, batches, auto-reset wrappers, impossible bounds) never gets here.

    Args:
        task: the environment.
        episode_length: time limit in control steps that training will use; random episodes are followed up to it.
        seconds: most seconds spent on following them; compilation and the other checks come on top.
        seed: of starting states and random actions.
    """
    keys = jax.random.split(jax.random.PRNGKey(seed), NUM_ENVS)
    try:
        began = time.perf_counter()
        begin, advance = _compile(task, keys, episode_length)
        compile_seconds = time.perf_counter() - began
        structure = _structure(task)
    except TaskError as error:
        return [Finding("error", "structure", str(error))]
    except Exception as error:  # whatever an author's code may raise when it is traced
        return [Finding("error", "structure", f"tracing reset and step raises {reason(error)}.")]

    def follow(*chunks: Any) -> Record:
        state, record = begin(keys)
        records = [record]
        for actions in chunks:
            state, record = advance(state, actions)
            records.append(record)
        return Record(*(np.concatenate(leaves)[: episode_length + 1] for leaves in zip(*records, strict=True)))

    rng, size = np.random.default_rng(seed), len(task.action_low)
    low = np.where(np.isfinite(task.action_low), task.action_low, -1.0)
    high = np.where(np.isfinite(task.action_high), task.action_high, 1.0)
    actions = rng.uniform(low, high, (-(-episode_length // CHUNK), CHUNK, NUM_ENVS, size))
    first = follow(actions[0])
    start, began = begin(keys)[0], time.perf_counter()
    advance(start, actions[0])
    chunk_seconds = time.perf_counter() - began
    random = follow(*actions[: max(1, int(seconds / chunk_seconds))])
    mirrored = np.arange(NUM_ENVS)[:, None] % size == np.arange(size)
    at_bounds = follow(np.where(rng.random(actions[0].shape) < 0.5, low, high))
    reflected = follow(np.where(mirrored, low + high - actions[0], actions[0]))
    speed = f"{CHUNK * NUM_ENVS / chunk_seconds:,.0f} steps/s, {NUM_ENVS} at once; compiled in {compile_seconds:.1f} s."
    return [
        *structure,
        *_resets(first, random),
        _finite("with random actions", "error", random),
        _finite("with actions at their bounds", "warning", at_bounds),
        *_ends(random, episode_length),
        _reward_scale(random),
        *_action_range(task, start),
        _action_effect(task, first, reflected, mirrored),
        _observation_scale(random),
        Finding("ok", "speed", speed),
    ]


def _structure(task: Task) -> list[Finding]:
    """Compare the types that reset and step return, and trace both twice; trees and shapes are known to agree."""
    reset, step, program = _trace(task)
    findings = [Finding("ok", "structure", "step returns the tree and the shapes of reset.")]
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(reset), jax.tree.leaves(step), strict=True):
        name = leaf_name(path)
        if old.dtype != new.dtype:
            sentence = f"{name} is {old.dtype} at reset and {new.dtype} from step; give it one type."
            findings.append(Finding("warning", "types", sentence))
        elif name in ("obs", "reward", "done") and old.dtype != jnp.float32:
            findings.append(Finding("warning", "types", f"{name} is {old.dtype} where Brax has float32."))
    for name, value in reset.metrics.items():
        if jnp.shape(value) != ():
            sentence = f"{name!r} has shape {jnp.shape(value)}; only scalars are recorded."
            findings.append(Finding("warning", "metrics", sentence))
    if _trace(task)[2] != program:
        sentence = "tracing twice gives two programs: it draws or keeps something outside of its State."
        findings.append(Finding("error", "repeatable", sentence))
    return findings


def _trace(task: Task) -> tuple[Any, Any, str]:
    """Return the shapes of reset's State and of step's, and both programs as text."""
    action = jax.ShapeDtypeStruct((len(task.action_low),), jnp.float32)
    first, reset = traced(task.name, "reset", task.environment.reset, KEY)
    second, step = traced(task.name, "step", task.environment.step, reset, action)
    constants = [constant for program in (first, second) for constant in program.consts]
    # A typed key is told by its words, and a large table by its hash.
    words = [jax.random.key_data(one) if _is_key(one) else one for one in constants]
    told = [hashlib.sha256(np.asarray(one).tobytes()).hexdigest() for one in words]
    return reset, step, re.sub("0x[0-9a-f]+", "", f"{first}{second}{told}")


def _is_key(array: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key))


def _compile(task: Task, keys: jax.Array, episode_length: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return compiled keys [N, 2] -> (State, Record) and (State, actions [CHUNK, N, A]) -> (State, Record)."""
    environment = VectorizedEnvironment(task, episode_length=episode_length)

    def record(state: Any, reward: jax.Array) -> Record:
        physics = finite_physics(state.pipeline_state)
        return Record(state.obs, reward, state.done, jnp.asarray(state.info.get("truncation", 0.0)), physics)

    def begin(keys: jax.Array) -> tuple[Any, Record]:
        # As the author returns it, not as the trainer cleans it.
        state = jax.vmap(task.start)(keys)
        return state, jax.tree.map(lambda leaf: leaf[None], jax.vmap(record)(state, state.reward))

    def step(state: Any, action: jax.Array) -> tuple[Any, Record]:
        outcome = environment.simulate(state, action)
        return outcome.state, record(outcome.state, outcome.reward)

    states = jax.eval_shape(begin, keys)[0]
    actions = jax.ShapeDtypeStruct((CHUNK, NUM_ENVS, len(task.action_low)), jnp.float32)
    compiled = jax.jit(lambda *inputs: jax.lax.scan(jax.vmap(step), *inputs)).lower(states, actions).compile()
    compiled_begin = jax.jit(begin).lower(keys).compile()
    to_host = lambda result: (result[0], jax.tree.map(np.asarray, result[1]))
    return (
        lambda keys: to_host(compiled_begin(keys)),
        lambda states, actions: to_host(compiled(states, np.asarray(actions, np.float32))),
    )


def _resets(one: Record, two: Record) -> list[Finding]:
    """Compare starting states with each other, and two rollouts of the same keys and first actions."""
    different = len(np.unique(one.observation[0], axis=0))
    starts = Finding("ok", "resets", f"{NUM_ENVS} keys give {different} different first observations.")
    if different == 1:
        starts = Finding("warning", "resets", "every episode starts the same: all keys give one first observation.")
    if any(a.tobytes() != b[: len(a)].tobytes() for a, b in zip(one, two, strict=True)):
        return [starts, Finding("error", "repeatable", "the same keys and actions give different results.")]
    return [starts, Finding("ok", "repeatable", "the same keys and actions give the same results, bit for bit.")]


def _finite(when: str, level: Level, record: Record) -> Finding:
    struck = record.alive & ~record.sound
    if not struck.any():
        return Finding("ok", "finite", f"{when}, everything stays finite over {len(record.done) - 1} steps.")
    step = int(np.argmax(struck.any(axis=1)))
    parts = " and ".join(part for part, broken in record.broken.items() if (broken & struck)[step].any())
    count, where = struck[step].sum(), f"at step {step}" if step else "at reset"
    return Finding(level, "finite", f"{when}, {parts} not finite {where} in {count} of {NUM_ENVS} environments.")


def _ends(record: Record, episode_length: int) -> list[Finding]:
    """Judge `done` and `info["truncation"]`, and how episodes end under random actions."""
    if (record.done[0] == 1).any():
        return [Finding("error", "ends", "done is 1 at reset: an episode would begin ended.")]
    done, truncation = record.done[record.sound], record.truncation[record.sound] > 0.5
    other = done[(done != 0) & (done != 1)]
    if len(other):
        return [Finding("error", "ends", f"done must be 0 or 1, and is {other[0]:g} at times.")]
    findings = []
    if (truncation & (done == 0)).any():
        findings.append(Finding("warning", "ends", "info['truncation'] is 1 while done is 0, which ends nothing."))
    steps, watched = np.nonzero((record.done == 1) & record.sound)[0], len(record.done) - 1
    sentence = f"{len(steps)} of {NUM_ENVS} random episodes end by themselves within {watched} steps"
    if len(steps) == 0:
        sentence += f"; the time limit of {episode_length} ends the others."
    elif len(steps) == NUM_ENVS and steps.min() == steps.max() > 1 and not truncation.any():
        sentence = f"all episodes last {steps[0]} steps: if that is a time limit, set info['truncation'] to 1 there."
        return [*findings, Finding("warning", "ends", sentence)]
    else:
        sentence += f", after {steps.mean():.1f} on average"
        sentence += f"; {truncation.sum()} are time limits by info['truncation']." if truncation.any() else "."
    return [*findings, Finding("ok", "ends", sentence)]


def _reward_scale(record: Record) -> Finding:
    reward = record.reward[1:][record.sound[1:]].astype(np.float64)
    if reward.size == 0:
        return Finding("error", "reward", "no finite step was seen.")
    low, high = reward.min(), reward.max()
    if low == high:
        useful = low != 0 and (record.done[record.sound] == 1).any()
        meaning = "what can be learned is how long episodes last" if useful else "there is nothing to learn"
        return Finding("ok" if useful else "warning", "reward", f"always {low:.3g} under random actions: {meaning}.")
    scale = f"mean {reward.mean():.3g}, standard deviation {reward.std():.3g}, from {low:.3g} to {high:.3g} per step"
    if max(-low, high) > SQUARABLE / _ADDED:
        return Finding("error", "reward", f"{scale}: squares of returns are beyond single precision; scale it.")
    if not 1e-4 <= max(-low, high) <= 1e4:
        return Finding("warning", "reward", f"{scale}: scale it to the order of 1.")
    return Finding("ok", "reward", f"{scale} under random actions.")


def _action_range(task: Task, start: Any) -> list[Finding]:
    """Compare the range of actions with the actuators' own, and both with what step gives the actuators.

    Args:
        task: to look at.
        start: starting states, [N, ...].
    """
    own, taken = own_range(task.environment), np.array([task.action_low, task.action_high])
    if own is None or (own.shape == taken.shape and np.allclose(own, taken)):
        return []
    sentence = f"actions are in {_span(taken)}; the actuators' own range is {_span(own)}"
    reached = reached_range(task, start)
    if reached is None or reached.shape != own.shape:
        return [Finding("warning", "range", f"{sentence}: see that step rescales to it.")]
    if np.allclose(reached, own, rtol=1e-3):
        return [Finding("ok", "range", f"{sentence}, and step rescales to it.")]
    advice = f"step gives them {_span(reached)}: give action_low and action_high, or rescale in step"
    return [Finding("warning", "range", f"{sentence}, and {advice}.")]


def _span(bounds: Any) -> str:
    """Return bounds [2, A] as [lowest, highest] of all components."""
    return f"[{bounds[0].min():g}, {bounds[1].max():g}]"


def _action_effect(task: Task, one: Record, other: Record, mirrored: Any) -> Finding:
    """Compare two rollouts from the same states where environment n's action component n mod A was mirrored."""
    if not np.all(np.isfinite([task.action_low, task.action_high])):
        return Finding("warning", "actions", "their range is infinite: give action_low and action_high.")
    changed = (one.observation != other.observation).any(axis=-1) | (one.reward != other.reward)
    changed = (changed & one.sound & other.sound).any(axis=0)
    idle = [i for i in range(mirrored.shape[1]) if mirrored[:, i].any() and not changed[mirrored[:, i]].any()]
    scope = f"in [{min(task.action_low):g}, {max(task.action_high):g}]"
    if idle:
        names = f"component {', '.join(map(str, idle))}" if len(idle) < mirrored.shape[1] else "the action"
        sentence = f"{scope}; {names} changed neither observation nor reward in {len(one.done) - 1} steps."
        return Finding("warning", "actions", sentence)
    return Finding("ok", "actions", f"{scope}; every component changes observation or reward.")


def _observation_scale(record: Record) -> Finding:
    seen = record.observation[record.sound].astype(np.float64)
    if seen.size == 0:
        return Finding("error", "observation", "no finite state was seen.")
    largest, constant = np.abs(seen).max(), int((seen.min(axis=0) == seen.max(axis=0)).sum())
    if constant == seen.shape[1]:
        return Finding("warning", "observation", "it never changes: the policy sees nothing.")
    sizes = f"{constant} of {seen.shape[1]} components constant, largest absolute value {largest:.3g}"
    if largest > 1e3:
        return Finding("warning", "observation", f"{sizes}: scale it, or outliers spoil its running normalisation.")
    return Finding("ok", "observation", f"{sizes}.")
