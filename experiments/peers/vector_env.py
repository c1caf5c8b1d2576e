"""A Brax task, vectorised and compiled, as the `VecEnv` of stable-baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium  # type: ignore[import-not-found]
import jax
import jax.numpy as jnp
import numpy as np
from stable_baselines3.common.vec_env import VecEnv  # type: ignore[import-not-found]

from trpo_brax.environments import EnvironmentState, Task, VectorizedEnvironment
from trpo_brax.environments.vectorized import POOL_SIZE

_TOLERANCE = 1e-4


class BraxVecEnv(VecEnv):
    """N copies of a task in one jitted call a step.

    An environment whose episode ends restarts at once, from a state of its own that was never used before; the
    observation before that is `infos[i]["terminal_observation"]`, and `infos[i]["TimeLimit.truncated"]` tells a time
    limit from a real end.
    """

    def __init__(self, task: Task, *, num_envs: int, episode_length: int, seed: int) -> None:
        environment = VectorizedEnvironment(task, episode_length=episode_length)
        self._reset = jax.jit(environment.reset)
        self._draw_pool = jax.jit(environment.starting_pool)

        def advance(state: EnvironmentState, actions: jax.Array, pool: Any, taken: jax.Array) -> Any:
            after, transition, taken = environment.step(state, actions, pool, taken)
            ended = (transition.reward, transition.done, transition.done & ~transition.termination)
            return after, taken, (after.observation, transition.next_observation, *ended)

        self._advance = jax.jit(advance)
        self._key = jax.random.PRNGKey(seed)
        self._taken = jnp.zeros(num_envs, jnp.int32)
        self._restarts = np.zeros(num_envs, int)
        self._actions = np.zeros((num_envs, len(task.action_low)), np.float32)
        observations = gymnasium.spaces.Box(-np.inf, np.inf, (task.observation_size,), np.float32)
        actions = gymnasium.spaces.Box(
            np.asarray(task.action_low, np.float32), np.asarray(task.action_high, np.float32)
        )
        super().__init__(num_envs, observations, actions)

    def reset(self) -> np.ndarray:
        """Start every environment anew."""
        self._state = self._reset(self._keys())
        self._refill()
        return np.array(self._state.observation)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions, [N, A]."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step every environment; return observations after any restart, rewards, dones and infos."""
        self._state, self._taken, outputs = self._advance(self._state, self._actions, self._pool, self._taken)
        observations, next_observations, rewards, dones, truncated = (np.array(leaf) for leaf in outputs)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(dones):
            infos[index]["terminal_observation"] = next_observations[index]
            infos[index]["TimeLimit.truncated"] = bool(truncated[index])
        self._restarts += dones
        if np.max(self._restarts) == POOL_SIZE:
            self._refill()
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Nothing is held."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for everything: these environments have no attributes."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: there are no separate environments to set anything on."""
        raise NotImplementedError

    def env_method(self, method_name: str, *arguments: Any, indices: Any = None, **options: Any) -> list[Any]:
        """Refuse: there are no separate environments to call."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return False for every environment."""
        return [False] * self.num_envs

    def _refill(self) -> None:
        self._pool = self._draw_pool(self._keys())
        self._taken = jnp.zeros(self.num_envs, jnp.int32)
        self._restarts = np.zeros(self.num_envs, int)

    def _keys(self) -> jax.Array:
        self._key, key = jax.random.split(self._key)
        return jax.random.split(key, self.num_envs)


def check_vector_env(task: Task) -> None:
    """Compare the adapter with Brax's environment stepped directly, through restarts by time limits and falls.

    Raises:
        RuntimeError: they differ.
    """
    length, count = 7, 3
    vectorized = BraxVecEnv(task, num_envs=count, episode_length=length, seed=0)
    single_step = jax.jit(jax.vmap(task.environment.step))
    generator = np.random.default_rng(0)
    observations, elapsed = vectorized.reset(), np.zeros(count, int)
    for _ in range(4 * length):
        actions = generator.uniform(-1, 1, vectorized._actions.shape).astype(np.float32)
        direct = single_step(vectorized._state.state, actions)
        vectorized.step_async(actions)
        observations, rewards, dones, infos = vectorized.step_wait()
        elapsed += 1
        fell = np.array(direct.done) > 0.5
        _same(rewards, direct.reward, "rewards")
        _same(dones, fell | (elapsed >= length), "dones")
        before = [info.get("terminal_observation", now) for info, now in zip(infos, observations, strict=True)]
        _same(np.array(before), direct.obs, "observations before restarts")
        limits = [info.get("TimeLimit.truncated", False) for info in infos]
        _same(np.array(limits), dones & ~fell, "time limits")
        if any(np.array_equal(observations[index], before[index]) for index in np.flatnonzero(dones)):
            raise RuntimeError("an environment did not restart after its episode ended.")
        elapsed[dones] = 0


def _same(ours: Sequence[Any] | np.ndarray, reference: Any, what: str) -> None:
    difference = np.max(np.abs(np.asarray(ours, np.float64) - np.asarray(reference, np.float64)))
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"the vectorised environment's {what} differ from Brax's by {difference:g}.")
