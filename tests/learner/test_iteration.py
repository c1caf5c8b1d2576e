"""One iteration: what the policy step is given, what is kept, and what changing units or rejecting a step does."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_environments import PointMass
from tests.tiny_programs import assert_bit_identical, tiny_config
from trpo_brax.algorithm import TrustRegionStep, generalized_advantage_estimation, sample_weights, standardize
from trpo_brax.config import Config, override
from trpo_brax.environments import VectorizedEnvironment, own_task
from trpo_brax.learner.iteration import Iteration, Judgement
from trpo_brax.learner.metrics import step_metrics
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.learner.state import TrainState
from trpo_brax.learner.steps import policy_batch
from trpo_brax.policy import ActionBounds
from trpo_brax.randomness import Stream, environment_keys


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

    @functools.cached_property
    def judge(self) -> Callable[[Trajectory], Judgement]:
        compiled = jax.jit(lambda trajectory: self.iteration().judge(self.state, trajectory))
        return lambda trajectory: jax.device_get(compiled(trajectory))

    @functools.cached_property
    def step(self) -> Callable[[jax.Array, Judgement], TrustRegionStep]:
        """(advantages [N, T], judgement) -> the policy's step by them."""

        @jax.jit
        def step(advantages: jax.Array, judgement: Judgement) -> TrustRegionStep:
            return self.iteration().improve(self.state, judgement._replace(advantages=advantages))

        return step

    def iteration(self, **changes: Any) -> Iteration:
        return Iteration(override(self.config, **changes), self.environment, self.networks, self.bounds)


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
def iterated(setting: Setting) -> tuple[TrainState, dict[str, Any]]:
    return setting.iterate()


@pytest.fixture(scope="module")
def trajectory(setting: Setting) -> Trajectory:
    result: Trajectory = jax.device_get(jax.jit(setting.iteration().gather)(setting.state)[1])
    return result


@pytest.fixture(scope="module")
def judgement(setting: Setting, trajectory: Trajectory) -> Judgement:
    """What the policy step of the next iteration is given."""
    return setting.judge(trajectory)


def raw_of(setting: Setting, judgement: Judgement) -> jax.Array:
    """Return observations [N, T, observation] as they were; nothing is clipped in this task."""
    return judgement.observations * setting.state.statistics.std() + setting.state.statistics.mean


def acts(setting: Setting, state: TrainState, raw: jax.Array) -> Any:
    """Return what a state's policy draws from, on raw observations."""
    normalized = state.statistics.normalize(raw, setting.config.network.observation_clip)
    return setting.networks.distribution(state.policy, normalized)


def test_peer_defect_01_a_rejected_step_restores_the_parameters(setting: Setting, judgement: Judgement) -> None:
    """Tianshou (before 2026) kept the last candidate when every one was refused.

    At 1000 nats the quadratic model is far from the divergence, so both of two trials, far from the old policy, are
    refused: it stays bit for bit, and the rest goes on; then it is the same policy for statistics that moved.
    """
    changes = {"max_kl": 1e3, "line_search_steps": 2, "damping": 1e-3}
    step = jax.jit(setting.iteration(**changes).improve)(setting.state, judgement)
    assert int(step.taken.outcome) != 0
    assert_bit_identical(step.parameters, setting.state.policy)
    after, metrics = setting.iterate(**changes)
    assert_bit_identical(after.policy["params"]["log_std"], setting.state.policy["params"]["log_std"])
    assert int(metrics["step_outcome"]) != 0 and int(metrics["line_search_trials"]) == 2
    raw = raw_of(setting, judgement)
    np.testing.assert_allclose(
        acts(setting, after, raw).mean, acts(setting, setting.state, raw).mean, rtol=1e-5, atol=1e-6
    )
    assert float(metrics["kl_mean"]) == float(metrics["surrogate_improvement"]) == float(metrics["step_fraction"]) == 0
    assert int(after.iteration) == 4
    assert float(after.statistics.count) > float(setting.state.statistics.count)


