"""Running whole episodes of a policy: many environments in parallel, the first episode of each, batch after batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trpo_brax.environments import Task, VectorizedEnvironment
from trpo_brax.policy import Policy, PolicySpecification

MOST_AT_ONCE = 1024
"""Episodes of one device in one batch: more are no faster, and take more memory."""


@dataclasses.dataclass(frozen=True)
class Episodes:
    """What happened in E episodes."""

    returns: np.ndarray
    """float32 [E]: undiscounted sum of rewards; of those before it went non-finite, where it did."""
    lengths: np.ndarray
    """int32 [E]: control steps."""
    terminated: np.ndarray
    """bool [E]: ended by the task, not by the time limit."""
    nonfinite: np.ndarray
    """bool [E]: ended by a non-finite state."""

    @classmethod
    def joined(cls, parts: Sequence[Episodes]) -> Episodes:
        """Return the episodes of several evaluations as one."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def first(self, count: int) -> Episodes:
        """Return the first `count` of them."""
        return Episodes(*(getattr(self, field.name)[:count] for field in dataclasses.fields(self)))


_SECONDS_BETWEEN_QUESTIONS = 1.0


class EvaluationStopped(Exception):
    """An evaluation was told to give up; its episodes are lost."""


@dataclasses.dataclass(frozen=True)
class Watcher:
    """Who is asked and told about every second while episodes run."""

    stopped: Callable[[], bool] = lambda: False
    """Whether to give up."""
    progress: Callable[[int], None] = lambda ended: None
    """Told how many episodes have ended."""


class _Carry(NamedTuple):
    """Where a batch of B episodes is."""

    action_keys: jax.Array
    """uint32 [B, 2]"""
    time: jax.Array
    """int32 []: control steps taken."""
    state: Any
    running: jax.Array
    """bool [B]"""
    lost: jax.Array
    """float32 [B]: what rounding has kept out of the sums of rewards so far."""
    episodes: tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Recording:
    """One episode step by step."""

    physics: tuple[Any, ...]
    """The simulator's states, the starting one and one after every control step; leaves are NumPy arrays."""
    returns: np.ndarray
    """float32 [length + 1]: sum of rewards up to each of them."""
    episode: Episodes
    """What happened in it: one episode."""


