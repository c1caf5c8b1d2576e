"""A key is used once: streams, iterations, environments and seeds never share one."""

import jax
import numpy as np
import pytest

from trpo_brax.randomness import Stream, environment_keys, stream_key

ENVIRONMENTS = 512
ITERATIONS = 40


def as_integers(keys: jax.Array) -> np.ndarray:
    """Return keys uint32 [..., 2] as one uint64 each."""
    words = np.asarray(keys).reshape(-1, 2).astype(np.uint64)
    return words[:, 0] << np.uint64(32) | words[:, 1]


def test_no_two_draws_share_a_key() -> None:
    """With 64 bits, a collision of half a million honest keys has a probability of 1e-8."""
    by_iteration = jax.jit(
        jax.vmap(lambda key, stream, at: environment_keys(key, stream, ENVIRONMENTS, at), (None, None, 0))
    )
    families = {}
    for seed in (0, 1):
        key = jax.random.PRNGKey(seed)
        families[seed, "root"] = as_integers(key)
        for stream in Stream:
            families[seed, stream] = as_integers(stream_key(key, stream))
            families[seed, stream, "environments"] = as_integers(environment_keys(key, stream, ENVIRONMENTS))
            iterations = by_iteration(key, np.int32(stream), np.arange(ITERATIONS))
            families[seed, stream, "iterations"] = as_integers(iterations)
    everything = np.concatenate(list(families.values()))
    assert everything.size > 2 * len(Stream) * ENVIRONMENTS * ITERATIONS
    assert np.unique(everything).size == everything.size


def test_time_steps_and_starting_states_have_their_own_keys() -> None:
    """The rollout folds the time step into an environment's action key and splits its pool key."""
    key = jax.random.PRNGKey(5)
    actions = environment_keys(key, Stream.ACTION, 64, np.int32(3))
    pools = environment_keys(key, Stream.STARTING_POOL, 64, np.int32(3))
    steps = jax.vmap(lambda one: jax.vmap(jax.random.fold_in, (None, 0))(one, np.arange(128)))(actions)
    starts = jax.vmap(lambda one: jax.random.split(one, 4))(pools)
    everything = np.concatenate([as_integers(keys) for keys in (actions, pools, steps, starts)])
    assert np.unique(everything).size == everything.size


@pytest.mark.parametrize("iteration", [None, 7])
@pytest.mark.parametrize("stream", list(Stream))
def test_a_key_does_not_depend_on_how_many_environments_there_are(stream: Stream, iteration: int | None) -> None:
    key = jax.random.PRNGKey(11)
    few = environment_keys(key, stream, 5, iteration)
    assert few.shape == (5, 2) and few.dtype == np.uint32
    np.testing.assert_array_equal(few, environment_keys(key, stream, 64, iteration)[:5])


def test_a_traced_iteration_gives_the_same_keys() -> None:
    key = jax.random.PRNGKey(2)
    traced = jax.jit(lambda at: environment_keys(key, Stream.ACTION, 4, at))(np.int32(9))
    np.testing.assert_array_equal(traced, environment_keys(key, Stream.ACTION, 4, 9))


def test_the_numbers_of_streams_are_a_runs_identity() -> None:
    """Another numbering would change every saved run's draws on resume."""
    assert [(stream.name, int(stream)) for stream in Stream][:7] == [
        ("POLICY_INITIALIZATION", 0),
        ("CRITIC_INITIALIZATION", 1),
        ("FIRST_RESET", 2),
        ("SPREAD", 3),
        ("STARTING_POOL", 4),
        ("ACTION", 5),
        ("EVALUATION", 6),
    ]
    assert len({int(stream) for stream in Stream}) == len(Stream)