@pytest.mark.parametrize("accepted", [True, False], ids=["accepted", "refused"])
def test_a_standard_deviation_that_is_led_is_moved_by_no_step(
    setting: Setting, judgement: Judgement, accepted: bool
) -> None:
    """After 4 of 10 iterations it is four tenths of its way, and the step's KL is the means' alone."""
    policy = setting.networks.policy.clone(learned_log_std=False)
    led = dataclasses.replace(setting, networks=dataclasses.replace(setting.networks, policy=policy))
    refused = {} if accepted else {"max_kl": 1e3, "line_search_steps": 2, "damping": 1e-3}
    after, metrics = led.iterate(final_log_std=-2.5, anneal_steps=800, **refused)
    assert (int(metrics["step_outcome"]) == 0) == (float(metrics["kl_mean"]) > 1e-3) == accepted
    np.testing.assert_allclose(after.policy["params"]["log_std"], -0.5 + 0.4 * (-2.5 + 0.5), rtol=1e-6)
    old, new = (acts(led, state, raw_of(setting, judgement)) for state in (setting.state, after))
    moved = (np.float64(new.mean) - np.float64(old.mean)) / np.exp(np.float64(old.log_std))
    np.testing.assert_allclose(metrics["kl_mean"], np.mean(np.square(moved).sum(axis=-1)) / 2, rtol=1e-4, atol=1e-10)


def test_peer_defect_05_observation_statistics_stay_until_the_end_and_then_move(
    setting: Setting, judgement: Judgement, iterated: tuple[TrainState, dict[str, Any]]
) -> None:
    """Skrl updates them before the surrogate, so the ratio at the old policy is not 1; baselines' never move.

    Under the statistics from before the iteration, the policy reproduces the sampled actions from their own keys.
    """
    statistics = setting.state.statistics
    keys = environment_keys(setting.state.key, Stream.ACTION, 8, setting.state.iteration)
    distribution = setting.networks.distribution(setting.state.policy, judgement.observations)
    for time in range(10):
        step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, time)
        noise = jax.vmap(lambda key: jax.random.normal(key, (1,)))(step_keys)
        sampled = distribution.mean[:, time] + jnp.exp(distribution.log_std) * noise
        np.testing.assert_allclose(judgement.actions[:, time], sampled, rtol=1e-5, atol=1e-6)
    after, _ = iterated
    raw = raw_of(setting, judgement)
    total = float(statistics.count) + 80
    mean = (float(statistics.count) * np.asarray(statistics.mean) + raw.sum(axis=(0, 1))) / total
    assert float(after.statistics.count) == total
    np.testing.assert_allclose(after.statistics.mean, mean, rtol=1e-4, atol=1e-5)


def test_the_critic_that_was_fitted_is_the_same_function_for_statistics_that_moved(
    setting: Setting, judgement: Judgement, iterated: tuple[TrainState, dict[str, Any]]
) -> None:
    fitted = jax.jit(setting.iteration().fit)(setting.state, judgement)[0]
    after, _ = iterated
    normalized = after.statistics.normalize(raw_of(setting, judgement), setting.config.network.observation_clip)
    expected = setting.networks.value(fitted, judgement.observations)
    np.testing.assert_allclose(setting.networks.value(after.critic, normalized), expected, rtol=1e-4, atol=1e-4)


