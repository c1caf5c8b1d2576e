"""Probe environments, one fault each: what a trainer must learn is known in closed form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_environments import (
    ConstantReward,
    DelayedReward,
    EndsItself,
    RewardByAction,
    RewardByObservation,
    TinyEnvironment,
)
from tests.tiny_programs import tiny_config
from trpo_brax.environments import own_task
from trpo_brax.learner.program import Program
from trpo_brax.learner.state import TrainState
from trpo_brax.policy import Policy

SETTINGS: dict[str, Any] = {
    "num_envs": 32,
    "unroll_length": 50,
    "episode_length": 1000,
    "policy_hidden_sizes": (16,),
    "critic_hidden_sizes": (16,),
    "max_kl": 0.05,
}


def learn(environment: TinyEnvironment, iterations: int, **settings: Any) -> tuple[Program, TrainState]:
    config = tiny_config(**(SETTINGS | settings))
    program = Program(config, own_task(environment, config.rollout), jax.devices()[:1])
    state, _ = program.run(program.initial_state(), iterations)
    return program, state


def value(program: Program, state: TrainState, observation: list[float]) -> float:
    normalized = state.statistics.normalize(jnp.array(observation), program.config.network.observation_clip)
    return float(program.specification.networks().value(state.critic, normalized))


def action(program: Program, state: TrainState, observation: list[float]) -> float:
    return float(Policy(program.specification, state.policy, state.statistics)(jnp.array(observation))[0])


def test_constant_reward_is_worth_its_discounted_sum_through_time_limits() -> None:
    """V = 1 / (1 - 0.9) = 10; treating the limit of 7 steps as an end would give at most 5.2."""
    program, state = learn(ConstantReward(), 60, discount=0.9, episode_length=7)
    for observation in (-0.8, 0.0, 0.8):
        assert value(program, state, [observation]) == pytest.approx(10.0, rel=0.03)


def test_the_critic_reads_the_observation() -> None:
    """Without discounting ahead, V(s) is the observed sign itself."""
    program, state = learn(RewardByObservation(), 30, discount=0.0)
    assert value(program, state, [1.0]) == pytest.approx(1.0, abs=0.05)
    assert value(program, state, [-1.0]) == pytest.approx(-1.0, abs=0.05)


@pytest.mark.parametrize("mode", ["trpo", "natural_gradient"])
def test_the_policy_finds_the_best_action(mode: str) -> None:
    """A bandit that pays 1 - (action - 0.5)^2."""
    program, state = learn(RewardByAction(target=0.5), 40, mode=mode)
    for observation in (-0.8, 0.0, 0.8):
        assert action(program, state, [observation]) == pytest.approx(0.5, abs=0.06)


def test_a_reward_delayed_reaches_the_action_that_earned_it() -> None:
    """The first action of an episode is paid at its fourth step; the largest is best, the others are free."""
    program, state = learn(DelayedReward(delay=4), 40)
    assert action(program, state, [0.0]) > 0.9


@pytest.mark.parametrize(("truncates", "expected"), [(False, 2.629), (True, 10.0)])
def test_peer_defect_08_a_time_limit_is_not_an_end(truncates: bool, expected: float) -> None:
    """Rsl_rl, skrl, purejaxrl and rejax bootstrap a time limit from V(s_t), or treat it as an end.

    One and the same observation all along and episodes of 5 steps that pay 1 each. If they really end, the five states
    are worth (1 - 0.9^k) / (1 - 0.9) for k = 1..5, on average 2.629; if a time limit cuts them off, 1 / (1 - 0.9).
    """
    program, state = learn(EndsItself(5, truncates=truncates), 50, discount=0.9, trace_decay=1.0)
    assert np.mean([(1 - 0.9**k) / 0.1 for k in range(1, 6)]) == pytest.approx(2.629, abs=1e-3)
    assert value(program, state, [1.0]) == pytest.approx(expected, rel=0.04)
