"""Many copies of one environment: time limits, automatic resets, a finite guard, and the true next observation.

Starting states come from a pool: each environment has `POOL_SIZE` of its own, drawn afresh every iteration, and takes
them in turn as its episodes end. A reset replaces the whole of Brax's `State`, `info` included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from trpo_brax.environments.tasks import Task

if TYPE_CHECKING:
    from brax.envs import State

POOL_SIZE = 4
_UNSOUND = 2.0
"""`done` of a starting state that was not finite."""


@struct.dataclass
class EnvironmentState:
    """Where every environment is; all leaves lead with [N]."""

    state: State
    """Brax's own; its observation is always finite here."""
    healthy: jax.Array
    """bool: False where the starting state was not finite."""
    steps: jax.Array
    """int32: control steps towards the time limit."""
    counted: jax.Array
    """bool: False during an episode whose time limit was shortened by a spread start."""
    episode_return: jax.Array
    """float32: rewards of the episode so far."""
    episode_length: jax.Array
    """int32: control steps of the episode so far."""
    episode_metrics: dict[str, jax.Array]
    """float32: sums of the environment's own metrics over the episode so far."""

    @property
    def observation(self) -> jax.Array:
        """[N, observation]."""
        observation: jax.Array = self.state.obs
        return observation


class Transition(NamedTuple):
    """One control step of every environment; all leaves lead with [N]."""

    next_observation: jax.Array
    """[N, observation]: of the state that the action led to, before any reset; finite."""
    reward: jax.Array
    """[N]: 0 where not valid."""
    termination: jax.Array
    """bool [N]: the task really ended."""
    done: jax.Array
    """bool [N]: the episode ended in any way: termination, time limit or a non-finite state."""
    valid: jax.Array
    """bool [N]: everything about the transition was finite."""
    episode_ended: jax.Array
    """bool [N]: a whole, finite episode ended here and counts."""
    episode_return: jax.Array
    """[N]: of the episode up to and including this step."""
    episode_length: jax.Array
    """int32 [N]: control steps up to and including this one."""
    episode_metrics: dict[str, jax.Array]
    """[N]: mean over the episode's steps of each of the environment's own metrics."""


class Outcome(NamedTuple):
    """What one control step of one environment led to, before time limit and reset."""

    state: State
    reward: jax.Array
    termination: jax.Array
    truncation: jax.Array
    """bool []: the environment itself says that this end is a time limit (`info["truncation"]`)."""
    finite: jax.Array


