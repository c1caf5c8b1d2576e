"""Domain-separated randomness: every draw comes from a named stream of the run's one key, and no key is used twice.

A key is a function of the root key, the stream, the iteration, the environment and the time step alone, so draws depend
neither on the number of devices nor on where a run was stopped and resumed.
"""

from __future__ import annotations

import enum

import jax


class Stream(enum.IntEnum):
    """What randomness is used for. Numbers are part of a run's identity: never renumber."""

    POLICY_INITIALIZATION = 0
    CRITIC_INITIALIZATION = 1
    FIRST_RESET = 2
    SPREAD = 3
    STARTING_POOL = 4
    ACTION = 5
    EVALUATION = 6
    TRAINING_EVALUATION = 7
    CHOICE = 8
    CERTIFICATION = 9
    PERTURBATION = 10
    VERIFICATION = 11
    COMPARISON = 12


def stream_key(key: jax.Array, stream: Stream) -> jax.Array:
    """Return the stream's key, uint32 [2]."""
    return jax.random.fold_in(key, stream)


def environment_keys(key: jax.Array, stream: Stream, num_envs: int, iteration: jax.Array | None = None) -> jax.Array:
    """Return one key per environment, uint32 [N, 2], of a stream and, where given, an iteration."""
    key = stream_key(key, stream)
    if iteration is not None:
        key = jax.random.fold_in(key, iteration)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jax.numpy.arange(num_envs))
