"""Episodes run in parallel are those that a plain Python loop runs one by one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_environments import Countdown, EndsItself, Fault, Faulty, History, PointMass, TinyEnvironment
from trpo_brax.config import NetworkConfig, RolloutConfig
from trpo_brax.environments import Task, own_task
from trpo_brax.evaluation import EpisodeRunner, Episodes, EvaluationStopped, Watcher, batch_size, policy_actor
from trpo_brax.policy import ActionBounds, ObservationStatistics, Policy, PolicySpecification

KEY = jax.random.PRNGKey(7)
LIMIT = 10


def task_of(environment: TinyEnvironment, **bounds: float) -> Task:
    """Return the environment as a task."""
    return own_task(environment, RolloutConfig(**bounds))


def policy_for(task: Task, seed: int = 0) -> Policy:
    """Return an untrained policy whose actions depend on the observation and often meet the bounds."""
    network = NetworkConfig(policy_hidden_sizes=(8,), policy_output_scale=1.5, initial_log_std=0.0)
    bounds = ActionBounds(task.action_low, task.action_high)
    specification = PolicySpecification(network, task.observation_size, bounds)
    generator = np.random.default_rng(seed)
    size = task.observation_size
    squares = 50.0 * generator.uniform(0.1, 2.0, size)
    moments = (np.asarray(50.0), generator.normal(size=size), squares)
    statistics = ObservationStatistics(*(jnp.asarray(moment, jnp.float32) for moment in moments))
    return Policy(specification, specification.networks().initial_policy(jax.random.PRNGKey(seed)), statistics)


def run_episodes(
    task: Task, policy: Policy, *, episodes: int, key: jax.Array, stochastic: bool = False, **options: Any
) -> Episodes:
    """Run episodes of one policy, all in one batch."""
    act = policy_actor(policy.specification, stochastic=stochastic)
    runner = EpisodeRunner(task, act, batch=episodes, **options)
    return runner.run((policy.parameters, policy.statistics), key, episodes=episodes)


def one_by_one(
    task: Task, policy: Policy, episodes: int, limit: int = LIMIT, action_repeat: int = 1, stochastic: bool = False
) -> list[dict[str, Any]]:
    """Run episodes in Python: an episode's key is split into one for its start and one for its actions."""
    reset, step, act = jax.jit(task.environment.reset), jax.jit(task.environment.step), jax.jit(policy.__call__)
    found = []
    for episode in range(episodes):
        start_key, action_key = jax.random.split(jax.random.fold_in(KEY, episode))
        state, total, length, terminated, broken = reset(start_key), 0.0, 0, False, False
        broken = not np.isfinite(state.obs).all()
        while length < limit and not terminated and not broken:
            action = act(state.obs, jax.random.fold_in(action_key, length)) if stochastic else act(state.obs)
            reward, done, truncated = 0.0, False, False
            for _ in range(action_repeat):
                state = step(state, action)
                reward += float(state.reward)
                broken |= not (np.isfinite(state.obs).all() and np.isfinite(float(state.reward)))
                done = bool(state.done > 0.5)
                if done:
                    truncated = bool(state.info.get("truncation", 0.0) > 0.5)
                    break
            length += 1
            total += 0.0 if broken else reward
            terminated = done and not truncated and not broken
            if done:
                break
        found.append({"returns": total, "lengths": length, "terminated": terminated, "nonfinite": broken})
    return found


def assert_same(episodes: Episodes, wanted: list[dict[str, Any]]) -> None:
    """Compare all four figures of every episode."""
    for name in ("lengths", "terminated", "nonfinite"):
        np.testing.assert_array_equal(getattr(episodes, name), [one[name] for one in wanted], err_msg=name)
    np.testing.assert_allclose(episodes.returns, [one["returns"] for one in wanted], rtol=1e-5, atol=1e-5)


