"""Finding the environment and time step at which a rollout went wrong, and the operation."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util

from trpo_brax.environments import EnvironmentState, Transition
from trpo_brax.environments.vectorized import POOL_SIZE
from trpo_brax.forensics.blame import Culprit, find_culprit, find_guarded
from trpo_brax.learner.iteration import Iteration
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.learner.state import TrainState
from trpo_brax.randomness import Stream, environment_keys

source_info_util.register_exclusion(__file__)


class Gathered(NamedTuple):
    """What a rollout leads to."""

    environments: EnvironmentState
    trajectory: Trajectory


class RolloutFault(NamedTuple):
    """Fields of `Replay` for a rollout."""

    culprit: Culprit | None
    environment: int | None
    time: int | None
    note: str


class _TimeStep(NamedTuple):
    """One time step of all environments; leaves lead with [N]."""

    before: EnvironmentState
    taken: jax.Array
    """int32: of the pool, before the step."""
    keys: jax.Array
    """uint32 [N, 2]: of the actions."""
    raw: jax.Array
    """[N, A]: actions as sampled."""
    actions: jax.Array
    """[N, A]: as the environments receive them."""
    transition: Transition
    after: EnvironmentState
    taken_after: jax.Array


def rollout_fault(iteration: Iteration, state: TrainState) -> RolloutFault | None:
    """Step the environments until one is at fault, and explain it; None if none is."""
    environment, size = iteration.environment, iteration.config.rollout.num_envs
    action_keys = environment_keys(state.key, Stream.ACTION, size, state.iteration)
    pool_keys = environment_keys(state.key, Stream.STARTING_POOL, size, state.iteration)
    pool = jax.jit(environment.starting_pool)(pool_keys)
    unhealthy = ~np.asarray(state.environments.healthy)
    if unhealthy.any():
        who = int(np.argmax(unhealthy))
        return _explained(_bad_reset_before(iteration, state, who), "reset before the iteration", who, 0)

    @jax.jit
    def advance(
        state: TrainState, pool: Any, current: EnvironmentState, taken: jax.Array, time: jax.Array
    ) -> tuple[_TimeStep, jax.Array]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(action_keys, time)
        raw, actions = iteration.act(state, current.observation, keys)
        after, transition, taken_after = environment.step(current, actions, pool, taken)
        step = _TimeStep(current, taken, keys, raw, actions, transition, after, taken_after)
        return step, _at_fault(step)

    current, taken = state.environments, jnp.zeros_like(state.environments.steps)
    for time in range(iteration.config.rollout.unroll_length):
        step, faults = advance(state, pool, current, taken, jnp.int32(time))
        if np.any(faults):
            who = int(np.argmax(faults))
            return _explained(*_bad_step(iteration, state, step, pool, pool_keys, who), who, time)
        current, taken = step.after, step.taken_after
    return None


def _at_fault(step: _TimeStep) -> jax.Array:
    """Return bool [N]."""
    numbers = [leaf for leaf in jax.tree.leaves((step.raw, step.transition)) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    finite = [jnp.all(jnp.isfinite(leaf.reshape(leaf.shape[0], -1)), axis=1) for leaf in numbers]
    return ~(jnp.all(jnp.stack(finite), axis=0) & step.transition.valid & step.after.healthy)


def _bad_step(
    iteration: Iteration, state: TrainState, step: _TimeStep, pool: Any, pool_keys: jax.Array, who: int
) -> tuple[Culprit | None, str]:
    """Return the operation and where it is, for one environment of a time step, in the order in which a step goes."""
    environment = iteration.environment

    def alone(tree: Any) -> Any:
        """Keep the leading axis: [1, ...]."""
        return jax.tree.map(lambda leaf: leaf[who : who + 1], tree)

    if not np.all(np.isfinite(step.raw[who])):

        def act(state: TrainState, observation: jax.Array, key: jax.Array) -> jax.Array:
            return iteration.act(state, observation, key)[0]

        return find_culprit(act, state, alone(step.before.observation), alone(step.keys)), "policy"
    if not bool(step.transition.valid[who]):
        before = jax.tree.map(lambda leaf: leaf[who], step.before.state)
        return find_guarded(environment.simulate, before, step.actions[who]), "control step"
    if bool(step.after.healthy[who]):
        # Its numbers are finite, and what is kept of them over an episode is not.
        arguments = alone(step.before), alone(step.actions), alone(pool), alone(step.taken)
        return (
            find_culprit(lambda *given: environment.step(*given)[1], *arguments),
            "sums over the episode",
        )
    slot = int(step.taken[who]) % POOL_SIZE
    return find_guarded(environment.reset, _pool_key(pool_keys[who], slot)), "reset after the time step"


def _bad_reset_before(iteration: Iteration, state: TrainState, who: int) -> Culprit | None:
    """Return the operation in the reset that an environment's starting state came of, before this iteration."""
    size, done = iteration.config.rollout.num_envs, int(state.iteration)
    if not done:
        keys = [environment_keys(state.key, Stream.FIRST_RESET, size)[who : who + 1]]
    else:
        key = environment_keys(state.key, Stream.STARTING_POOL, size, state.iteration - 1)[who]
        keys = [_pool_key(key, slot) for slot in range(POOL_SIZE)]  # which of them it took is not kept
    culprits = (find_guarded(iteration.environment.reset, key) for key in keys)
    return next((culprit for culprit in culprits if culprit is not None), None)


def _pool_key(key: jax.Array, slot: int) -> jax.Array:
    """Return the key uint32 [1, 2] of one of an environment's starting states, as `starting_pool` draws it."""
    return jax.random.split(key, POOL_SIZE)[slot : slot + 1]


def _explained(culprit: Culprit | None, where: str, who: int, time: int) -> RolloutFault:
    if culprit is None:
        return RolloutFault(None, who, time, only_compiled(where))
    return RolloutFault(dataclasses.replace(culprit, path=(where, *culprit.path)), who, time, "")


def first_invalid(gathered: Gathered) -> RolloutFault:
    """Return where the compiled rollout was at fault, when stepping it did not show it."""
    faults = ~np.asarray(gathered.trajectory.transitions.valid)
    note = "The rollout as one program is not finite, and stepped one at a time it is: programs round differently."
    if not faults.any():
        return RolloutFault(None, None, None, note)
    time = int(np.argmax(faults.any(axis=0)))
    return RolloutFault(None, int(np.argmax(faults[:, time])), time, note)


def only_compiled(what: str) -> str:
    """Return what is said where the un-jitted iteration does not meet what the compiled one did."""
    verb = "are" if what.endswith("s") else "is"
    return (
        f"Un-jitted, the {what} {verb} finite: only the compiled program, which rounds differently, makes the number."
    )
