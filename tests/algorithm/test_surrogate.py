"""The surrogate objective and its evaluation against the old policy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import references
from tests.algorithm.policies import (
    ACTION,
    OBSERVATION,
    Categorical,
    as_jax,
    categorical_policy,
    gaussian_policy,
    policy_batch,
    random_batch,
    random_network,
)
from tests.references import GaussianBatch
from trpo_brax.algorithm import Distribution, Evaluation, PolicyBatch, evaluator, sample_weights, surrogate
from trpo_brax.policy import DiagonalGaussian

LOGITS = 3


@jax.jit
def compare(old: Any, new: Any, batch: PolicyBatch) -> Evaluation:
    """Evaluate Gaussian policy parameters `new` against `old` in one program."""
    inputs = batch.inputs
    return evaluator(gaussian_policy(old, inputs), batch)(gaussian_policy(new, inputs))


@jax.jit
def surrogate_and_gradient(old: Any, new: Any, batch: PolicyBatch) -> tuple[jax.Array, Any]:
    """Return the surrogate at `new` and its gradient there."""
    before = gaussian_policy(old, batch.inputs)
    return jax.value_and_grad(lambda candidate: surrogate(gaussian_policy(candidate, batch.inputs), before, batch))(new)


@jax.jit
def kl_gradient(old: Any, batch: PolicyBatch) -> Any:
    """Return the gradient of mean KL(old || new) at new = old."""
    distribution = jax.lax.stop_gradient(gaussian_policy(old, batch.inputs))
    return jax.grad(lambda new: evaluator(distribution, batch)(gaussian_policy(new, batch.inputs)).kl_mean)(old)


def categorical_case(seed: int) -> tuple[Any, PolicyBatch]:
    """Return categorical policy parameters and a batch of states and actions."""
    rng = np.random.default_rng(seed)
    actions, weights = rng.integers(LOGITS, size=(30, 1)), np.full(30, 1 / 30)
    inputs = rng.standard_normal((30, OBSERVATION))
    batch = (inputs, actions, rng.standard_normal(30), weights, inputs, weights)
    return as_jax(random_network(rng, LOGITS, gaussian=False)), PolicyBatch(*map(as_jax, batch))


def test_both_distributions_are_what_the_update_asks_for() -> None:
    assert isinstance(DiagonalGaussian(jnp.zeros(2), jnp.zeros(2)), Distribution)
    assert isinstance(Categorical(jnp.zeros(3)), Distribution)


@pytest.mark.parametrize("log_std", [-6.0, 0.0, 2.0])
def test_at_the_old_policy_everything_is_exactly_zero(log_std: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        policy = random_network(rng)
        policy["log_std"] += log_std
        batch = random_batch(rng, policy)
        batch = dataclasses.replace(batch, advantages=1e3 * batch.advantages)
        evaluation = compare(as_jax(policy), as_jax(policy), policy_batch(batch))
        assert jax.tree.map(float, evaluation) == Evaluation(0.0, 0.0, 0.0, 0.0)
        for leaf in jax.tree.leaves(kl_gradient(as_jax(policy), policy_batch(batch))):
            np.testing.assert_array_equal(leaf, 0.0)
        # The ratio is exactly 1, so the surrogate is the mean advantage to the rounding of its sum alone.
        value, _ = surrogate_and_gradient(as_jax(policy), as_jax(policy), policy_batch(batch))
        assert float(value) == pytest.approx(np.sum(batch.weights * batch.advantages), abs=1e-4)


def test_a_categorical_policy_needs_no_other_code(float64: None) -> None:
    old, batch = categorical_case(0)

    @jax.jit
    def compare_categorical(before: Any, after: Any, batch: PolicyBatch) -> Evaluation:
        evaluate = evaluator(categorical_policy(before, batch.inputs), batch)
        return evaluate(categorical_policy(after, batch.inputs))

    assert jax.tree.map(float, compare_categorical(old, old, batch)) == Evaluation(0.0, 0.0, 0.0, 0.0)
    new, _ = categorical_case(1)
    p = references.softmax(references.network_output(jax.tree.map(np.asarray, old), np.asarray(batch.inputs)))
    q = references.softmax(references.network_output(jax.tree.map(np.asarray, new), np.asarray(batch.inputs)))
    actions = np.asarray(batch.actions, int)
    ratio = (np.take_along_axis(q, actions, -1) / np.take_along_axis(p, actions, -1))[..., 0]
    kl = references.categorical_kl(p, q)
    evaluation = compare_categorical(old, new, batch)
    assert float(evaluation.improvement) == pytest.approx(np.mean((ratio - 1) * np.asarray(batch.advantages)))
    assert float(evaluation.kl_mean) == pytest.approx(kl.mean())
    assert float(evaluation.kl_max) == pytest.approx(kl.max())
    assert float(evaluation.ratio_excess) == pytest.approx(np.mean(ratio - 1))


@pytest.mark.parametrize("distance", [1e-6, 1e-3, 0.3])
def test_evaluation_matches_the_reference(float64: None, distance: float) -> None:
    rng = np.random.default_rng(1)
    old = random_network(rng)
    new = {name: value + distance * rng.standard_normal(value.shape) for name, value in old.items()}
    batch = random_batch(rng, old)
    evaluation = compare(as_jax(old), as_jax(new), policy_batch(batch))
    improvement, kl_mean, kl_max = references.compare_policies(old, new, batch)
    rounding = 1e-15 / distance
    assert float(evaluation.improvement) == pytest.approx(improvement, rel=1e-9 + rounding)
    assert float(evaluation.kl_mean) == pytest.approx(kl_mean, rel=1e-9, abs=1e-15)
    assert float(evaluation.kl_max) == pytest.approx(kl_max, rel=1e-9, abs=1e-15)
    constant = dataclasses.replace(batch, advantages=np.ones_like(batch.advantages))
    excess, _, _ = references.compare_policies(old, new, constant)
    assert float(evaluation.ratio_excess) == pytest.approx(excess, rel=1e-9 + rounding)


def test_improvement_is_the_difference_of_two_surrogates(float64: None) -> None:
    rng = np.random.default_rng(2)
    old = random_network(rng)
    new = {name: value + 0.1 * rng.standard_normal(value.shape) for name, value in old.items()}
    batch = policy_batch(random_batch(rng, old))
    before, _ = surrogate_and_gradient(as_jax(old), as_jax(old), batch)
    after, _ = surrogate_and_gradient(as_jax(old), as_jax(new), batch)
    assert float(compare(as_jax(old), as_jax(new), batch).improvement) == pytest.approx(
        float(after - before), rel=1e-11
    )


def test_gradient_at_the_old_policy_is_the_policy_gradient(float64: None) -> None:
    rng = np.random.default_rng(3)
    policy = random_network(rng)
    batch = random_batch(rng, policy)
    _, gradient = surrogate_and_gradient(as_jax(policy), as_jax(policy), policy_batch(batch))
    expected = references.policy_gradient(policy, batch)
    np.testing.assert_allclose(references.flatten(gradient), expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("field", ["observations", "actions", "advantages"])
def test_what_an_unused_sample_holds_does_not_matter(field: str) -> None:
    """As long as it is finite; here its ratio overflows."""
    rng = np.random.default_rng(4)
    old = random_network(rng)
    new = {name: value + 0.1 * rng.standard_normal(value.shape) for name, value in old.items()}
    batch = random_batch(rng, old)
    spoilt = getattr(batch, field).copy()
    spoilt[batch.weights == 0] = -1e30
    spoilt_batch: GaussianBatch = dataclasses.replace(batch, **{field: spoilt})
    results = [
        (compare(*pair, policy_batch(one)), surrogate_and_gradient(*pair, policy_batch(one))[0])
        for one in (batch, spoilt_batch)
        for pair in [(as_jax(old), as_jax(new))]
    ]
    np.testing.assert_array_equal(*(np.stack(jax.tree.leaves(result)) for result in results))


@pytest.mark.parametrize("field", ["observations", "actions", "advantages"])
def test_a_used_sample_that_is_not_finite_shows(field: str) -> None:
    rng = np.random.default_rng(5)
    policy = random_network(rng)
    batch = random_batch(rng, policy)
    spoilt = getattr(batch, field).copy()
    spoilt[tuple(np.argwhere(batch.weights > 0)[3])] = np.nan
    evaluation = compare(as_jax(policy), as_jax(policy), policy_batch(dataclasses.replace(batch, **{field: spoilt})))
    assert np.isnan(np.stack(evaluation)).any()


def test_kl_mean_agrees_with_sampling() -> None:
    # E_old[log old - log new] from 200,000 draws at one state; tolerance 5 standard errors.
    rng = np.random.default_rng(6)
    old, new = random_network(rng), random_network(rng)
    new["b2"] = old["b2"] + 0.2
    observation = rng.standard_normal((1, 1, OBSERVATION))
    batch = GaussianBatch(observation, np.zeros((1, 1, ACTION)), np.ones((1, 1)), np.ones((1, 1)))
    evaluation = compare(as_jax(old), as_jax(new), policy_batch(batch))
    mean, new_mean = (references.network_output(policy, observation[0]) for policy in (old, new))
    draws = mean + np.exp(old["log_std"]) * rng.standard_normal((200_000, ACTION))
    difference = references.gaussian_log_prob(mean, old["log_std"], draws) - references.gaussian_log_prob(
        new_mean, new["log_std"], draws
    )
    standard_error = difference.std() / np.sqrt(len(draws))
    assert float(evaluation.kl_mean) == pytest.approx(difference.mean(), abs=5 * standard_error)
    # The other direction is another number, far outside that tolerance.
    assert abs(float(compare(as_jax(new), as_jax(old), policy_batch(batch)).kl_mean) - difference.mean()) > (
        100 * standard_error
    )


def test_weights_average_over_the_valid_samples() -> None:
    valid = np.asarray([[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(sample_weights(jnp.asarray(valid)), valid / np.float32(4))
    np.testing.assert_array_equal(sample_weights(jnp.zeros((2, 3), bool)), 0.0)