class TestAgainstALoop:
    """The same episodes, one at a time."""

    @pytest.mark.parametrize("stochastic", [False, True], ids=["mean", "sampled"])
    def test_returns_lengths_and_ends(self, stochastic: bool) -> None:
        task = task_of(History(), action_low=-0.5, action_high=2.0)
        policy = policy_for(task)
        found = run_episodes(task, policy, episodes=12, episode_length=5, key=KEY, stochastic=stochastic)
        assert_same(found, one_by_one(task, policy, 12, limit=5, stochastic=stochastic))
        assert found.terminated.any() and not found.terminated.all()
        assert found.returns.dtype == np.float32 and len(np.unique(found.returns)) > 6

    def test_a_repeated_action_is_one_step_and_stops_at_the_end(self) -> None:
        task = task_of(History())
        policy = policy_for(task)
        found = run_episodes(task, policy, episodes=8, episode_length=LIMIT, action_repeat=2, key=KEY)
        assert_same(found, one_by_one(task, policy, 8, action_repeat=2))
        assert found.lengths.max() <= 4

    @pytest.mark.parametrize(
        "fault",
        [
            Fault("reward", step=3, one_in=2),
            Fault("observation", value=float("inf"), step=3, one_in=2),
            Fault("observation", step=0, one_in=2),
        ],
        ids=["reward", "observation", "start"],
    )
    def test_a_non_finite_state_ends_the_episode_and_is_not_paid(self, fault: Fault) -> None:
        task = task_of(Faulty(fault))
        policy = policy_for(task)
        found = run_episodes(task, policy, episodes=12, episode_length=LIMIT, key=KEY)
        assert_same(found, one_by_one(task, policy, 12))
        assert set(found.lengths) == {fault.step, LIMIT} and np.isfinite(found.returns).all()
        np.testing.assert_array_equal(found.nonfinite, found.lengths == fault.step)
        assert not found.terminated.any()

    def test_non_finite_physics_counts_too(self) -> None:
        task = task_of(Faulty(Fault("physics", step=4)))
        found = run_episodes(task, policy_for(task), episodes=4, episode_length=LIMIT, key=KEY)
        assert found.nonfinite.all() and set(found.lengths) == {4}


class TestSums:
    """Rewards added up in single precision."""

    @pytest.mark.parametrize("reward", [-0.3, -0.7, 0.1])
    def test_a_thousand_rewards_are_a_thousand_times_one(self, reward: float) -> None:
        """Added one by one -0.3 makes -300.00006."""
        task = dataclasses.replace(task_of(EndsItself(1000)), environment=PaysItsAction(1000))
        act = lambda parameters, observations, keys: jnp.full((observations.shape[0], 1), reward)
        found = EpisodeRunner(task, act, batch=1, episode_length=1000).run(None, KEY, episodes=1)
        assert found.returns[0] == np.float32(1000.0 * np.float64(np.float32(reward)))

    def test_a_sum_that_single_precision_cannot_hold_is_non_finite_and_not_paid(self) -> None:
        task = dataclasses.replace(task_of(EndsItself(5)), environment=PaysItsAction(5))
        act = lambda parameters, observations, keys: jnp.full((observations.shape[0], 1), 1.5e38)
        found = EpisodeRunner(task, act, batch=1, episode_length=LIMIT).run(None, KEY, episodes=1)
        assert found.nonfinite.all() and found.lengths[0] == 3 and found.returns[0] == np.float32(3e38)


class TestEnds:
    """What ends an episode, and what that is called."""

    @pytest.mark.parametrize(("truncates", "limit"), [(False, LIMIT), (True, LIMIT), (False, 5), (False, 3)])
    def test_a_time_limit_is_no_failure(self, truncates: bool, limit: int) -> None:
        task = task_of(EndsItself(5, truncates))
        found = run_episodes(task, policy_for(task), episodes=4, episode_length=limit, key=KEY)
        length = min(5, limit)
        assert set(found.lengths) == {length} and set(found.returns) == {float(length)}
        assert set(found.terminated) == {limit >= 5 and not truncates}
        assert not found.nonfinite.any()

    def test_only_the_first_episode_of_each_environment_counts(self) -> None:
        """Each pays 1 a step until its own end; those that end early must not begin another."""
        task = task_of(Countdown(1, 9))
        found = run_episodes(task, policy_for(task), episodes=32, episode_length=LIMIT, key=KEY)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(KEY, i))[0])(jnp.arange(32))
        limits = jax.vmap(task.environment.reset)(keys).info["limit"]
        np.testing.assert_array_equal(found.lengths, limits)
        np.testing.assert_array_equal(found.returns, limits)
        assert found.terminated.all() and len(set(found.lengths)) > 4

    def test_it_stops_when_all_have_ended(self) -> None:
        """A limit of two thousand million steps would otherwise take for ever."""
        task = task_of(Countdown(2, 4))
        found = run_episodes(task, policy_for(task), episodes=4, episode_length=2**31 - 1, key=KEY)
        assert found.lengths.max() <= 4