class EpisodeRunner:
    """A compiled evaluator: the first episode of each environment, in batches that stop when all of theirs have ended.

    One runner serves any number of policies of one kind, each by its parameters alone, and any number of episodes, with
    one compilation. Episode i depends on the key and on i alone, but for rounding that differs with the batch's size.

    Args:
        task: the environment; or, for a family of them, a function from the `world` given to `run`, traced.
        act: (parameters, observations [B, observation], keys uint32 [B, 2]) -> actions [B, A] as the environment takes
            them. Any policy can be wrapped so, other trainers' too.
        batch: episodes in parallel, B.
        episode_length: time limit in control steps.
        action_repeat: simulator steps per control step.
        devices: to spread a batch over; their number must divide it. Default: one.
    """

    def __init__(
        self,
        task: Task | Callable[[Any], Task],
        act: Callable[[Any, jax.Array, jax.Array], jax.Array],
        *,
        batch: int,
        episode_length: int,
        action_repeat: int = 1,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self._batch = batch
        self._episode_length = episode_length

        def environment(world: Any) -> VectorizedEnvironment:
            chosen = task if isinstance(task, Task) else task(world)
            return VectorizedEnvironment(chosen, episode_length=episode_length, action_repeat=action_repeat)

        def begin(world: Any, keys: jax.Array, wanted: jax.Array) -> _Carry:
            reset_keys, action_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            start = environment(world).reset(reset_keys)
            zeros = jnp.zeros(keys.shape[0])
            nothing = (zeros, zeros.astype(jnp.int32), zeros.astype(bool), ~start.healthy)
            running = start.healthy & wanted
            return _Carry(action_keys, jnp.zeros((), jnp.int32), start.state, running, zeros, nothing)

        def advance(world: Any, carry: _Carry, actions: jax.Array) -> _Carry:
            returns, lengths, terminated, nonfinite = carry.episodes
            outcome = jax.vmap(environment(world).simulate)(carry.state, actions)
            total, lost = _added(returns, carry.lost, outcome.reward)
            # Finite rewards may add up to more than a float32.
            finite = outcome.finite & jnp.isfinite(total)
            sound = carry.running & finite
            ended = outcome.termination | outcome.truncation
            counted = (
                jnp.where(sound, total, returns),
                lengths + carry.running,
                terminated | (sound & outcome.termination),
                nonfinite | (carry.running & ~finite),
            )
            running = sound & ~ended
            return carry._replace(
                time=carry.time + 1, state=outcome.state, running=running, lost=lost, episodes=counted
            )

        def go_on(world: Any, parameters: Any, carry: _Carry, until: jax.Array) -> _Carry:
            # A traced limit: one executable serves every length, and none changes a result.
            last = jnp.minimum(until, episode_length)

            def running(carry: _Carry) -> jax.Array:
                return (carry.time < last) & jnp.any(carry.running)

            def step(carry: _Carry) -> _Carry:
                step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(carry.action_keys, carry.time)
                return advance(world, carry, act(parameters, carry.state.obs, step_keys))

            return jax.lax.while_loop(running, step, carry)

        mesh = Mesh(np.asarray(devices if devices is not None else jax.local_devices()[:1]), ("episodes",))
        self._each, self._same = NamedSharding(mesh, PartitionSpec("episodes")), NamedSharding(mesh, PartitionSpec())
        each: Any = self._each
        same: Any = self._same
        carried = _Carry(each, same, each, each, each, each)
        self._begin = jax.jit(begin, in_shardings=(same, each, each), out_shardings=carried)
        self._go_on = jax.jit(go_on, donate_argnums=2, in_shardings=(same, same, carried, same), out_shardings=carried)
        self._advance = jax.jit(advance, donate_argnums=1, in_shardings=(same, carried, each), out_shardings=carried)

    def run(
        self,
        parameters: Any,
        key: jax.Array,
        *,
        episodes: int,
        begin: int = 0,
        world: Any = None,
        watcher: Watcher | None = None,
    ) -> Episodes:
        """Run the episodes `begin` to `begin` + `episodes` - 1 of one policy.

        Args:
            parameters: what `act` takes first; a pytree of arrays.
            key: uint32 [2].
            episodes: how many.
            begin: number of the first of them.
            world: what `task` takes, where it is a function; a pytree of arrays.
            watcher: asked whether to give up, and told what has been done; nobody by default.

        Raises:
            EvaluationStopped: the watcher said so.
        """
        acting, world = jax.device_put((parameters, world), self._same)
        parts: list[Episodes] = []
        for first, wanted in self._batches(episodes, begin):
            carry = self._started(world, key, first, wanted)
            until, steps, limit = 0, 1, self._episode_length
            while until < limit and (left := int(jnp.sum(carry.running))):
                if watcher is not None:
                    watcher.progress(first + wanted - left)
                    if watcher.stopped():
                        raise EvaluationStopped
                # Without anybody to ask, all in one go.
                steps = limit if watcher is None else steps
                until, started = min(until + steps, limit), time.monotonic()
                carry = jax.block_until_ready(self._go_on(world, acting, carry, self._until(until)))
                seconds = time.monotonic() - started
                # The first call compiles: what it took says nothing.
                steps = max(1, min(4 * steps, round(steps * _SECONDS_BETWEEN_QUESTIONS / max(seconds, 1e-6))))
            parts.append(_counted(carry, wanted))
            if watcher is not None:
                watcher.progress(first + wanted)
        return Episodes.joined(parts)

    def run_by_host(
        self,
        act: Callable[[np.ndarray], np.ndarray],
        key: jax.Array,
        *,
        episodes: int,
        world: Any = None,
        watcher: Watcher | None = None,
    ) -> Episodes:
        """Run the same episodes with a policy that is no JAX: the environments' steps are compiled, its are calls.

        Args:
            act: observations float32 [B, observation] -> actions [B, A]; non-finite ones for ended episodes, maybe.
            key: uint32 [2].
            episodes: how many.
            world: what `task` takes, where it is a function.
            watcher: asked and told after every control step.

        Raises:
            EvaluationStopped: the watcher said so.
        """
        world = jax.device_put(world, self._same)
        parts: list[Episodes] = []
        for first, wanted in self._batches(episodes):
            carry = self._started(world, key, first, wanted)
            for _ in range(self._episode_length):
                left = int(jnp.sum(carry.running))
                if not left:
                    break
                if watcher is not None:
                    watcher.progress(first + wanted - left)
                    if watcher.stopped():
                        raise EvaluationStopped
                actions = np.asarray(act(np.asarray(carry.state.obs)), np.float32)
                carry = self._advance(world, carry, jax.device_put(actions, self._each))
            parts.append(_counted(carry, wanted))
        return Episodes.joined(parts)

    def record(
        self, parameters: Any, key: jax.Array, *, episodes: int, chosen: Sequence[int], world: Any = None
    ) -> dict[int, Recording]:
        """Run the batches of some of `run`'s episodes again, keeping what the simulator went through in those.

        They are the same bit for bit: the program is the one that ran them, a step at a time.

        Args:
            parameters: what `act` takes first.
            key: uint32 [2], as in `run`.
            episodes: how many there were in `run`.
            chosen: which of them.
            world: what `task` takes, where it is a function.
        """
        acting, world = jax.device_put((parameters, world), self._same)
        taken = jax.jit(lambda carry, places: jax.tree.map(lambda leaf: leaf[places], _seen(carry)))
        found: dict[int, Recording] = {}
        for first, wanted in self._batches(episodes):
            mine = sorted({episode for episode in chosen if first <= episode < first + wanted})
            if not mine:
                continue
            places = np.asarray(mine, np.int32) - first
            carry = self._started(world, key, first, wanted)
            frames = [jax.device_get(taken(carry, places))]
            while frames[-1][1].any() and len(frames) <= self._episode_length:
                carry = self._go_on(world, acting, carry, self._until(len(frames)))
                frames.append(jax.device_get(taken(carry, places)))
            counted = _counted(carry, wanted)
            for row, episode in enumerate(mine):
                found[episode] = _recording(frames, row, counted, episode - first)
        return found

    def starts(self, key: jax.Array, world: Any = None) -> Any:
        """Return the starting states of the first batch of episodes, as the environment gives them."""
        return self._started(jax.device_put(world, self._same), key, 0, self._batch).state

    def _batches(self, episodes: int, begin: int = 0) -> Iterator[tuple[int, int]]:
        """Yield each batch's first episode and how many of its places are wanted."""
        end = begin + episodes
        for first in range(begin, end, self._batch):
            yield first, min(self._batch, end - first)

    def _started(self, world: Any, key: jax.Array, first: int, wanted: int) -> _Carry:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(self._batch))
        places = np.arange(self._batch) < wanted
        return self._begin(world, jax.device_put(keys, self._each), jax.device_put(places, self._each))

    def _until(self, steps: int) -> jax.Array:
        return jax.device_put(np.int32(steps), self._same)


