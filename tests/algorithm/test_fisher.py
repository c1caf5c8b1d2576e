"""Fisher products against the explicit matrix, the Hessian of the KL and the definition by scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests import references
from tests.algorithm.policies import (
    ACTION,
    OBSERVATION,
    as_jax,
    categorical_policy,
    gaussian_policy,
    random_network,
    shared_gaussian_policy,
)
from tests.references import Array, Network
from trpo_brax.algorithm import fisher_product

STATES = 40
LOGITS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy at a point, a weighted batch of states, and its explicit Fisher matrix."""

    policy_of: Callable[[Any, jax.Array], Any]
    parameters: Network
    observations: Array
    weights: Array
    fisher: Array

    @property
    def gaussian(self) -> bool:
        return self.policy_of is not categorical_policy

    def product(self, weights: Array | None = None, damping: float = 0.0) -> Callable[[jax.Array], jax.Array]:
        """Return v -> (F + damping I) v on flat vectors, in the precision in force."""
        parameters, observations = as_jax(self.parameters), as_jax(self.observations)
        product = fisher_product(
            lambda candidate: self.policy_of(candidate, observations),
            parameters,
            as_jax(self.weights if weights is None else weights),
            damping=damping,
        )
        _, unravel = ravel_pytree(parameters)
        return lambda vector: ravel_pytree(product(unravel(vector)))[0]

    def matrix(self, weights: Array | None = None, damping: float = 0.0) -> Array:
        """Return F + damping I, one product a column."""
        columns = jax.jit(jax.vmap(self.product(weights, damping)))(jnp.eye(len(self.fisher)))
        return np.asarray(columns, np.float64).T


def build(kind: str, seed: int = 0) -> Case:
    """Return a case with unequal weights."""
    rng = np.random.default_rng(seed)
    gaussian = kind != "categorical"
    parameters = random_network(rng, ACTION if gaussian else LOGITS, gaussian=gaussian)
    observations = rng.standard_normal((STATES, OBSERVATION))
    weights = rng.uniform(size=STATES)
    weights /= weights.sum()
    if gaussian:
        log_std = np.broadcast_to(parameters["log_std"], (STATES, ACTION))
        jacobian, metric = references.gaussian_jacobian(parameters, observations), references.gaussian_metric(log_std)
        policy_of: Any = gaussian_policy if kind == "gaussian" else shared_gaussian_policy
    else:
        jacobian = references.network_jacobian(parameters, observations)
        metric = references.categorical_metric(references.network_output(parameters, observations))
        policy_of = categorical_policy
    fisher = references.explicit_fisher(jacobian, metric, weights)
    return Case(policy_of, parameters, observations, weights, fisher)


@pytest.fixture(scope="module", params=["gaussian", "gaussian with a shared log_std", "categorical"])
def case(request: pytest.FixtureRequest) -> Case:
    return build(request.param)


@pytest.fixture(scope="module")
def matrix(case: Case) -> Array:
    """The package's Fisher matrix in float64."""
    with jax.enable_x64(True):
        return case.matrix()


def test_equals_the_explicit_matrix(case: Case, matrix: Array) -> None:
    np.testing.assert_allclose(matrix, case.fisher, rtol=1e-12, atol=1e-14 * np.abs(case.fisher).max())


@pytest.mark.parametrize("total", [1.0, 2.5, 0.0], ids="weights sum to {}".format)
def test_a_log_std_shared_by_all_states_is_one_of_every_state(float64: None, total: float) -> None:
    # Its one cotangent is the sum of every state's, whatever the weights add up to.
    shared, everywhere = build("gaussian with a shared log_std"), build("gaussian")
    weights = total * everywhere.weights
    scale = np.abs(everywhere.fisher).max()
    np.testing.assert_allclose(shared.matrix(weights), everywhere.matrix(weights), rtol=1e-12, atol=1e-14 * scale)
    np.testing.assert_allclose(shared.matrix(weights), total * everywhere.fisher, rtol=1e-12, atol=1e-14 * scale)
    folded = dataclasses.replace(shared, observations=shared.observations.reshape(8, 5, -1))
    np.testing.assert_allclose(
        folded.matrix(weights.reshape(8, 5)), shared.matrix(weights), rtol=1e-12, atol=1e-14 * scale
    )


def test_equals_the_hessian_of_the_mean_kl(float64: None, case: Case, matrix: Array) -> None:
    parameters, observations, weights = as_jax(case.parameters), as_jax(case.observations), as_jax(case.weights)
    flat, unravel = ravel_pytree(parameters)
    old = case.policy_of(parameters, observations)
    hessian = jax.jit(jax.hessian(lambda v: jnp.sum(weights * old.kl(case.policy_of(unravel(v), observations)))))(flat)
    np.testing.assert_allclose(matrix, hessian, rtol=1e-11, atol=1e-13 * np.abs(case.fisher).max())


