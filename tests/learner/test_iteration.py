"""One iteration: what the policy step is given, what is kept, and what changing units or rejecting a step does."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_environments import PointMass
from tests.tiny_programs import assert_bit_identical, tiny_config
from trpo_brax.algorithm import (
    PolicyBatch,
    generalized_advantage_estimation,
    sample_weights,
    standardize,
    trust_region_step,
)
from trpo_brax.config import Config, override
from trpo_brax.environments import VectorizedEnvironment, own_task
from trpo_brax.learner import iteration as iteration_module
from trpo_brax.learner.state import TrainState
from trpo_brax.policy import ActionBounds


@dataclasses.dataclass
class Setting:
    """Everything `Iteration` takes, and a state some iterations into a run."""

    config: Config
    environment: VectorizedEnvironment
    networks: Any
    bounds: ActionBounds
    state: TrainState

    def iterate(self, **changes: Any) -> tuple[TrainState, dict[str, Any]]:
        result: tuple[TrainState, dict[str, Any]] = jax.jit(self.iteration(**changes))(self.state)
        return result

    def iteration(self, **changes: Any) -> iteration_module.Iteration:
        return iteration_module.Iteration(
            override(self.config, **changes), self.environment, self.networks, self.bounds
        )


@pytest.fixture(scope="module")
def setting(programs: dict[int, Any]) -> Setting:
    program = programs[1]
    config = tiny_config()
    task = own_task(PointMass(), config.rollout)
    networks = program.specification.networks()
    environment = VectorizedEnvironment(task, episode_length=config.rollout.episode_length)
    state = jax.device_get(program.run(program.initial_state(), 3)[0])
    return Setting(config, environment, networks, program.specification.bounds, state)


@pytest.fixture(scope="module")
def batch(setting: Setting) -> PolicyBatch:
    """The batch that the policy step of the next iteration is given."""
    given: dict[str, PolicyBatch] = {}

    def watch(distribution_of: Any, parameters: Any, batch: PolicyBatch, *rest: Any) -> Any:
        given["batch"] = batch
        return trust_region_step(distribution_of, parameters, batch, *rest)

    def reveal(state: TrainState) -> PolicyBatch:
        setting.iteration()(state)
        return given["batch"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iteration_module, "trust_region_step", watch)
        return jax.device_get(jax.jit(reveal)(setting.state))


def test_peer_defect_01_a_rejected_step_restores_the_parameters(setting: Setting) -> None:
    """Tianshou (before 2026) kept the last candidate when every one was refused.

    At 1000 nats the quadratic model is far from the divergence, so both of two trials, far from the old policy, are
    refused: it stays bit for bit, and the rest goes on.
    """
    after, metrics = setting.iterate(max_kl=1e3, line_search_steps=2, damping=1e-3)
    assert int(metrics["step_outcome"]) != 0 and int(metrics["line_search_trials"]) == 2
    assert_bit_identical(after.policy, setting.state.policy)
    assert float(metrics["kl_mean"]) == float(metrics["surrogate_improvement"]) == float(metrics["step_fraction"]) == 0
    assert int(after.iteration) == 4
    assert float(after.statistics.count) > float(setting.state.statistics.count)


def test_peer_defect_05_observation_statistics_stay_until_the_end_and_then_move(
    setting: Setting, batch: PolicyBatch
) -> None:
    """Skrl updates them before the surrogate, so the ratio at the old policy is not 1; baselines' never move.

    Under the statistics from before the iteration, the policy reproduces the sampled actions from their own keys.
    """
    statistics = setting.state.statistics
    keys = iteration_module.environment_keys(
        setting.state.key, iteration_module.Stream.ACTION, 8, setting.state.iteration
    )
    distribution = setting.networks.distribution(setting.state.policy, batch.observations)
    for time in range(10):
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, time)
        noise = jax.vmap(lambda key: jax.random.normal(key, (1,)))(step_keys)
        sampled = distribution.mean[:, time] + jnp.exp(distribution.log_std) * noise
        np.testing.assert_allclose(batch.actions[:, time], sampled, rtol=1e-5, atol=1e-6)
    after, _ = setting.iterate()
    raw = batch.observations * statistics.std() + statistics.mean  # nothing is clipped in this task
    total = float(statistics.count) + 80
    mean = (float(statistics.count) * np.asarray(statistics.mean) + raw.sum(axis=(0, 1))) / total
    assert float(after.statistics.count) == total
    np.testing.assert_allclose(after.statistics.mean, mean, rtol=1e-4, atol=1e-5)


def test_advantages_reach_the_step_centred_and_scaled_once_over_the_batch(batch: PolicyBatch) -> None:
    np.testing.assert_allclose(batch.weights, 1 / 80, rtol=1e-6)
    assert np.mean(batch.advantages) == pytest.approx(0, abs=1e-6)
    assert np.std(batch.advantages) == pytest.approx(1, rel=1e-5)


def test_scaling_rewards_and_values_together_leaves_the_policy_step_unchanged(
    setting: Setting, batch: PolicyBatch
) -> None:
    """Powers of two scale exactly in floating point, so the step must agree to the last bit but for the critic's."""
    rng = np.random.default_rng(0)
    rewards, values, following = rng.normal(size=(3, 10, 8)).astype(np.float32)
    terminations = rng.random((10, 8)) < 0.1
    dones = terminations | (rng.random((10, 8)) < 0.1)
    weights = sample_weights(jnp.ones((10, 8), bool))

    def step(scale: float) -> Any:
        advantages, _ = generalized_advantage_estimation(
            scale * rewards, scale * values, scale * following, terminations, dones, discount=0.99, trace_decay=0.95
        )
        scaled = batch._replace(advantages=standardize(advantages, weights)[0].T)
        return trust_region_step(
            setting.networks.distribution, setting.state.policy, scaled, setting.config.trust_region
        )

    compiled = jax.jit(step)
    one, many = compiled(1.0), compiled(1024.0)
    assert float(one.fraction) > 0
    for ours, theirs in zip(jax.tree.leaves(one.parameters), jax.tree.leaves(many.parameters), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_reported_bound_is_the_theorem_on_the_batchs_raw_advantages(setting: Setting) -> None:
    """mean((ratio - 1) A_raw) / (1 - gamma) - 4 gamma max|A_raw| KL_max / (1 - gamma)^2, and null at gamma = 1."""
    _, metrics = setting.iterate()
    discount = setting.config.trust_region.discount
    largest, kl_max = float(metrics["advantage_max_abs"]), float(metrics["kl_max"])
    coefficient = 4 * largest * discount / (1 - discount) ** 2
    assert float(metrics["penalty_coefficient"]) == pytest.approx(coefficient, rel=1e-5)
    gain = (float(metrics["improvement_lower_bound"]) + coefficient * kl_max) * (1 - discount)
    assert 0 < gain < 2 * largest
    assert np.isnan(setting.iterate(discount=1.0)[1]["improvement_lower_bound"])


def test_surrogate_gain_in_raw_units_matches_a_direct_sum(setting: Setting, batch: PolicyBatch) -> None:
    """(ratio - 1) A_raw averaged over the batch, A_raw = std A + mean, against the closed form that saves the pass."""
    rng = np.random.default_rng(1)
    raw = rng.normal(3.0, 2.0, (8, 10)).astype(np.float32)
    advantages, mean, std = standardize(jnp.asarray(raw), batch.weights)
    step = jax.jit(
        lambda given: trust_region_step(
            setting.networks.distribution, setting.state.policy, given, setting.config.trust_region
        )
    )(batch._replace(advantages=advantages))
    old = setting.networks.distribution(setting.state.policy, batch.observations).log_prob(batch.actions)
    new = setting.networks.distribution(step.parameters, batch.observations).log_prob(batch.actions)
    direct = np.mean(np.expm1(np.asarray(new, np.float64) - np.asarray(old, np.float64)) * raw)
    ours = float(std * step.evaluation.improvement + mean * step.evaluation.ratio_excess)
    assert ours == pytest.approx(direct, rel=1e-3, abs=1e-5)