def test_a_discount_that_is_led_shapes_the_targets_of_its_iteration(setting: Setting, trajectory: Trajectory) -> None:
    """Half-way from a horizon of 10 to one of 1,000 it is 100: the judgement that a constant 0.99 makes, and the bound.

    The state is after 3 of 6 iterations of 80 steps.
    """
    led = setting.iteration(discount=0.9, final_discount=0.999, anneal_steps=480)
    constant = setting.iteration(discount=0.99)
    ours, theirs = (jax.jit(one.judge)(setting.state, trajectory) for one in (led, constant))
    np.testing.assert_allclose(ours.targets, theirs.targets, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.raw_advantages, theirs.raw_advantages, rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(ours.targets - jax.jit(setting.iteration().judge)(setting.state, trajectory).targets)) > 0.01
    metrics = setting.iterate(discount=0.9, final_discount=0.999, anneal_steps=480)[1]
    coefficient = 4 * float(metrics["advantage_max_abs"]) * 0.99 / 0.01**2
    assert float(metrics["discount"]) == pytest.approx(0.99, rel=1e-6)
    assert float(metrics["penalty_coefficient"]) == pytest.approx(coefficient, rel=1e-4)
    assert float(led.discount(dataclasses.replace(setting.state, iteration=jnp.int32(9)))) == pytest.approx(
        0.999, rel=1e-6
    )


def test_the_critic_is_told_how_much_it_explains_of_what_was_observed(
    setting: Setting, trajectory: Trajectory, iterated: tuple[TrainState, dict[str, Any]]
) -> None:
    """1 - Var(G - V) / Var(G) in float64: G sums rewards up to an episode's end, or the batch's and V from there."""
    transitions, discount = trajectory.transitions, setting.config.trust_region.discount
    clip = setting.config.network.observation_clip

    def value(observations: jax.Array) -> np.ndarray[Any, Any]:
        normalized = setting.state.statistics.normalize(observations, clip)
        return np.asarray(setting.networks.value(setting.state.critic, normalized), np.float64)

    after = np.where(transitions.termination, 0.0, value(transitions.next_observation))
    returns = np.zeros((8, 11))
    returns[:, -1] = after[:, -1]
    for time in reversed(range(10)):
        following = np.where(transitions.done[:, time], after[:, time], returns[:, time + 1])
        returns[:, time] = transitions.reward[:, time] + discount * following
    assert 0 < np.sum(transitions.done) < 80
    left = np.var(returns[:, :-1] - value(trajectory.observations))
    explained = float(iterated[1]["explained_variance_of_returns"])
    assert explained == pytest.approx(1 - left / np.var(returns[:, :-1]), abs=1e-4)
    assert abs(explained - float(iterated[1]["explained_variance"])) > 1e-3


def test_advantages_reach_the_step_centred_and_scaled_once_over_the_batch(judgement: Judgement) -> None:
    np.testing.assert_allclose(judgement.weights, 1 / 80, rtol=1e-6)
    assert np.mean(judgement.advantages) == pytest.approx(0, abs=1e-6)
    assert np.std(judgement.advantages) == pytest.approx(1, rel=1e-5)