class TestKeys:
    """An episode depends on the key and its own number alone."""

    @pytest.mark.parametrize("stochastic", [False, True], ids=["mean", "sampled"])
    def test_two_devices_give_what_one_gives(self, stochastic: bool) -> None:
        task = task_of(PointMass())
        policy = policy_for(task)
        options = {"episodes": 6, "episode_length": LIMIT, "key": KEY, "stochastic": stochastic}
        runs = [run_episodes(task, policy, **options, devices=jax.devices()[:count]) for count in (1, 2)]
        for field in dataclasses.fields(Episodes):
            ours, theirs = (getattr(run, field.name) for run in runs)
            assert ours.shape == theirs.shape == (6,)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=field.name)

    def test_more_episodes_begin_with_the_same(self) -> None:
        task = task_of(History())
        policy = policy_for(task)
        few, many = (run_episodes(task, policy, episodes=n, episode_length=LIMIT, key=KEY) for n in (4, 9))
        np.testing.assert_array_equal(few.lengths, many.lengths[:4])
        np.testing.assert_allclose(few.returns, many.returns[:4], rtol=1e-6)

    def test_another_key_gives_other_episodes(self) -> None:
        task = task_of(History())
        policy = policy_for(task)
        keys = [jax.random.PRNGKey(seed) for seed in (0, 1)]
        ours, theirs = (run_episodes(task, policy, episodes=8, episode_length=LIMIT, key=key) for key in keys)
        assert not np.array_equal(ours.returns, theirs.returns)

    def test_no_two_environments_sample_alike(self) -> None:
        """At the same observation, actions drawn for different episodes and steps differ."""
        task = task_of(EndsItself(50))
        policy = policy_for(task)
        paid = dataclasses.replace(task, environment=PaysItsAction(50))
        found = run_episodes(paid, policy, episodes=64, episode_length=1, key=KEY, stochastic=True)
        inside = found.returns[np.abs(found.returns) < 1.0]
        assert inside.size > 10 and np.unique(inside).size == inside.size


class PaysItsAction(EndsItself):
    """Pays the action it receives, or a multiple of it."""

    def __init__(self, limit: int, scale: float | jax.Array = 1.0) -> None:
        super().__init__(limit)
        self._scale = scale

    def step(self, state: Any, action: jax.Array) -> Any:
        return super().step(state, action).replace(reward=self._scale * action[0])


@pytest.fixture(scope="module")
def pausing() -> tuple[Task, Policy, EpisodeRunner]:
    """A runner of batches of 4, over two devices, of sampled actions; its episodes end at different times."""
    task = task_of(History())
    policy = policy_for(task)
    act = policy_actor(policy.specification, stochastic=True)
    runner = EpisodeRunner(task, act, batch=4, episode_length=LIMIT, devices=jax.devices()[:2])
    return task, policy, runner


def assert_bit_for_bit(ours: Episodes, theirs: Episodes) -> None:
    """Compare every bit of every episode."""
    for field in dataclasses.fields(Episodes):
        assert getattr(ours, field.name).tobytes() == getattr(theirs, field.name).tobytes(), field.name


class TestBatches:
    """More episodes than run at once."""

    def test_batches_are_the_episodes_of_a_loop_and_a_last_short_one_adds_none(
        self, pausing: tuple[Task, Policy, EpisodeRunner]
    ) -> None:
        task, policy, runner = pausing
        found = runner.run((policy.parameters, policy.statistics), KEY, episodes=10)
        assert_same(found, one_by_one(task, policy, 10, stochastic=True))

    @pytest.mark.parametrize("episodes", [1, 3, 4, 5])
    def test_any_number_is_the_beginning_of_more(
        self, pausing: tuple[Task, Policy, EpisodeRunner], episodes: int
    ) -> None:
        _, policy, runner = pausing
        acting = (policy.parameters, policy.statistics)
        assert_bit_for_bit(
            runner.run(acting, KEY, episodes=episodes), runner.run(acting, KEY, episodes=9).first(episodes)
        )

    def test_one_program_serves_all(self, pausing: tuple[Task, Policy, EpisodeRunner]) -> None:
        """What counts is how often the policy is traced."""
        task, policy, _ = pausing
        traced = []
        act = policy_actor(policy.specification, stochastic=False)
        counting = lambda acting, observations, keys: traced.append(None) or act(acting, observations, keys)
        runner = EpisodeRunner(task, counting, batch=4, episode_length=LIMIT)
        for episodes in (3, 4, 11):
            runner.run((policy.parameters, policy.statistics), KEY, episodes=episodes)
        assert len(traced) == 1

    @pytest.mark.parametrize(
        ("episodes", "devices", "wanted"), [(1, 1, 1), (7, 2, 8), (8, 2, 8), (10_000, 2, 2048), (10_000, 3, 3072)]
    )
    def test_the_size_of_a_batch(self, episodes: int, devices: int, wanted: int) -> None:
        assert batch_size(episodes, devices) == wanted


