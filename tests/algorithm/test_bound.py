"""The improvement bound: its formulas, and the theorem itself on tabular processes where everything is exact."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithm.policies import Categorical
from tests.references import Array, TabularProcess, categorical_kl, softmax
from trpo_brax.algorithm import (
    PolicyBatch,
    StepOutcome,
    TrustRegionStep,
    improvement_lower_bound,
    inside_the_region,
    penalty_coefficient,
    to_the_edge,
    trust_region_step,
)


@pytest.mark.parametrize(
    ("advantage", "discount", "expected"),
    [(1.0, 0.5, 8.0), (3.0, 0.5, 24.0), (2.0, 0.9, 720.0), (2.0, 0.0, 0.0), (0.0, 0.99, 0.0), (1.0, 0.99, 39600.0)],
)
def test_penalty_coefficient_by_hand(advantage: float, discount: float, expected: float) -> None:
    # 4 eps gamma / (1 - gamma)^2
    assert float(penalty_coefficient(jnp.float32(advantage), discount)) == pytest.approx(expected, rel=1e-6)


def test_lower_bound_by_hand() -> None:
    # gain / (1 - gamma) - 4 eps gamma / (1 - gamma)^2 KL = 0.25 / 0.5 - 4 x 3 x 0.5 / 0.25 x 0.01 = 0.5 - 0.24
    bound = improvement_lower_bound(jnp.float32(0.25), jnp.float32(3.0), jnp.float32(0.01), 0.5)
    assert float(bound) == pytest.approx(0.26, rel=1e-6)


def test_without_discounting_there_is_no_bound() -> None:
    one = jnp.ones(())
    assert np.isnan(penalty_coefficient(one, 1.0))
    assert np.isnan(improvement_lower_bound(one, one, one, 1.0))


def test_a_policy_kept_is_bounded_by_zero() -> None:
    zero = jnp.zeros(())
    assert float(improvement_lower_bound(zero, jnp.float32(5.0), zero, 0.99)) == 0.0


def assert_bound_holds(process: TabularProcess, old: Array, new: Array) -> None:
    """eta(new) >= L_old(new) - C KL_max, with C from the package and everything else exact."""
    advantages = process.advantages(old)
    kl_max = categorical_kl(old, new).max()
    penalty = float(penalty_coefficient(jnp.asarray(np.abs(advantages).max()), process.discount))
    improvement = process.expected_return(new) - process.expected_return(old)
    gain = process.local_approximation(old, new) - process.expected_return(old)
    rounding = 1e-9 * (1 + abs(gain))
    assert improvement >= gain - penalty * kl_max - rounding
    ours = improvement_lower_bound(
        jnp.asarray((1 - process.discount) * gain), jnp.asarray(np.abs(advantages).max()), kl_max, process.discount
    )
    assert float(ours) == pytest.approx(gain - penalty * kl_max, rel=1e-9, abs=1e-12)
    assert improvement >= float(ours) - rounding


@pytest.mark.parametrize("discount", [0.1, 0.5, 0.9, 0.99])
def test_the_theorem_holds_for_any_two_policies(float64: None, discount: float) -> None:
    rng = np.random.default_rng(round(100 * discount))
    for _ in range(60):
        states, actions = int(rng.integers(2, 6)), int(rng.integers(2, 4))
        process = TabularProcess.random(rng, states, actions, discount)
        logits = 2 * rng.standard_normal(process.rewards.shape)
        distance = 10.0 ** rng.uniform(-3, 1)
        change = distance * rng.standard_normal(logits.shape)
        assert_bound_holds(process, softmax(logits), softmax(logits + change))


def test_the_penalty_is_needed_and_its_size_is_not_free(float64: None) -> None:
    # The guarantee is not empty: without the penalty it fails, and at some process a 300th of it fails too.
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(300):
        process = TabularProcess.random(rng, states=2, actions=2, discount=0.9)
        logits = rng.standard_normal((2, 2))
        old, new = softmax(logits), softmax(logits + rng.standard_normal((2, 2)))
        gain = process.local_approximation(old, new) - process.expected_return(old)
        shortfall = gain - (process.expected_return(new) - process.expected_return(old))
        penalty = float(penalty_coefficient(jnp.asarray(np.abs(process.advantages(old)).max()), 0.9))
        worst = max(worst, shortfall / (penalty * categorical_kl(old, new).max()))
    assert 1 / 300 < worst <= 1


def test_exact_steps_climb_to_the_optimum_within_the_bound(float64: None) -> None:
    # All states and actions, weighted by how often the old policy meets them, make the sample average an expectation.
    process = TabularProcess.random(np.random.default_rng(1), states=4, actions=3, discount=0.9)
    states, actions = process.rewards.shape
    where = jnp.repeat(jnp.arange(states), actions)[:, None]
    taken = jnp.tile(jnp.arange(actions), states)[:, None]

    @jax.jit
    def step(logits: jax.Array, advantages: jax.Array, weights: jax.Array) -> TrustRegionStep:
        batch = PolicyBatch(where, taken, advantages.ravel(), weights.ravel(), where, weights.ravel())
        return trust_region_step(
            lambda table, inputs: Categorical(table[inputs[..., 0]]),
            logits,
            batch,
            damping=1e-8,
            cg_iterations=30,
            cg_tolerance=1e-10,
            scale=to_the_edge(0.05),
            accept=inside_the_region(0.05, 0.1),
            max_trials=30,
            backtrack_factor=0.7,
        )

    values = np.zeros(states)
    for _ in range(500):
        values = np.max(process.rewards + process.discount * process.transitions @ values, axis=1)
    optimum = process.start @ values
    uniform = process.expected_return(np.full((states, actions), 1 / actions))

    logits, steps = np.zeros((states, actions)), 0
    while process.expected_return(softmax(logits)) < optimum - 0.01 * (optimum - uniform):
        old = softmax(logits)
        weights = (1 - process.discount) * process.visitation(old)[:, None] * old
        result = step(jnp.asarray(logits), jnp.asarray(process.advantages(old)), jnp.asarray(weights))
        logits = np.asarray(result.parameters)
        new = softmax(logits)
        gain = process.local_approximation(old, new) - process.expected_return(old)
        assert result.taken.outcome == StepOutcome.ACCEPTED
        assert float(result.taken.evaluation.improvement) == pytest.approx((1 - process.discount) * gain, rel=1e-8)
        assert float(result.taken.evaluation.kl_max) == pytest.approx(categorical_kl(old, new).max(), rel=1e-8)
        assert_bound_holds(process, old, new)
        assert process.expected_return(new) > process.expected_return(old)
        steps += 1
        assert steps < 40
    assert steps > 3  # the trust region did hold it back
