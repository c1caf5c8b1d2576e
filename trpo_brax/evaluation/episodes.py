"""Running whole episodes of a policy, one per environment, all in parallel."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trpo_brax.environments import Task, VectorizedEnvironment
from trpo_brax.policy import Policy, PolicySpecification


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


_SECONDS_BETWEEN_QUESTIONS = 1.0


class EvaluationStopped(Exception):
    """An evaluation was told to give up; its episodes are lost."""


class _Carry(NamedTuple):
    """Where the episodes are."""

    action_keys: jax.Array
    """uint32 [E, 2]"""
    time: jax.Array
    """int32 []: control steps taken."""
    state: Any
    running: jax.Array
    """bool [E]"""
    episodes: tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class EpisodeRunner:
    """A compiled evaluator: the first episode of each of `episodes` environments, stopping when all have ended.

    One runner serves any number of policies of one kind, each by its parameters alone, with one compilation.

    Args:
        task: the environment.
        act: (parameters, observations [E, observation], keys uint32 [E, 2]) -> actions [E, A] as the environment takes
            them. Any policy can be wrapped so, other trainers' too.
        episodes: how many, all in parallel.
        episode_length: time limit in control steps.
        action_repeat: simulator steps per control step.
        devices: to spread the episodes over; their number must divide `episodes`. Default: one.
    """

    def __init__(
        self,
        task: Task,
        act: Callable[[Any, jax.Array, jax.Array], jax.Array],
        *,
        episodes: int,
        episode_length: int,
        action_repeat: int = 1,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self._episodes = episodes
        environment = VectorizedEnvironment(task, episode_length=episode_length, action_repeat=action_repeat)

        def begin(keys: jax.Array) -> _Carry:
            reset_keys, action_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            start = environment.reset(reset_keys)
            zeros = jnp.zeros(keys.shape[0])
            nothing = (zeros, zeros.astype(jnp.int32), zeros.astype(bool), ~start.healthy)
            return _Carry(action_keys, jnp.zeros((), jnp.int32), start.state, start.healthy, nothing)

        def go_on(parameters: Any, carry: _Carry, until: jax.Array) -> _Carry:
            # A traced limit: one executable serves every length, and none changes a result.
            last = jnp.minimum(until, episode_length)

            def running(carry: _Carry) -> jax.Array:
                return (carry.time < last) & jnp.any(carry.running)

            def advance(carry: _Carry) -> _Carry:
                returns, lengths, terminated, nonfinite = carry.episodes
                step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(carry.action_keys, carry.time)
                actions = act(parameters, carry.state.obs, step_keys)
                outcome = jax.vmap(environment.simulate)(carry.state, actions)
                sound = carry.running & outcome.finite
                ended = outcome.termination | outcome.truncation
                counted = (
                    returns + jnp.where(sound, outcome.reward, 0.0),
                    lengths + carry.running,
                    terminated | (sound & outcome.termination),
                    nonfinite | (carry.running & ~outcome.finite),
                )
                return carry._replace(
                    time=carry.time + 1, state=outcome.state, running=sound & ~ended, episodes=counted
                )

            return jax.lax.while_loop(running, advance, carry)

        mesh = Mesh(np.asarray(devices if devices is not None else jax.local_devices()[:1]), ("episodes",))
        self._each, self._same = NamedSharding(mesh, PartitionSpec("episodes")), NamedSharding(mesh, PartitionSpec())
        each: Any = self._each
        same: Any = self._same
        carried = _Carry(each, same, each, each, each)
        self._begin = jax.jit(begin, in_shardings=(self._each,), out_shardings=carried)
        self._go_on = jax.jit(
            go_on, donate_argnums=1, in_shardings=(self._same, carried, self._same), out_shardings=carried
        )
        self._episode_length = episode_length

    def run(self, parameters: Any, key: jax.Array, stopped: Callable[[], bool] | None = None) -> Episodes:
        """Run the episodes of one policy.

        Args:
            parameters: what `act` takes first; a pytree of arrays.
            key: uint32 [2]; episode i depends on it and on i alone.
            stopped: asked every second or so whether to give up.

        Raises:
            EvaluationStopped: `stopped` said so.
        """
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(self._episodes))
        acting = jax.device_put(parameters, self._same)
        carry = self._begin(jax.device_put(keys, self._each))
        until, steps, limit = 0, 1, self._episode_length
        while until < limit and bool(jnp.any(carry.running)):
            if stopped is not None and stopped():
                raise EvaluationStopped
            # Without anybody to ask, all in one go.
            steps = limit if stopped is None else steps
            until, started = min(until + steps, limit), time.monotonic()
            carry = jax.block_until_ready(self._go_on(acting, carry, jax.device_put(np.int32(until), self._same)))
            seconds = time.monotonic() - started
            # The first call compiles: what it took says nothing.
            steps = max(1, min(4 * steps, round(steps * _SECONDS_BETWEEN_QUESTIONS / max(seconds, 1e-6))))
        return Episodes(*jax.device_get(carry.episodes))


def run_episodes(
    task: Task,
    policy: Policy,
    *,
    episodes: int,
    episode_length: int,
    action_repeat: int = 1,
    key: jax.Array,
    stochastic: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Episodes:
    """Run the first episode of each of `episodes` environments by one of our policies; see `EpisodeRunner`.

    Args:
        task: the environment.
        policy: what acts.
        episodes: how many, all in parallel.
        episode_length: time limit in control steps.
        action_repeat: simulator steps per control step.
        key: uint32 [2]; episode i depends on it and on i alone.
        stochastic: sample actions instead of taking the mode.
        devices: to spread the episodes over; their number must divide `episodes`. Default: one.
    """
    runner = EpisodeRunner(
        task,
        policy_actor(policy.specification, stochastic=stochastic),
        episodes=episodes,
        episode_length=episode_length,
        action_repeat=action_repeat,
        devices=devices,
    )
    return runner.run((policy.parameters, policy.statistics), key)


def policy_actor(
    specification: PolicySpecification, *, stochastic: bool
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """Return `EpisodeRunner`'s `act` for our own policies; their parameters are (parameters, statistics)."""

    def act(acting: Any, observations: jax.Array, keys: jax.Array) -> jax.Array:
        actor = Policy(specification, *acting)
        return jax.vmap(actor)(observations, keys) if stochastic else actor(observations)

    return act