def _added(sums: jax.Array, lost: jax.Array, terms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return float32 sums with terms added, and what rounding has kept out of them (Kahan 1965).

    Without it a thousand rewards of -0.3 add up to less than -300, which a floor of -300 would not survive.
    """
    term = terms - lost
    total = sums + term
    return total, (total - sums) - term


def _counted(carry: _Carry, wanted: int) -> Episodes:
    return Episodes(*jax.device_get(carry.episodes)).first(wanted)


def _seen(carry: _Carry) -> tuple[Any, jax.Array, jax.Array]:
    return carry.state.pipeline_state, carry.running, carry.episodes[0]


def _recording(frames: Sequence[tuple[Any, Any, Any]], row: int, counted: Episodes, place: int) -> Recording:
    """Return one episode of what was seen of several: [chosen] leads every leaf of a frame."""
    episode = Episodes(*(getattr(counted, field.name)[place : place + 1] for field in dataclasses.fields(Episodes)))
    length = int(episode.lengths[0])
    physics = tuple(jax.tree.map(lambda leaf: np.asarray(leaf)[row], frame[0]) for frame in frames[: length + 1])
    sums = np.array([frame[2][row] for frame in frames[: length + 1]], np.float32)
    return Recording(physics, sums, episode)


def batch_size(episodes: int, devices: int) -> int:
    """Return how many of so many episodes to run in parallel on so many devices: a multiple of their number."""
    return devices * min(MOST_AT_ONCE, -(-episodes // devices))


def policy_actor(
    specification: PolicySpecification, *, stochastic: bool
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """Return `EpisodeRunner`'s `act` for our own policies; their parameters are (parameters, statistics)."""

    def act(acting: Any, observations: jax.Array, keys: jax.Array) -> jax.Array:
        actor = Policy(specification, *acting)
        return jax.vmap(actor)(observations, keys) if stochastic else actor(observations)

    return act