class TestAHostsPolicy:
    """A policy that is no JAX."""

    def test_its_episodes_are_those_of_the_compiled_one(self, pausing: tuple[Task, Policy, EpisodeRunner]) -> None:
        task, policy, _ = pausing
        act = policy_actor(policy.specification, stochastic=False)
        runner = EpisodeRunner(task, act, batch=4, episode_length=LIMIT)
        wanted = runner.run((policy.parameters, policy.statistics), KEY, episodes=10)
        compiled = jax.jit(policy.__call__)
        found = runner.run_by_host(lambda observations: np.asarray(compiled(observations)), KEY, episodes=10)
        for name in ("lengths", "terminated", "nonfinite"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        np.testing.assert_allclose(found.returns, wanted.returns, rtol=1e-6)

    def test_its_actions_are_what_is_done(self) -> None:
        paid = dataclasses.replace(task_of(EndsItself(3)), environment=PaysItsAction(3))
        runner = EpisodeRunner(paid, lambda *_: pytest.fail("nobody asked"), batch=2, episode_length=LIMIT)
        found = runner.run_by_host(lambda observations: np.array([[0.25], [-0.5]]), KEY, episodes=2)
        np.testing.assert_array_equal(found.returns, [0.75, -1.5])


class TestRecording:
    """Episodes seen again, step by step."""

    def test_it_is_the_same_episode_and_its_states_follow_from_each_other(
        self, pausing: tuple[Task, Policy, EpisodeRunner]
    ) -> None:
        task, policy, runner = pausing
        acting = (policy.parameters, policy.statistics)
        whole = runner.run(acting, KEY, episodes=10)
        found = runner.record(acting, KEY, episodes=10, chosen=[9, 1, 2])
        assert sorted(found) == [1, 2, 9]
        for index, recording in found.items():
            assert_bit_for_bit(recording.episode, Episodes(*(x[index : index + 1] for x in vars(whole).values())))
            assert len(recording.physics) == len(recording.returns) == whole.lengths[index] + 1
            assert recording.returns[0] == 0.0 and recording.returns[-1] == whole.returns[index]
            start = jax.jit(task.environment.reset)(jax.random.split(jax.random.fold_in(KEY, index))[0])
            jax.tree.map(np.testing.assert_array_equal, recording.physics[0], jax.device_get(start.pipeline_state))


class TestWatching:
    """Somebody who is asked and told while episodes run."""

    def test_it_changes_nothing_is_told_of_the_episodes_that_ended_and_stops(
        self, pausing: tuple[Task, Policy, EpisodeRunner]
    ) -> None:
        _, policy, runner = pausing
        acting, told, asked = (policy.parameters, policy.statistics), [], []
        whole = runner.run(acting, KEY, episodes=10)
        watcher = Watcher(lambda: bool(asked.append(None)), told.append)
        assert_bit_for_bit(runner.run(acting, KEY, episodes=10, watcher=watcher), whole)
        assert told == sorted(told) and told[-1] == 10 and len(set(told)) > 3
        limit = len(asked)
        assert limit > 3
        asked.clear()
        halting = Watcher(lambda: bool(asked.append(None)) or len(asked) == limit - 1)
        with pytest.raises(EvaluationStopped):
            runner.run(acting, KEY, episodes=10, watcher=halting)
        assert len(asked) == limit - 1


class TestWorlds:
    """One program for a family of environments."""

    def test_the_world_decides_and_is_traced_once(self) -> None:
        base, built = task_of(PaysItsAction(4)), []

        def family(scale: jax.Array) -> Task:
            built.append(scale)
            return dataclasses.replace(base, environment=PaysItsAction(4, scale))

        act = lambda parameters, observations, keys: jnp.ones((observations.shape[0], 1))
        runner = EpisodeRunner(family, act, batch=2, episode_length=LIMIT)
        for scale in (0.5, 2.0):
            found = runner.run(None, KEY, episodes=3, world=jnp.float32(scale))
            np.testing.assert_array_equal(found.returns, [4 * scale] * 3)
        assert all(isinstance(scale, jax.core.Tracer) for scale in built) and len(built) <= 3