def test_equals_the_covariance_of_the_score(case: Case) -> None:
    # By definition F = E[score score^T] over actions drawn from the policy; for two actions the expectation over the
    # Gaussian is exact by Gauss-Hermite quadrature (the integrand is a polynomial of degree 4).
    with jax.enable_x64(True):
        parameters = as_jax(case.parameters)
        flat, unravel = ravel_pytree(parameters)
        if case.gaussian:
            nodes, node_weights = np.polynomial.hermite_e.hermegauss(5)
            noise = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
            probability = np.outer(node_weights, node_weights).ravel() / (2 * np.pi)
            mean = references.network_output(case.parameters, case.observations)
            actions = mean[:, None] + np.exp(case.parameters["log_std"]) * noise  # [S, K, A]
            probability = np.broadcast_to(probability, (STATES, len(noise)))
        else:
            actions = np.broadcast_to(np.arange(LOGITS)[:, None], (STATES, LOGITS, 1))
            probability = references.softmax(references.network_output(case.parameters, case.observations))

        def log_prob(vector: jax.Array, observation: jax.Array, action: jax.Array) -> jax.Array:
            return case.policy_of(unravel(vector), observation).log_prob(action)

        score_of = jax.vmap(jax.vmap(jax.grad(log_prob), in_axes=(None, None, 0)), in_axes=(None, 0, 0))
        scores = np.asarray(jax.jit(score_of)(flat, jnp.asarray(case.observations), jnp.asarray(actions)))
    covariance = np.einsum("s,sk,skp,skq->pq", case.weights, probability, scores, scores)
    np.testing.assert_allclose(case.fisher, covariance, rtol=1e-9, atol=1e-11)


def test_symmetric_and_never_negative(case: Case, matrix: Array) -> None:
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-14 * scale)
    assert np.linalg.eigvalsh(matrix).min() >= -1e-13 * scale
    # In single precision too: v^T F v is a weighted sum of squares whatever v.
    vectors = np.random.default_rng(1).standard_normal((200, len(matrix))).astype(np.float32)
    products = np.asarray(jax.jit(jax.vmap(case.product()))(jnp.asarray(vectors)), np.float64)
    curvature = np.sum(vectors * products, axis=1)
    exact = np.einsum("np,pq,nq->n", vectors, case.fisher, vectors)
    assert curvature.min() > 0
    np.testing.assert_allclose(curvature, exact, rtol=1e-4)


def test_linear_in_its_argument(float64: None, case: Case) -> None:
    product = jax.jit(case.product(damping=0.1))
    a, b = np.random.default_rng(2).standard_normal((2, len(case.fisher)))
    expected = 3 * product(jnp.asarray(a)) - 2 * product(jnp.asarray(b))
    np.testing.assert_allclose(product(jnp.asarray(3 * a - 2 * b)), expected, rtol=1e-11, atol=1e-13)


def test_damping_adds_its_multiple_of_the_vector(float64: None, case: Case, matrix: Array) -> None:
    damped = case.matrix(damping=0.3)
    np.testing.assert_allclose(damped, matrix + 0.3 * np.eye(len(matrix)), atol=1e-14 * np.abs(matrix).max())


def test_zero_weight_drops_a_state(float64: None, case: Case) -> None:
    kept = np.arange(STATES) % 3 != 0
    weights = np.where(kept, case.weights, 0.0)
    fewer = dataclasses.replace(case, observations=case.observations[kept], weights=case.weights[kept])
    np.testing.assert_allclose(case.matrix(weights), fewer.matrix(), rtol=1e-12, atol=1e-14)


def test_leading_axes_do_not_matter(float64: None, case: Case, matrix: Array) -> None:
    folded = dataclasses.replace(
        case, observations=case.observations.reshape(8, 5, -1), weights=case.weights.reshape(8, 5)
    )
    np.testing.assert_allclose(folded.matrix(), matrix, rtol=1e-12, atol=1e-14)


def test_peer_defect_06_rank_is_not_that_of_the_batch_mean(case: Case, matrix: Array) -> None:
    """A peer differentiates the batch's mean distribution, so its metric's rank is at most twice the action size."""
    rank = np.linalg.matrix_rank(matrix, tol=1e-9 * np.abs(matrix).max())
    outputs = 2 * ACTION if case.gaussian else LOGITS
    assert rank > outputs
    # What is not identifiable: nothing for the Gaussian, a common shift of all logits for the categorical one.
    free = 0 if case.gaussian else 1 + 4
    assert rank == len(matrix) - free


def test_the_references_own_jacobian(float64: None) -> None:
    case = build("gaussian", seed=3)
    origin = references.flatten(case.parameters)
    jacobian = references.gaussian_jacobian(case.parameters, case.observations[:4])
    step = 1e-6
    for index in range(len(origin)):
        shift = step * np.eye(len(origin))[index]
        above, below = (references.unflatten(origin + sign * shift, case.parameters) for sign in (1, -1))
        slope = (
            references.network_output(above, case.observations[:4])
            - references.network_output(below, case.observations[:4])
        ) / (2 * step)
        np.testing.assert_allclose(jacobian[:, :ACTION, index], slope, atol=1e-8)
        log_std_slope = (above["log_std"] - below["log_std"]) / (2 * step)
        np.testing.assert_allclose(jacobian[:, ACTION:, index], np.tile(log_std_slope, (4, 1)), atol=1e-8)
