"""Time limits, resets, the finite guard and the true next observation, against plain Python loops."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.environments.simulation import (
    PlainFaulty,
    PlainHistory,
    Run,
    collect,
    compiled,
    eighths,
    keys_of,
    simulate,
    vectorized,
)
from tests.tiny_environments import (
    ChangesShape,
    Countdown,
    EndsItself,
    Fault,
    Faulty,
    History,
    IntegerReward,
    PointMass,
    WeaklyTyped,
)
from trpo_brax.environments.quiet import quiet
from trpo_brax.environments.vectorized import POOL_SIZE
from trpo_brax.errors import TaskError

with quiet():
    from brax.envs import State
    from brax.envs import training as brax_wrappers

LENGTH = 40


@dataclasses.dataclass(frozen=True)
class Setting:
    """How `History` is run; its episodes end by themselves after 2 to 7 simulator steps."""

    episode_length: int
    action_repeat: int = 1
    spread: bool = False
    num_envs: int = 6


LONG = Setting(100)
SHORT = Setting(4, num_envs=4)
SPREAD = Setting(5, spread=True)
REPEAT = Setting(100, action_repeat=3)
# Two environments of two observations, four of POOL_SIZE: where a reset broadcasts wrongly, the sizes hide it here.
SETTINGS = [LONG, SHORT, SPREAD, REPEAT, Setting(3, action_repeat=2, spread=True, num_envs=2), Setting(1, num_envs=3)]


@functools.cache
def run(setting: Setting) -> Run:
    environment = vectorized(History(), setting.episode_length, setting.action_repeat)
    return collect(environment, eighths(1, LENGTH, setting.num_envs), spread=setting.spread)


@functools.cache
def expected(setting: Setting) -> dict:
    return simulate(
        PlainHistory,
        History(),
        eighths(1, LENGTH, setting.num_envs),
        episode_length=setting.episode_length,
        action_repeat=setting.action_repeat,
        first_steps=tuple(run(setting).start.steps),
    )


@functools.cache
def two_iterations() -> tuple[Run, Run]:
    """Twenty steps of episodes of two, from one pool and then on from another."""
    environment = vectorized(PointMass(), episode_length=2)
    first = collect(environment, np.zeros((20, 3, 1)), seed=0)
    start = jax.tree.map(lambda leaf: leaf[-1], first.after)
    return first, collect(environment, np.zeros((20, 3, 1)), start=start, seed=1)


def check_against(table: dict, found: Run) -> None:
    """Compare a run with the plain simulation: exactly, but for means, which are divisions."""
    transitions = found.transitions
    np.testing.assert_array_equal(found.observation, table["observation"], err_msg="observation")
    np.testing.assert_array_equal(found.taken, table["taken"], err_msg="taken")
    for name in ("next_observation", "reward", "termination", "done", "valid", "episode_ended"):
        np.testing.assert_array_equal(getattr(transitions, name), table[name], err_msg=name)
    for name in ("episode_return", "episode_length"):
        np.testing.assert_array_equal(getattr(transitions, name), table[name], err_msg=name)
    assert transitions.episode_metrics.keys() == table["episode_metrics"].keys()
    for name, values in table["episode_metrics"].items():
        np.testing.assert_allclose(transitions.episode_metrics[name], values, rtol=1e-6, err_msg=name)


# Against the plain simulation


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_everything_is_as_in_a_plain_python_loop(setting: Setting) -> None:
    check_against(expected(setting), run(setting))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_reset_replaces_the_whole_state_by_the_next_of_the_pool(setting: Setting) -> None:
    found = run(setting)
    times, which = np.nonzero(found.transitions.done)
    place = (found.taken[times, which] - 1) % POOL_SIZE
    after = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda leaf: leaf[times, which], found.after.state))
    pool = jax.tree.leaves(jax.tree.map(lambda leaf: leaf[which, place], found.pool))
    assert len(times) > 10
    for (path, leaf), fresh in zip(after, pool, strict=True):
        np.testing.assert_array_equal(leaf, fresh, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_bookkeeping_begins_anew_after_an_end(setting: Setting) -> None:
    found = run(setting)
    done, after = found.transitions.done, found.after
    for leaf in (after.steps, after.episode_return, after.episode_length, *after.episode_metrics.values()):
        assert np.all(leaf[done] == 0)
    assert np.all(after.counted[done])
    assert np.all(after.healthy)


# Ends


def test_the_time_limit_ends_an_episode_at_exactly_its_length_and_is_no_termination() -> None:
    first, second = two_iterations()
    for found in (first, second):
        assert np.array_equal(found.transitions.done[:, 0], [False, True] * 10)
        assert not found.transitions.termination.any()
        assert np.all(found.transitions.episode_length[found.transitions.done] == 2)


def test_brax_trap_an_end_exactly_at_the_limit_is_a_termination() -> None:
    found = run(SHORT)
    before = np.concatenate([found.start.steps[None], found.after.steps[:-1]])
    at_limit = before + 1 == SHORT.episode_length
    own_end = found.transitions.termination
    assert (at_limit & own_end).any()
    assert (at_limit & ~own_end).any()
    assert np.all(found.transitions.done == (at_limit | own_end))


def test_brax_trap_the_terminal_observation_is_kept() -> None:
    found = run(LONG)
    done = found.transitions.done
    clock = found.transitions.next_observation[..., 1] * 8
    assert np.all(clock[done] == found.transitions.episode_length[done])
    assert np.all(found.after.observation[done][:, 1] == 0)
    assert np.array_equal(found.after.observation[~done], found.transitions.next_observation[~done])


def test_observations_follow_on_from_the_states_after_resets() -> None:
    found = run(LONG)
    assert np.array_equal(found.observation[0], found.start.observation)
    assert np.array_equal(found.observation[1:], found.after.observation[:-1])


@pytest.mark.parametrize("truncates", [False, True])
def test_an_environment_s_own_truncation_is_a_time_limit(truncates: bool) -> None:
    found = collect(vectorized(EndsItself(length=3, truncates=truncates), 100), np.zeros((7, 2, 1)))
    ends = np.array([False, False, True, False, False, True, False])
    assert np.array_equal(found.transitions.done, np.stack([ends, ends], axis=1))
    assert np.array_equal(found.transitions.episode_ended, found.transitions.done)
    assert np.array_equal(found.transitions.termination, found.transitions.done & (not truncates))
    assert np.all(found.transitions.episode_return[found.transitions.done] == 3)


def test_brax_trap_time_out_in_info_is_not_a_truncation() -> None:
    found = collect(vectorized(WeaklyTyped(), 100), np.zeros((4, 2, 1)))
    assert np.array_equal(found.transitions.termination[:, 0], [False, False, False, True])


def test_brax_s_own_time_limit_is_honoured_where_its_episode_wrapper_stays() -> None:
    found = collect(vectorized(brax_wrappers.EpisodeWrapper(History(), 4, 1), 100), eighths(1, 20, 4))
    done, termination = found.transitions.done, found.transitions.termination
    clock = found.transitions.next_observation[..., 1] * 8
    limit = np.concatenate([found.start.state.info["limit"][None], found.after.state.info["limit"][:-1]])
    assert np.array_equal(done, clock == np.minimum(limit, 4))
    assert np.array_equal(termination, done & (limit <= 4))
    assert (done & ~termination).any()
    assert np.all(found.after.state.info["steps"][done] == 0)


# Resets


def test_brax_trap_the_first_state_is_not_replayed() -> None:
    first, second = two_iterations()
    for found in (first, second):
        starts = found.after.observation[1::2]  # ten resets of three environments
        for reset in range(10):
            assert np.array_equal(starts[reset], found.pool.obs[:, reset % POOL_SIZE])
        assert len(np.unique(starts.reshape(-1, 2), axis=0)) == 3 * POOL_SIZE
        assert np.array_equal(found.taken[-1], [10, 10, 10])
    everything = np.concatenate([first.start.observation[:, None], first.pool.obs, second.pool.obs], axis=1)
    assert len(np.unique(everything.reshape(-1, 2), axis=0)) == 3 * (1 + 2 * POOL_SIZE)


def test_brax_trap_its_own_wrapper_has_one_starting_state() -> None:
    """The defect of Brax that `starting_pool` avoids is still there; when this fails, read its release notes."""
    environment = brax_wrappers.wrap(PointMass(), episode_length=2)
    first = environment.reset(keys_of(0, 3).start)

    def step(state, _):
        state = environment.step(state, jnp.zeros((3, 1)))
        return state, state.obs

    _, observations = jax.jit(lambda state: jax.lax.scan(step, state, length=20))(first)
    assert all(np.array_equal(observations[time], first.obs) for time in range(1, 20, 2))


def test_brax_trap_info_does_not_leak_across_episodes() -> None:
    found = run(SHORT)
    done = found.transitions.done
    info = found.after.state.info
    assert np.all(info["count"][done] == 0)
    assert np.all(info["past"]["actions"][done] == 0)
    assert np.array_equal(info["past"]["start"][done], found.after.state.pipeline_state[done])
    assert len(np.unique(info["limit"][done])) > 1
    # and within an episode it is kept
    assert np.any(info["past"]["actions"][~done] != 0)
    assert np.array_equal(info["count"][~done], found.after.steps[~done])


def test_the_same_keys_give_the_same_run_and_other_keys_another() -> None:
    environment = vectorized(History(), LONG.episode_length)
    again = collect(environment, eighths(1, LENGTH, LONG.num_envs))
    other = collect(environment, eighths(1, LENGTH, LONG.num_envs), seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(run(LONG)), jax.tree.leaves(again), strict=True))
    assert not np.array_equal(other.start.observation, again.start.observation)
    assert not np.array_equal(other.pool.obs, again.pool.obs)


# Spread time limits


def test_brax_trap_time_limits_do_not_coincide() -> None:
    environment = vectorized(PointMass(), episode_length=10)
    keys = keys_of(0, 4000)
    start = jax.jit(environment.reset)(keys.start, keys.spread)
    counts = np.bincount(start.steps, minlength=10)
    assert len(counts) == 10
    assert np.sum((counts - 400) ** 2 / 400) < 27.9  # chi-squared, 9 degrees of freedom, one in a thousand
    assert np.array_equal(start.counted, start.steps == 0)
    assert not np.asarray(jax.jit(environment.reset)(keys.start).steps).any()


def test_shortened_episodes_are_not_counted_and_later_ones_are() -> None:
    found = run(SPREAD)
    assert len(np.unique(found.start.steps)) > 2
    for n, steps in enumerate(found.start.steps):
        ends = np.nonzero(found.transitions.done[:, n])[0]
        assert found.transitions.episode_ended[ends[0], n] == (steps == 0)
        assert np.all(found.transitions.episode_ended[ends[1:], n])
        assert ends[0] + 1 <= SPREAD.episode_length - steps


# Repeated actions


def test_brax_trap_repeating_an_action_stops_at_an_end() -> None:
    found = run(REPEAT)
    done, count = found.transitions.done, found.transitions.next_observation[..., 1] * 8
    assert set(count[~done] % 3) == {0}
    assert {1, 2} <= set(count[done] % 3), "some episodes end in the middle of a repetition"
    limit = np.concatenate([found.start.state.info["limit"][None], found.after.state.info["limit"][:-1]])
    assert np.array_equal(count[done], limit[done])


def test_a_time_limit_counts_control_steps() -> None:
    found = collect(vectorized(PointMass(), episode_length=4, action_repeat=3), np.zeros((8, 2, 1)))
    assert np.array_equal(found.transitions.done[:, 0], [False, False, False, True] * 2)


def test_repeating_twice_is_stepping_twice() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 1))
    once = collect(vectorized(PointMass(), 100), np.repeat(actions, 2, axis=0)).transitions
    twice = collect(vectorized(PointMass(), 100, action_repeat=2), actions).transitions
    np.testing.assert_allclose(twice.reward, once.reward[::2] + once.reward[1::2], rtol=1e-6)
    np.testing.assert_allclose(twice.next_observation, once.next_observation[1::2], rtol=1e-6)


# The finite guard

GUARD_ENVS, GUARD_LENGTH, LIMIT = 14, 20, 8
SEVERAL = [
    Fault("observation", math.nan, step=3),
    Fault("observation", -math.inf, step=1),
    Fault("reward", math.nan, step=3),
    Fault("reward", math.inf, step=LIMIT),
    Fault("done", math.nan, step=3),
    Fault("physics", math.nan, step=3),
    Fault("observation", math.nan, step=0),
    Fault("observation", math.inf, step=0),
    Fault("reward", math.nan, step=0),
    Fault("done", math.nan, step=0),
    Fault("physics", math.nan, step=0),
]
"""What goes wrong in environments 0 to 10; environment 11 meets a fault in its first reset, 12 and 13 none."""


@functools.cache
def faulty_environment() -> Faulty:
    keys = keys_of(0, GUARD_ENVS)
    of = lambda key: tuple(int(word) for word in key)
    faults = [dataclasses.replace(fault, key=of(keys.start[n])) for n, fault in enumerate(SEVERAL)]
    restart = of(jax.random.split(keys.pool[11], POOL_SIZE)[0])
    return Faulty(*faults, Fault("physics", step=0, key=restart))


@functools.cache
def guarded(environment: Faulty) -> Run:
    return collect(vectorized(environment, LIMIT), eighths(2, GUARD_LENGTH, GUARD_ENVS))


@functools.cache
def guarded_several() -> Run:
    return guarded(faulty_environment())


@functools.cache
def guarded_none() -> Run:
    return guarded(Faulty())


def test_every_fault_is_handled_as_in_a_plain_python_loop() -> None:
    table = simulate(PlainFaulty, faulty_environment(), eighths(2, GUARD_LENGTH, GUARD_ENVS), episode_length=LIMIT)
    check_against(table, guarded_several())


@pytest.mark.parametrize(
    "n", range(len(SEVERAL)), ids=[f"{fault.part}-{fault.value}-{fault.step}" for fault in SEVERAL]
)
def test_brax_trap_what_is_not_finite_is_cut_off(n: int) -> None:
    found, step = guarded_several().transitions, max(SEVERAL[n].step, 1) - 1
    assert np.array_equal(np.nonzero(~found.valid[:, n])[0], [step])
    assert found.done[step, n]
    assert not found.termination[step, n]
    assert not found.episode_ended[step, n]
    assert found.reward[step, n] == 0
    assert np.array_equal(found.next_observation[step, n], guarded_several().observation[step, n])
    state = jax.tree.map(lambda leaf: leaf[step, n], guarded_several().after.state)
    fresh = jax.tree.map(lambda leaf: leaf[n, 0], guarded_several().pool)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True))


def test_a_fault_in_a_starting_state_of_the_pool_costs_one_transition() -> None:
    found = guarded_several()
    assert np.array_equal(np.nonzero(~found.transitions.valid[:, 11])[0], [LIMIT])
    assert not found.after.healthy[LIMIT - 1, 11]
    assert found.after.healthy[LIMIT, 11]
    assert np.array_equal(found.after.observation[LIMIT, 11], found.pool.obs[11, 1])


def test_nothing_that_is_not_finite_leaves() -> None:
    found = guarded_several()
    for leaf in jax.tree.leaves((found.observation, found.transitions)):
        assert np.all(np.isfinite(leaf))
    assert np.all(np.isfinite(found.start.observation))


def test_the_other_environments_notice_nothing() -> None:
    one, other = guarded_several(), guarded_none()
    untouched = lambda found: jax.tree.leaves(
        jax.tree.map(lambda leaf: leaf[:, 12:], (found.observation, found.after, found.transitions))
    )
    for a, b in zip(untouched(one), untouched(other), strict=True):
        assert a.tobytes() == b.tobytes()
    assert other.transitions.valid.all()


def test_all_environments_may_break_at_once() -> None:
    found = guarded(Faulty(Fault("observation", step=3)))
    assert np.array_equal(found.transitions.valid[:, 0], [True, True, False] * 6 + [True, True])
    assert np.array_equal(found.transitions.done, ~found.transitions.valid)
    assert not found.transitions.episode_ended.any()
    assert np.all(np.isfinite(found.observation))


def test_infinity_in_the_physics_is_a_fault() -> None:
    found = guarded(Faulty(Fault("physics", math.inf, step=3)))
    assert np.array_equal(found.transitions.valid[:, 0], [True, True, False] * 6 + [True, True])
    assert np.all(np.isfinite(found.after.state.pipeline_state))


class Touching(Countdown):
    """Physics with a contact, whose distance is what it is told."""

    def __init__(self, distance: float) -> None:
        super().__init__(shortest=7)
        self.distance = distance

    def reset(self, rng: jax.Array) -> State:
        return super().reset(rng).replace(pipeline_state={"contact": {"dist": jnp.full(2, self.distance)}})


@pytest.mark.parametrize(("distance", "sound"), [(math.inf, True), (0.5, True), (math.nan, False)])
def test_a_contact_may_be_infinitely_far_away(distance: float, sound: bool) -> None:
    found = collect(vectorized(Touching(distance), 100), np.zeros((5, 2, 1)))
    assert found.transitions.valid.all() if sound else not found.transitions.valid.any()


def test_a_reward_that_is_not_finite_within_a_repetition_is_noticed() -> None:
    found = collect(vectorized(Faulty(Fault("reward", step=3)), 100, action_repeat=2), np.zeros((4, 2, 1)))
    assert np.array_equal(found.transitions.valid[:, 0], [True, False, True, False])
    assert np.all(found.transitions.reward[1::2] == 0)


# Types and trees


def leaves_of_all(environment) -> list:
    vector = vectorized(environment, 10)
    reset, starting_pool, _ = compiled(vector)
    keys = keys_of(0, 3)
    start, pool = jax.eval_shape(reset, keys.start), jax.eval_shape(starting_pool, keys.pool)
    taken, actions = jax.ShapeDtypeStruct((3,), jnp.int32), jax.ShapeDtypeStruct((3, 1), jnp.float32)
    after, transitions, _ = jax.eval_shape(vector.step, start, actions, pool, taken)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), start) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )
    return jax.tree_util.tree_leaves_with_path((start, pool, after, transitions))


@pytest.mark.parametrize(
    "environment", [WeaklyTyped(), IntegerReward(), History(), PointMass()], ids=lambda e: type(e).__name__
)
def test_brax_trap_weak_types_are_stripped(environment) -> None:
    weak = [jax.tree_util.keystr(path) for path, leaf in leaves_of_all(environment) if leaf.weak_type]
    assert weak == []


def test_stepping_compiles_once() -> None:
    vector = vectorized(WeaklyTyped(), 10)
    step, keys = jax.jit(vector.step), keys_of(0, 3)
    current, pool, taken = vector.reset(keys.start), vector.starting_pool(keys.pool), jnp.zeros(3, jnp.int32)
    for _ in range(3):
        current, _, taken = step(current, jnp.zeros((3, 1)), pool, taken)
    assert step._cache_size() == 1


def test_an_environment_may_begin_with_whole_numbers_and_go_on_with_fractions() -> None:
    found = collect(vectorized(IntegerReward(), 10), np.full((4, 2, 1), 0.75))
    assert np.all(found.transitions.reward == 0.375)
    assert np.all(found.transitions.episode_metrics["speed"] == 0.75)


def test_brax_trap_metrics_are_updated_in_place() -> None:
    vector = vectorized(History(), 10)
    state = jax.tree.map(lambda leaf: leaf[0], vector.reset(keys_of(0, 1).start).state)
    before = jax.tree.map(np.asarray, state)
    vector.simulate(state, jnp.array([0.5]))
    after = jax.tree.map(np.asarray, state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (ChangesShape(), r"returns obs of shape \(2,\) from step, \(1,\) from reset"),
        (ChangesShape(info_only=True), r"info\['extra'\] is in step's State only; begin it in reset"),
    ],
)
def test_step_and_reset_must_agree(environment, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        leaves_of_all(environment)
