"""The critic's Gauss-Newton steps against dense ones in float64 NumPy, and explained variance."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import references
from tests.algorithm.policies import OBSERVATION, as_jax, bytes_of, random_network, value_of
from tests.references import Array, Network
from trpo_brax.algorithm import (
    CriticFit,
    StepOutcome,
    ValueBatch,
    explained_variance,
    fit_by_gauss_newton,
    sample_weights,
    to_the_edge,
    trust_region_step,
)
from trpo_brax.algorithm.critic import UnitGaussian
from trpo_brax.algorithm.line_search import inside_the_region

LENGTH, ENVIRONMENTS = 6, 5


@functools.cache
def compiled(steps: int, damping: float) -> Callable[..., CriticFit]:
    """Return the compiled fit; conjugate gradient runs until it has solved its equation."""
    return jax.jit(
        functools.partial(
            fit_by_gauss_newton, value_of, steps=steps, damping=damping, cg_iterations=200, cg_tolerance=1e-13
        )
    )


def problem(seed: int = 0, stride: int = 1) -> tuple[Network, ValueBatch]:
    """Return a critic and samples, an eighth of them unused."""
    rng = np.random.default_rng(seed)
    critic = random_network(rng, 1, gaussian=False)
    observations = rng.standard_normal((ENVIRONMENTS, LENGTH, OBSERVATION))
    targets = rng.standard_normal((ENVIRONMENTS, LENGTH))
    used = rng.permutation(targets.size).reshape(targets.shape) >= targets.size // 8
    return critic, batch_of(observations, targets, used, stride)


def batch_of(observations: Array, targets: Array, used: Array, stride: int = 1) -> ValueBatch:
    thinned = used[:, ::stride]
    parts = (observations, targets, used / max(used.sum(), 1), observations[:, ::stride], thinned / thinned.sum())
    return ValueBatch(*(as_jax(part.reshape(-1, *part.shape[2:])) for part in parts))


def by_hand(critic: Network, batch: ValueBatch, *, steps: int, damping: float) -> tuple[Network, float]:
    """Return the critic after dense Levenberg-Marquardt steps, each halved until the loss falls, and its loss."""
    inputs, targets, weights, fisher_inputs, fisher_weights = (np.asarray(part, np.float64) for part in batch)

    def loss(vector: Array) -> float:
        errors = references.network_output(references.unflatten(vector, critic), inputs)[:, 0] - targets
        return float(weights @ np.square(errors))

    vector = references.flatten(critic)
    for _ in range(steps):
        at = references.unflatten(vector, critic)
        errors = targets - references.network_output(at, inputs)[:, 0]
        gradient = references.network_jacobian(at, inputs)[:, 0].T @ (weights * errors)
        jacobian = references.network_jacobian(at, fisher_inputs)[:, 0]
        matrix = jacobian.T @ (fisher_weights[:, None] * jacobian) + damping * np.eye(vector.size)
        full = np.linalg.solve(matrix, gradient)
        vector = next(moved for j in range(10) if loss(moved := vector + 0.5**j * full) < loss(vector))
    return references.unflatten(vector, critic), loss(vector)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("steps", "damping", "stride"), [(1, 1e-1, 1), (3, 1e-1, 1), (2, 1e-2, 2)])
def test_agrees_with_dense_steps(float64: None, steps: int, damping: float, stride: int, seed: int) -> None:
    critic, batch = problem(seed, stride)
    expected, loss = by_hand(critic, batch, steps=steps, damping=damping)
    result = compiled(steps, damping)(as_jax(critic), batch)
    np.testing.assert_allclose(references.flatten(result.parameters), references.flatten(expected), rtol=1e-6)
    assert float(result.loss) == pytest.approx(loss, rel=1e-8)


def test_a_linear_critic_is_solved_in_one_step(float64: None) -> None:
    """Where values are linear in the parameters, least squares has a closed form and the first step reaches it."""
    rng = np.random.default_rng(3)
    observations, targets = rng.standard_normal((40, OBSERVATION)), rng.standard_normal(40)
    even = jnp.full(40, 1 / 40)
    batch = ValueBatch(as_jax(observations), as_jax(targets), even, as_jax(observations), even)
    result = fit_by_gauss_newton(
        lambda parameters, inputs: inputs @ parameters,
        jnp.zeros(OBSERVATION),
        batch,
        steps=1,
        damping=0.0,
        cg_iterations=OBSERVATION,
        cg_tolerance=1e-12,
    )
    expected = np.linalg.lstsq(observations, targets, rcond=None)[0]
    np.testing.assert_allclose(result.parameters, expected, rtol=1e-9)


def test_a_trust_region_on_the_values_is_the_policys_rule(float64: None) -> None:
    """Schulman et al. 2016, equation 29: E (V - V_old)^2 / 2 stays within the edge, which is the mean KL."""
    critic, batch = problem()
    step = trust_region_step(
        lambda parameters, inputs: UnitGaussian(value_of(parameters, inputs)[..., None]),
        as_jax(critic),
        batch,
        damping=0.0,
        cg_iterations=200,
        cg_tolerance=1e-13,
        scale=to_the_edge(1e-8),
        accept=inside_the_region(1.1e-8, 0.1),
        max_trials=10,
        backtrack_factor=0.7,
    )
    inputs, weights = np.asarray(batch.inputs), np.asarray(batch.weights)
    moved = {name: np.asarray(leaf) for name, leaf in step.parameters.items()}
    change = references.network_output(moved, inputs)[:, 0] - references.network_output(critic, inputs)[:, 0]
    assert step.taken.outcome == StepOutcome.ACCEPTED
    assert 0.5 * weights @ np.square(change) == pytest.approx(1e-8, rel=0.1)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_targets_that_are_not_finite_or_overflow_change_nothing(poison: float) -> None:
    critic, batch = problem()
    spoilt = batch._replace(targets=jnp.where(batch.weights > 0, poison, 0.0).astype(jnp.float32))
    result = compiled(2, 1e-3)(as_jax(critic, jnp.float32), jax.tree.map(jnp.float32, spoilt))
    assert bytes_of(result.parameters) == bytes_of(as_jax(critic, jnp.float32))
    assert int(result.refused) == 2


def test_nothing_valid_changes_nothing() -> None:
    critic, batch = problem()
    nothing = batch._replace(weights=0 * batch.weights, fisher_weights=0 * batch.fisher_weights)
    result = compiled(2, 1e-3)(as_jax(critic), nothing)
    assert bytes_of(result.parameters) == bytes_of(as_jax(critic))
    assert np.isnan(result.loss), "no sample, no loss: null in the records, never 0"
    assert int(result.refused) == 0


def test_the_loss_never_rises(float64: None) -> None:
    """Undamped steps overshoot on a bent network; none is kept that raises the loss."""
    for seed in range(8):
        critic, batch = problem(seed)
        losses = [float(compiled(steps, 1e-6)(as_jax(critic), batch).loss) for steps in (1, 2, 4)]
        assert losses == sorted(losses, reverse=True)


# Explained variance


def test_explained_variance_against_numpy(float64: None) -> None:
    rng = np.random.default_rng(0)
    targets, predictions = rng.standard_normal((2, ENVIRONMENTS, LENGTH))
    predictions = 0.5 * predictions + targets + 3.0
    valid = rng.uniform(size=targets.shape) > 0.2
    weights = np.asarray(sample_weights(jnp.asarray(valid)), np.float64)
    spoilt = np.where(valid, targets, np.nan)
    result = float(explained_variance(jnp.asarray(predictions), jnp.asarray(spoilt), jnp.asarray(weights)))
    expected = 1 - np.var((targets - predictions)[valid]) / np.var(targets[valid])
    assert result == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [("targets", 1.0), ("targets and an offset", 1.0), ("a constant", 0.0), ("the opposite", -3.0)],
)
def test_explained_variance_by_hand(predictions: str, expected: float) -> None:
    targets = jnp.asarray(np.random.default_rng(1).standard_normal((ENVIRONMENTS, LENGTH)), jnp.float32)
    guesses = {
        "targets": targets,
        "targets and an offset": targets + 5,
        "a constant": jnp.full_like(targets, 7.0),
        "the opposite": -targets,
    }
    weights = sample_weights(jnp.ones(targets.shape, bool))
    assert float(explained_variance(guesses[predictions], targets, weights)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("constant", [0.0, 3.3])
def test_explained_variance_of_constant_targets_is_undefined(constant: float) -> None:
    targets = jnp.full((ENVIRONMENTS, LENGTH), constant)
    predictions = jnp.asarray(np.random.default_rng(2).standard_normal(targets.shape))
    assert np.isnan(explained_variance(predictions, targets, sample_weights(jnp.ones(targets.shape, bool))))
