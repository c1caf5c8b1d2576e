"""The environment and time step at which a rollout went wrong, and the operation."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from trpo_brax.environments import EnvironmentState
from trpo_brax.environments.tasks import starting_state
from trpo_brax.environments.vectorized import POOL_SIZE
from trpo_brax.forensics.blame import Culprit, find_culprit, no_operation, not_finite
from trpo_brax.learner.iteration import Iteration
from trpo_brax.learner.rollout import Trajectory, rollout
from trpo_brax.learner.state import TrainState
from trpo_brax.randomness import Stream, environment_keys


class Gathered(NamedTuple):
    """What a rollout leads to."""

    environments: EnvironmentState
    trajectory: Trajectory


class RolloutFault(NamedTuple):
    """Fields of `Replay` for a rollout."""

    culprit: Culprit | None
    environment: int
    time: int
    note: str


def rollout_fault(iteration: Iteration, state: TrainState, gathered: Gathered) -> RolloutFault:
    """Explain the first time step of a rollout that is not finite, in one environment of those at fault."""
    trajectory, transitions = gathered.trajectory, gathered.trajectory.transitions
    sound = np.asarray(transitions.valid)
    for wrong in jax.tree.leaves(not_finite((trajectory.actions, transitions))):
        sound = sound & ~wrong.reshape(*sound.shape, -1).any(axis=-1)
    # What the last time step left is at fault one step later, as what all others left is.
    faults = ~np.column_stack([sound, gathered.environments.healthy])
    time = int(faults.any(axis=0).argmax())
    who = int(faults[:, time].argmax())
    before = jax.jit(lambda state: _environments(iteration, state, time))(state)
    if not before.healthy[who]:
        taken = int(np.sum(transitions.done[who, :time]))
        where = "reset after the time step" if taken else "reset before the iteration"
        return _explained(_bad_reset(iteration, state, who, taken), where, who, max(time - 1, 0))
    if not np.isfinite(trajectory.actions[who, time]).all():
        key = jax.random.fold_in(_keys(iteration, state, Stream.ACTION)[who], time)
        drawn = {
            "state": without_physics(state),
            "observation": trajectory.observations[who, time][None],
            "key": key[None],
        }
        return _explained(find_culprit(lambda *given: iteration.act(*given)[0], drawn), "policy", who, time)
    if not transitions.valid[who, time]:
        start = jax.tree.map(lambda leaf: leaf[who], before.state)
        given = {"state": start, "action": iteration.bounds.to_environment(trajectory.actions[who, time])}
        return _explained(find_culprit(iteration.environment.simulate, given), "control step", who, time)
    return RolloutFault(None, who, time, "Every step of the episode is finite, and a sum over them overflows.")


def without_physics(state: TrainState) -> TrainState:
    """Return a state for what only learns: what physics holds need not be finite, and is none of its inputs."""
    nothing: Any = None
    return dataclasses.replace(state, environments=nothing)


def _environments(iteration: Iteration, state: TrainState, time: int) -> EnvironmentState:
    """Return all environments before a time step of the rollout."""
    walk = rollout(
        iteration.environment,
        lambda observations, keys: iteration.act(state, observations, keys),
        state.environments,
        time,
        pool_keys=_keys(iteration, state, Stream.STARTING_POOL),
        action_keys=_keys(iteration, state, Stream.ACTION),
    )
    return walk[0]


def _bad_reset(iteration: Iteration, state: TrainState, who: int, taken: int) -> Culprit | None:
    """Return the operation in the reset that an environment's starting state came of.

    Args:
        iteration: of the run.
        state: before the iteration.
        who: environment.
        taken: how many starting states it has taken in this iteration; 0: its last is of an earlier one.
    """
    if taken:
        keys = [_pool(_keys(iteration, state, Stream.STARTING_POOL)[who])[(taken - 1) % POOL_SIZE]]
    elif not int(state.iteration):
        keys = [environment_keys(state.key, Stream.FIRST_RESET, iteration.config.rollout.num_envs)[who]]
    else:
        earlier = dataclasses.replace(state, iteration=state.iteration - 1)
        keys = list(_pool(_keys(iteration, earlier, Stream.STARTING_POOL)[who]))  # which of them is not kept
    environment = iteration.environment.task.environment
    culprits = (find_culprit(lambda key: starting_state(environment, key), {"key": key}) for key in keys)
    return next((culprit for culprit in culprits if culprit is not None), None)


def _keys(iteration: Iteration, state: TrainState, stream: Stream) -> Any:
    return environment_keys(state.key, stream, iteration.config.rollout.num_envs, state.iteration)


def _pool(key: jax.Array) -> jax.Array:
    """Return the keys uint32 [POOL_SIZE, 2] of an environment's starting states, as `starting_pool` draws them."""
    return jax.random.split(key, POOL_SIZE)


def _explained(culprit: Culprit | None, where: str, who: int, time: int) -> RolloutFault:
    if culprit is None:
        return RolloutFault(None, who, time, no_operation(where))
    return RolloutFault(dataclasses.replace(culprit, where=where), who, time, "")
