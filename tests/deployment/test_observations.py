"""What an exported policy is tried on."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.deployment.conftest import compiled_once, with_specification
from tests.tiny_environments import Fault, Faulty, History
from trpo_brax.deployment.description import ArtifactError
from trpo_brax.deployment.formats import policy_act
from trpo_brax.deployment.observations import action_range, clip_limits, corner_observations, visited_observations
from trpo_brax.policy import ActionBounds, Policy
from trpo_brax.randomness import Stream, stream_key
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.run import Run


def test_visited_ones_are_those_of_the_policys_episodes(run: Run, policy: Policy) -> None:
    """Every one is among those that a Python loop meets; two actions are taken for each that is chosen."""
    evaluator = compiled_once(run, episodes=8, environment=History())
    found = visited_observations(evaluator, policy_act(policy), 12, episodes=8)
    key, environment = stream_key(jax.random.PRNGKey(0), Stream.VERIFICATION), History()
    met = []
    for episode in range(8):
        state = environment.reset(jax.random.split(jax.random.fold_in(key, episode))[0])
        while not state.done:
            met.append(np.asarray(state.obs))
            action = policy(state.obs)
            for _ in range(2):
                state = environment.step(state, action) if not state.done else state
    known = np.stack(met)
    assert found.shape == (12, 2) and found.dtype == np.float32
    distances = np.abs(found[:, None] - known[None]).max(axis=2).min(axis=1)
    assert distances.max() < 1e-5
    assert len(np.unique(found, axis=0)) >= 10


def test_more_than_one_batch_holds_comes_from_several(run: Run, policy: Policy) -> None:
    evaluator = compiled_once(run, episodes=8, environment=History())
    found = visited_observations(evaluator, policy_act(policy), 300, episodes=8)
    assert len(np.unique(found, axis=0)) > 40


def test_only_the_first_steps(run: Run, policy: Policy) -> None:
    """History counts them in eighths, two to a control step."""
    evaluator = compiled_once(run, episodes=8, environment=History())
    found = visited_observations(evaluator, policy_act(policy), 40, episodes=8, most_steps=1)
    assert set(found[:, 1].tolist()) == {0.0}


def test_an_environment_without_a_sound_start_is_refused(run: Run, policy: Policy) -> None:
    evaluator = Evaluator(run, episodes=8, environment=Faulty(Fault("observation", step=0)))
    with pytest.raises(ArtifactError, match=r"no episode of .*Faulty begins with a finite state"):
        visited_observations(evaluator, policy_act(policy), 4, episodes=8)


class TestCorners:
    """What no simulator gives."""

    def test_they_are_finite_and_as_many_as_asked_for(self, policy: Policy) -> None:
        for count in (1, 10, 1000):
            found = corner_observations(policy, count)
            assert found.shape == (count, 2) and found.dtype == np.float32 and np.isfinite(found).all()

    def test_they_hold_zeros_limits_extremes_and_both_signs(self, policy: Policy) -> None:
        found = corner_observations(policy, 1000)
        statistics, clip = policy.statistics, policy.specification.network.observation_clip
        limits = np.asarray(statistics.mean) + np.array([[-1], [1]]) * clip * np.asarray(statistics.std())
        largest = np.finfo(np.float32).max
        known = [[0.0, 0.0], *limits, [largest, largest], [-largest, -largest], [largest, -largest]]
        for row in np.asarray(known, np.float32):
            assert (np.abs(found / 2 - row / 2) <= 1e-6 * np.abs(row)).all(axis=1).any(), row
        assert ((np.abs(found) < 1e-20) & (found != 0)).any()
        assert ((found[:, 0] > 0) & (found[:, 1] < 0)).any() and ((found[:, 0] < 0) & (found[:, 1] > 0)).any()

    def test_each_component_by_itself(self, policy: Policy) -> None:
        found, mean = corner_observations(policy, 1000), np.asarray(policy.statistics.mean, np.float32)
        low, high = clip_limits(policy)
        for component in range(2):
            others = np.isclose(found[:, 1 - component], mean[1 - component])
            for value in (low[component], high[component]):
                assert (others & np.isclose(found[:, component], value)).any()

    def test_beyond_the_limits_nothing_changes(self, policy: Policy) -> None:
        low, high = clip_limits(policy)
        act = policy_act(policy)
        ends, beyond = np.stack([low, high]), np.stack([low - 100, high + 100])
        np.testing.assert_allclose(act(ends.astype(np.float32)), act(beyond.astype(np.float32)), atol=1e-5)


def test_the_unit_of_differences(policy: Policy) -> None:
    assert action_range(policy, np.zeros((3, 1))).tolist() == [0.75]
    unbounded = with_specification(policy, bounds=ActionBounds((-np.inf,), (np.inf,)))
    assert action_range(unbounded, np.array([[-3.0], [4.5]])).tolist() == [7.5]
    assert action_range(unbounded, np.array([[0.5]])).tolist() == [2.0]
