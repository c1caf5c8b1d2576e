"""Probes of the learning dynamics, one way each in which learning goes wrong without a fault in any formula."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax.envs import State

from tests.tiny_environments import ZERO, RewardByAction, TinyEnvironment, unit
from tests.tiny_programs import tiny_config
from trpo_brax.algorithm import weighted_mean
from trpo_brax.environments import VectorizedEnvironment, own_task
from trpo_brax.learner.iteration import Iteration, Judgement
from trpo_brax.learner.program import Program
from trpo_brax.learner.state import TrainState
from trpo_brax.policy import CriticParameters, Policy

GROWTH, PUSH = 1.005, 0.01


class SlowlyUnstable(TinyEnvironment):
    """A point that drifts out by 0.5% of its distance a step, and ends at 1: from 1/4 in about 280 steps."""

    def reset(self, rng: jax.Array) -> State:
        position = unit(rng)[:1] / 4
        return State(position, position, ZERO, ZERO, {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        position = GROWTH * state.pipeline_state + PUSH * action
        gone = jnp.where(jnp.abs(position[0]) > 1, 1.0, 0.0)
        return state.replace(pipeline_state=position, obs=position, reward=ZERO + 1.0, done=gone)


class Noise(TinyEnvironment):
    """Pays a random number, whatever is done, and observes numbers around 300 that tell nothing."""

    def reset(self, rng: jax.Array) -> State:
        return State(None, 300 + 50 * unit(rng)[:1], ZERO, ZERO, {}, {"key": rng})

    def step(self, state: State, action: jax.Array) -> State:
        key, _ = jax.random.split(state.info["key"])
        numbers = unit(key)
        return state.replace(obs=300 + 50 * numbers[:1], reward=numbers[1], info={"key": key})


class Hurry(TinyEnvironment):
    """Pays 2 + x, ends with probability 0.02 x, x in [0, 1] by the action: worth (2 + x) / (1 - g + 0.02 g x)."""

    def reset(self, rng: jax.Array) -> State:
        return State(None, unit(rng)[:1], ZERO, ZERO, {}, {"key": rng})

    def step(self, state: State, action: jax.Array) -> State:
        key, drawn = jax.random.split(state.info["key"])
        haste = (1 + action[0]) / 2
        gone = jnp.where(jax.random.uniform(drawn) < 0.02 * haste, 1.0, 0.0)
        return state.replace(obs=unit(key)[:1], reward=2 + haste, done=gone, info={"key": key})


def program_of(environment: TinyEnvironment, **settings: Any) -> Program:
    config = tiny_config(**({"num_envs": 32, "unroll_length": 64, "critic_hidden_sizes": (16,)} | settings))
    return Program(config, own_task(environment, config.rollout), jax.devices()[:1])


def policies(program: Program, state: TrainState) -> list[Policy]:
    """Return the policy of each seed."""
    seeds = program.config.num_seeds
    leading = (state.policy, state.statistics)
    return [Policy(program.specification, *jax.tree.map(lambda leaf, at=i: leaf[at], leading)) for i in range(seeds)]


def test_a_slowly_unstable_mode_is_stabilised_on_every_seed() -> None:
    """What sees only tens of steps ahead, or leaves the action range for good, holds it for a while and not at all.

    By the mean action, from anywhere within 0.4, a policy of each of five seeds is within 1 for 3,000 steps, in which
    the drift alone grows to three million times; where it comes to rest, the closed loop's spectral radius is below 1.
    """
    steps = 60 * 32 * 64
    program = program_of(
        SlowlyUnstable(),
        num_seeds=5,
        episode_length=1000,
        discount=0.998,
        trace_decay=0.98,
        final_max_kl=1e-3,
        anneal_steps=steps,
    )
    state, _ = program.run(program.initial_state(), 60)
    starts = jnp.linspace(-0.4, 0.4, 9)
    for policy in policies(program, state):
        ends, farthest = jax.vmap(functools.partial(_followed, policy, steps=3000))(starts)
        assert np.max(farthest) < 1.0
        assert np.max(np.abs(jax.vmap(jax.grad(functools.partial(_closed_loop, policy)))(ends))) < 1.0


def _closed_loop(policy: Policy, position: jax.Array) -> jax.Array:
    return GROWTH * position + PUSH * policy(position[None])[0]


def _followed(policy: Policy, start: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    """Return where the mean action ends from a start, and how far out it was on the way."""

    def advance(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        position = jnp.clip(_closed_loop(policy, carry[0]), -2.0, 2.0)
        return (position, jnp.maximum(carry[1], jnp.abs(position))), None

    return jax.lax.scan(advance, (start, jnp.abs(start)), None, length=steps)[0]


def test_a_policy_comes_back_from_the_end_of_its_range() -> None:
    """A mean of 0.995 where 0 is best: most samples are clipped, but not all."""
    program = program_of(RewardByAction(target=0.0), unroll_length=32)
    state = program.initial_state()
    network = state.policy["params"]["MultilayerPerceptron_0"]
    network["output"]["bias"] = jnp.full_like(network["output"]["bias"], 3.0)
    before = program.specification.distribution(state.policy, state.statistics, jnp.zeros(1)).mean
    assert 0.99 < float(before[0]) < 1.0
    state, _ = program.run(state, 40)
    after = Policy(program.specification, state.policy, state.statistics)(jnp.zeros(1))
    assert abs(float(after[0])) < 0.1


def test_a_policy_that_hurried_at_a_short_horizon_is_careful_once_it_has_grown() -> None:
    """Haste pays while 1 - gamma > 0.04 gamma: at horizons of at most 26 steps, not at 200."""
    program = program_of(Hurry(), max_kl=0.03, discount=0.9, final_discount=0.995, anneal_steps=60 * 32 * 64)
    state, acts = program.initial_state(), []
    for iterations in (15, 60):
        state, _ = program.run(state, iterations)
        acts.append(float(Policy(program.specification, state.policy, state.statistics)(jnp.zeros(1))[0]))
    assert acts[0] > 0.5 and acts[1] < -0.5, acts


def test_noise_moves_a_policy_no_farther_than_a_random_walk_and_observations_do_not_move_it() -> None:
    """Rewards that no action changes, and observations of 300 +- 30.

    Steps in independent directions add up in their squares: so the divergence of the last policy from the first is
    about the sum of the steps' own, and n times as much if anything drives them one way. Raw observations are a
    hundred times normalised ones: before they have statistics nothing is learned from them.
    """
    program = program_of(Noise(), episode_length=16, final_max_kl=1e-3, anneal_steps=30 * 32 * 64)
    first = program.initial_state()
    begin = jax.device_get(first.policy)
    state, metrics = program.run(first, 40)
    kl, drift = (np.asarray(metrics[name][:40]) for name in ("kl_mean", "normalisation_kl"))
    assert int(metrics["step_outcome"][0]) == 6 and kl[0] == 0
    assert np.all(kl <= np.asarray(metrics["max_kl"][:40]) * (1 + 1e-6))
    np.testing.assert_allclose(np.asarray(metrics["max_kl"])[[0, 15, 30, 39]], [0.01, 0.0055, 0.001, 0.001], rtol=1e-5)
    assert drift[1:].max() < 1e-8 and drift[0] < 1e-3
    observations = jnp.linspace(-1.7, 1.7, 101)[:, None]
    old, new = (program.specification.networks().distribution(one, observations) for one in (begin, state.policy))
    assert float(jnp.mean(old.kl(new))) < 4 * kl.sum()


def test_the_critics_loss_does_not_rise_when_the_spread_of_its_targets_falls_and_comes_back() -> None:
    """A hundredfold, for twenty iterations: in units of return every fit leaves a loss no larger than it found."""
    program = program_of(RewardByAction(), num_envs=16, unroll_length=16)
    environment = VectorizedEnvironment(program.task, episode_length=16)
    specification = program.specification
    iteration = Iteration(program.config, environment, specification.networks(), specification.bounds)
    rng = np.random.default_rng(0)
    state = program.initial_state()
    seen = jnp.asarray(rng.standard_normal((16, 16, 1)), jnp.float32)
    statistics = state.statistics.updated(seen, jnp.ones((16, 16), bool))
    state = dataclasses.replace(state, statistics=statistics, iteration=jnp.int32(1))
    weights = jnp.full((16, 16), 1 / 256)

    def loss(critic: CriticParameters, observations: jax.Array, targets: jax.Array) -> jax.Array:
        """In units of return squared."""
        return weighted_mean(jnp.square(iteration.networks.value(critic, observations) - targets), weights)

    @jax.jit
    def fitted(state: TrainState, observations: jax.Array, targets: jax.Array) -> Any:
        nothing = jnp.zeros_like(targets)
        judgement = Judgement(
            observations=observations,
            actions=nothing[..., None],
            valid=nothing == 0,
            weights=weights,
            values=nothing,
            raw_advantages=nothing,
            targets=targets,
            returns=targets,
            advantages=nothing,
            advantage_mean=ZERO,
            advantage_std=ZERO,
        )
        critic, _ = iteration.fit(state, judgement)
        losses = [loss(one, observations, targets) for one in (state.critic, critic)]
        return dataclasses.replace(state, critic=critic, iteration=state.iteration + 1), losses

    after: list[float] = []
    spreads = [30.0] * 20 + [0.3] * 20 + [30.0] * 5
    for spread in spreads:
        observations = rng.standard_normal((16, 16, 1))
        targets = 400 + spread * (np.sin(2 * observations[..., 0]) + 0.1 * rng.standard_normal((16, 16)))
        state, losses = fitted(state, jnp.asarray(observations, jnp.float32), jnp.asarray(targets, jnp.float32))
        assert float(losses[1]) <= float(losses[0]) * (1 + 1e-5)
        after.append(float(losses[1]))
    assert after[19] < 30.0**2 * 0.05
    assert after[39] < 0.3**2 * 2, "the noise of the small spread alone is 0.01 of its square"
    assert after[-1] < 30.0**2 * 0.05, "after the spread has come back"