def test_scaling_rewards_and_values_together_leaves_the_policy_step_unchanged(
    setting: Setting, judgement: Judgement
) -> None:
    """Powers of two scale exactly in floating point, so the step must agree to the last bit but for the critic's."""
    rng = np.random.default_rng(0)
    rewards, values, following = rng.normal(size=(3, 10, 8)).astype(np.float32)
    terminations = rng.random((10, 8)) < 0.1
    dones = terminations | (rng.random((10, 8)) < 0.1)
    weights = sample_weights(jnp.ones((10, 8), bool))

    def step(scale: float) -> TrustRegionStep:
        advantages, _ = generalized_advantage_estimation(
            scale * rewards, scale * values, scale * following, terminations, dones, discount=0.99, trace_decay=0.95
        )
        return setting.step(standardize(advantages, weights)[0].T, judgement)

    one, many = step(1.0), step(1024.0)
    assert float(one.taken.fraction) > 0
    for ours, theirs in zip(jax.tree.leaves(one.parameters), jax.tree.leaves(many.parameters), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_reported_bound_is_the_theorem_on_the_batchs_raw_advantages(
    setting: Setting, judgement: Judgement, iterated: tuple[TrainState, dict[str, Any]]
) -> None:
    """mean((ratio - 1) A_raw) / (1 - gamma) - 4 gamma max|A_raw| KL_max / (1 - gamma)^2, and null at gamma = 1."""
    _, metrics = iterated
    discount = setting.config.trust_region.discount
    largest, kl_max = float(metrics["advantage_max_abs"]), float(metrics["kl_max"])
    coefficient = 4 * largest * discount / (1 - discount) ** 2
    assert float(metrics["penalty_coefficient"]) == pytest.approx(coefficient, rel=1e-5)
    gain = (float(metrics["improvement_lower_bound"]) + coefficient * kl_max) * (1 - discount)
    assert 0 < gain < 2 * largest
    step = setting.step(jnp.ones((8, 10)), judgement)
    assert np.isnan(step_metrics(step, jnp.ones(()), jnp.ones(()), 1.0)["improvement_lower_bound"])


def test_surrogate_gain_in_raw_units_matches_a_direct_sum(setting: Setting, judgement: Judgement) -> None:
    """(ratio - 1) A_raw averaged over the batch, A_raw = std A + mean, against the closed form that saves the pass."""
    rng = np.random.default_rng(1)
    raw = rng.normal(3.0, 2.0, (8, 10)).astype(np.float32)
    advantages, mean, std = standardize(jnp.asarray(raw), judgement.weights)
    step = setting.step(advantages, judgement)
    old = setting.networks.distribution(setting.state.policy, judgement.observations).log_prob(judgement.actions)
    new = setting.networks.distribution(step.parameters, judgement.observations).log_prob(judgement.actions)
    direct = np.mean(np.expm1(np.asarray(new, np.float64) - np.asarray(old, np.float64)) * raw)
    ours = float(std * step.taken.evaluation.improvement + mean * step.taken.evaluation.ratio_excess)
    assert ours == pytest.approx(direct, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_out_of_the_update_from_the_judgement_on(
    setting: Setting, trajectory: Trajectory, poison: float
) -> None:
    """In invalid transitions alone: whatever they hold, the step and the critic's targets are those of the others.

    An observation that is finite, although what came of it was not, keeps its value: the step before it ends on that.
    """
    valid = np.random.default_rng(0).random((8, 10)) > 0.2
    unused = ~valid[..., None]
    transitions = trajectory.transitions._replace(valid=valid)
    healthy = trajectory._replace(transitions=transitions)
    spoilt = trajectory._replace(
        observations=np.where(unused, poison, trajectory.observations),
        actions=np.where(unused, poison, trajectory.actions),
        transitions=transitions._replace(reward=np.where(valid, transitions.reward, poison)),
    )
    expected, found = setting.judge(healthy), setting.judge(spoilt)
    for name, leaf in found._asdict().items():
        assert np.all(np.isfinite(leaf)), name
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(expected.observations, setting.judge(trajectory).observations)
    steps = [setting.step(expected.advantages, one) for one in (expected, found)]
    assert int(steps[0].taken.outcome) == 0
    assert_bit_identical(*(step.parameters for step in steps))


@pytest.mark.parametrize(("fraction", "stride"), [(1.0, 1), (0.45, 2), (0.01, 10)])
def test_fisher_products_see_every_kth_time_step_of_every_environment(
    judgement: Judgement, fraction: float, stride: int
) -> None:
    weights = np.asarray(judgement.weights) * (np.arange(10) != 0)  # the first step of each is not used
    batch = policy_batch(judgement.observations, judgement.actions, judgement.advantages, weights, fraction)
    np.testing.assert_array_equal(batch.inputs, judgement.observations.reshape(80, -1))
    np.testing.assert_array_equal(batch.fisher_inputs, np.concatenate(judgement.observations[:, ::stride]))
    some = stride < 10
    assert float(jnp.sum(batch.fisher_weights)) == pytest.approx(1.0 if some else 0.0)
    np.testing.assert_array_equal(batch.fisher_weights == 0, weights[:, ::stride].ravel() == 0)
