"""Running whole episodes of a policy, one per environment, all in parallel."""

from __future__ import annotations

import dataclasses
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


class _Carry(NamedTuple):
    time: jax.Array
    state: Any
    running: jax.Array
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

        def simulate(parameters: Any, keys: jax.Array) -> tuple[jax.Array, ...]:
            reset_keys, action_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            start = environment.reset(reset_keys)
            zeros = jnp.zeros(keys.shape[0])
            nothing = (zeros, zeros.astype(jnp.int32), zeros.astype(bool), ~start.healthy)

            def running(carry: _Carry) -> jax.Array:
                return (carry.time < episode_length) & jnp.any(carry.running)

            def advance(carry: _Carry) -> _Carry:
                returns, lengths, terminated, nonfinite = carry.episodes
                step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(action_keys, carry.time)
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
                return _Carry(carry.time + 1, outcome.state, sound & ~ended, counted)

            zero = jnp.zeros((), jnp.int32)
            return jax.lax.while_loop(running, advance, _Carry(zero, start.state, start.healthy, nothing)).episodes

        mesh = Mesh(np.asarray(devices if devices is not None else jax.local_devices()[:1]), ("episodes",))
        self._each, self._same = NamedSharding(mesh, PartitionSpec("episodes")), NamedSharding(mesh, PartitionSpec())
        self._program = jax.jit(simulate, in_shardings=(self._same, self._each), out_shardings=self._each)

    def run(self, parameters: Any, key: jax.Array) -> Episodes:
        """Run the episodes of one policy.

        Args:
            parameters: what `act` takes first; a pytree of arrays.
            key: uint32 [2]; episode i depends on it and on i alone.
        """
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(self._episodes))
        acting = jax.device_put(parameters, self._same)
        return Episodes(*jax.device_get(self._program(acting, jax.device_put(keys, self._each))))


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