class VectorizedEnvironment:
    """N copies of a task stepped together.

    Args:
        task: what to copy.
        episode_length: time limit in control steps.
        action_repeat: simulator steps per control step; rewards are summed, and repeating stops at an end.
    """

    def __init__(self, task: Task, *, episode_length: int, action_repeat: int = 1) -> None:
        self.task = task
        self._episode_length = episode_length
        self._action_repeat = action_repeat

    def reset(self, keys: jax.Array, spread_keys: jax.Array | None = None) -> EnvironmentState:
        """Return fresh environments.

        Args:
            keys: uint32 [N, 2], one each.
            spread_keys: uint32 [N, 2]: draw each time limit's starting count in [0, episode_length); None: all 0.
        """
        if spread_keys is None:
            steps = jnp.zeros(keys.shape[0], jnp.int32)
        else:
            steps = jax.vmap(lambda key: jax.random.randint(key, (), 0, self._episode_length))(spread_keys)
        return jax.vmap(self._begin)(jax.vmap(self._sound_start)(keys), steps)

    def starting_pool(self, keys: jax.Array) -> State:
        """Return `POOL_SIZE` starting states for each environment, leaves [N, POOL_SIZE, ...].

        Args:
            keys: uint32 [N, 2].
        """
        return jax.vmap(lambda key: jax.vmap(self._sound_start)(jax.random.split(key, POOL_SIZE)))(keys)

    def step(
        self, current: EnvironmentState, actions: jax.Array, pool: State, taken: jax.Array
    ) -> tuple[EnvironmentState, Transition, jax.Array]:
        """Advance every environment by one control step and restart those whose episode ended.

        Args:
            current: all environments.
            actions: [N, A] within the action bounds.
            pool: `starting_pool`'s states.
            taken: int32 [N]: how many of its pool each environment has used.

        Returns:
            The environments after any reset, the transitions before it, and the new `taken`.
        """
        return jax.vmap(self._step)(current, actions, pool, taken)

    def simulate(self, state: State, action: jax.Array) -> Outcome:
        """Take one control step of one environment: `action_repeat` simulator steps, stopping at an end."""
        if self._action_repeat == 1:
            after = self.task.advance(state, action)
            reward, finite = after.reward, _finite(after)
        else:

            def repeat(carry: tuple[State, jax.Array, jax.Array, jax.Array], _: None) -> Any:
                old, total, finite, ended = carry
                new = self.task.advance(old, action)
                total = total + jnp.where(ended, 0.0, new.reward)
                kept = jax.tree.map(lambda a, b: jnp.where(ended, a, b), old, new)
                # A fault that heals within the control step is a fault all the same.
                return (kept, total, finite & (ended | _finite(new)), ended | (new.done > 0.5)), None

            carry = (state, jnp.zeros_like(state.reward), jnp.ones((), bool), jnp.zeros((), bool))
            (after, reward, finite, _), _ = jax.lax.scan(repeat, carry, None, length=self._action_repeat)
        ended = after.done > 0.5
        truncation = ended & (jnp.asarray(after.info.get("truncation", 0.0)) > 0.5)
        finite &= jnp.isfinite(reward)
        return Outcome(after, reward, ended & ~truncation, truncation, finite)

    def _step(
        self, current: EnvironmentState, action: jax.Array, pool: State, taken: jax.Array
    ) -> tuple[EnvironmentState, Transition, jax.Array]:
        outcome = self.simulate(current.state, action)
        valid = current.healthy & outcome.finite
        steps = current.steps + 1
        termination = outcome.termination & valid
        done = termination | outcome.truncation | (steps >= self._episode_length) | ~valid
        reward = jnp.where(valid, outcome.reward, 0.0)
        length = current.episode_length + 1
        sums = {
            name: total + jnp.where(jnp.isfinite(outcome.state.metrics[name]), outcome.state.metrics[name], 0.0)
            for name, total in current.episode_metrics.items()
        }
        continued = EnvironmentState(
            state=outcome.state.replace(metrics=jax.tree.map(_finite_numbers, outcome.state.metrics)),
            healthy=current.healthy,
            steps=steps,
            counted=current.counted,
            episode_return=current.episode_return + reward,
            episode_length=length,
            episode_metrics=sums,
        )
        transition = Transition(
            next_observation=jnp.where(valid, outcome.state.obs, current.observation),
            reward=reward,
            termination=termination,
            done=done,
            valid=valid,
            episode_ended=done & valid & current.counted,
            episode_return=continued.episode_return,
            episode_length=length,
            episode_metrics={name: total / length for name, total in sums.items()},
        )
        start = self._begin(jax.tree.map(lambda leaf: leaf[taken % POOL_SIZE], pool), jnp.zeros((), jnp.int32))
        after = jax.tree.map(lambda fresh, old: jnp.where(done, fresh, old), start, continued)
        return after, transition, taken + done

    def _sound_start(self, key: jax.Array) -> State:
        """Return one starting state, always finite; one that was not is told by its `done`."""
        state = self.task.start(key)
        sound = _finite(state)
        clean = jax.tree.map(lambda leaf: jnp.where(sound, leaf, _finite_numbers(leaf)), state)
        return clean.replace(done=jnp.where(sound, clean.done, _UNSOUND))

    def _begin(self, state: State, steps: jax.Array) -> EnvironmentState:
        scalars = [name for name, value in state.metrics.items() if jnp.shape(value) == ()]
        return EnvironmentState(
            state=state.replace(done=jnp.minimum(state.done, 1.0)),
            healthy=state.done < _UNSOUND,
            steps=jnp.asarray(steps, jnp.int32),
            counted=steps == 0,
            episode_return=jnp.zeros((), jnp.float32),
            episode_length=jnp.zeros((), jnp.int32),
            episode_metrics={name: jnp.zeros((), jnp.float32) for name in scalars},
        )


def _finite_numbers(leaf: jax.Array) -> jax.Array:
    return jnp.nan_to_num(leaf, posinf=0.0, neginf=0.0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def finite_physics(physics: Any) -> jax.Array:
    """Return bool []: every number of a simulator's state is finite.

    Of contacts infinity is a value (no contact: infinite distance), so there only NaN is a fault.
    """
    finite = jnp.ones((), bool)
    for path, leaf in jax.tree_util.tree_leaves_with_path(physics):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            of_contact = "contact" in jax.tree_util.keystr(path)
            finite &= ~jnp.any(jnp.isnan(leaf)) if of_contact else jnp.all(jnp.isfinite(leaf))
    return finite


def _finite(state: State) -> jax.Array:
    """Return bool []: observation, reward, done and physics are finite."""
    finite = jnp.all(jnp.isfinite(state.obs)) & jnp.isfinite(state.reward) & jnp.isfinite(state.done)
    return finite & finite_physics(state.pipeline_state)
