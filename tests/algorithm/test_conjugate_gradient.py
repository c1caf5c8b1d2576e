"""Conjugate gradient against dense solves, JAX's own solver and its textbook properties."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithm.policies import bytes_of
from tests.references import Array, krylov_solution
from trpo_brax.algorithm import ConjugateGradientResult, conjugate_gradient


@jax.jit
def solve_dense(matrix: jax.Array, b: jax.Array, max_iterations: Any, tolerance: Any) -> ConjugateGradientResult:
    """Solve with a dense matrix; everything traced, so one program a size."""
    return conjugate_gradient(
        lambda v: jnp.matmul(matrix, v, precision="highest"),
        b,
        max_iterations=max_iterations,
        tolerance=tolerance,
    )


def solve(matrix: Array, b: Array, max_iterations: int = 1000, tolerance: float = 0.0) -> ConjugateGradientResult:
    """Solve in the precision in force."""
    float_type = jnp.result_type(float)
    return solve_dense(
        jnp.asarray(matrix, float_type),
        jnp.asarray(b, float_type),
        max_iterations,
        jnp.asarray(tolerance, float_type),
    )


def random_system(size: int, condition: float, seed: int = 0) -> tuple[Array, Array]:
    """Return a random symmetric positive definite matrix with eigenvalues from 1/condition to 1, and a vector."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((size, size)))
    eigenvalues = np.geomspace(1 / condition, 1.0, size)
    matrix = rotation @ np.diag(eigenvalues) @ rotation.T
    return (matrix + matrix.T) / 2, rng.standard_normal(size)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
def test_agrees_with_a_dense_solve(float64: None, size: int, condition: float) -> None:
    matrix, b = random_system(size, condition)
    result = solve(matrix, b, tolerance=1e-13)
    expected = np.linalg.solve(matrix, b)
    assert np.linalg.norm(result.solution - expected) <= 1e-12 * condition * np.linalg.norm(expected)
    assert not result.breakdown
    assert result.residual_norm <= 1e-13 * np.linalg.norm(b)


@pytest.mark.parametrize(("size", "condition", "tolerance"), [(7, 1.0, 1e-6), (40, 1e2, 1e-4), (40, 1e3, 3e-4)])
def test_agrees_with_a_dense_solve_in_single_precision(size: int, condition: float, tolerance: float) -> None:
    matrix, b = random_system(size, condition)
    result = solve(matrix, b, tolerance=1e-6)
    expected = np.linalg.solve(matrix, b)
    assert result.solution.dtype == np.float32
    assert np.linalg.norm(result.solution - expected) <= tolerance * np.linalg.norm(expected)
    assert not result.breakdown


def test_every_iterate_is_the_best_of_its_krylov_space_and_jax_agrees(float64: None) -> None:
    matrix, b = random_system(7, 1e2)
    product = functools.partial(jnp.matmul, jnp.asarray(matrix))
    for iterations in range(8):
        result = solve(matrix, b, max_iterations=iterations)
        theirs, _ = jax.scipy.sparse.linalg.cg(product, jnp.asarray(b), tol=0.0, maxiter=iterations)
        assert result.iterations == iterations
        np.testing.assert_allclose(result.solution, theirs, rtol=1e-8, atol=1e-10)
        if iterations:
            np.testing.assert_allclose(result.solution, krylov_solution(matrix, b, iterations), rtol=1e-7, atol=1e-9)
        else:
            np.testing.assert_array_equal(result.solution, 0.0)


def test_as_many_iterations_as_distinct_eigenvalues(float64: None) -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((7, 7)))
    matrix = rotation @ np.diag([1.0, 1, 1, 3, 3, 10, 10]) @ rotation.T
    b = np.random.default_rng(2).standard_normal(7)
    result = solve(matrix, b, tolerance=1e-10)
    assert result.iterations == 3
    np.testing.assert_allclose(result.solution, np.linalg.solve(matrix, b), rtol=1e-9)


def test_residual_is_what_is_left(float64: None) -> None:
    matrix, b = random_system(40, 1e3)
    for iterations in (0, 1, 10, 25):
        result = solve(matrix, b, max_iterations=iterations)
        left = b - matrix @ np.asarray(result.solution)
        np.testing.assert_allclose(result.residual, left, atol=1e-12)
        assert float(result.residual_norm) == pytest.approx(np.linalg.norm(left), rel=1e-9)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-9])
def test_stops_at_the_first_iterate_within_tolerance(float64: None, tolerance: float) -> None:
    matrix, b = random_system(40, 1e2)
    b *= 20 / np.linalg.norm(b)
    result = solve(matrix, b, tolerance=tolerance)
    limit = tolerance * 20
    assert result.residual_norm <= limit
    assert float(result.relative_residual) == pytest.approx(float(result.residual_norm) / 20)
    product = functools.partial(jnp.matmul, jnp.asarray(matrix))
    before, _ = jax.scipy.sparse.linalg.cg(product, jnp.asarray(b), tol=0.0, maxiter=result.iterations - 1)
    assert np.linalg.norm(b - matrix @ np.asarray(before)) > limit


def test_relative_tolerance_means_the_right_hand_sides_scale_does_not_matter(float64: None) -> None:
    matrix, b = random_system(7, 1e2)
    result, scaled = solve(matrix, b, tolerance=1e-3), solve(matrix, 2.0**-40 * b, tolerance=1e-3)
    assert result.iterations == scaled.iterations
    np.testing.assert_array_equal(2.0**-40 * result.solution, scaled.solution)


def test_zero_right_hand_side_gives_zero_without_a_product() -> None:
    matrix, b = random_system(7, 1e2)
    result = solve(matrix, 0 * b)
    np.testing.assert_array_equal(result.solution, 0.0)
    assert (int(result.iterations), float(result.residual_norm), bool(result.breakdown)) == (0, 0.0, False)


def test_no_iterations_gives_zero_and_the_whole_residual() -> None:
    matrix, b = random_system(7, 1e2)
    result = solve(matrix, b, max_iterations=0)
    np.testing.assert_array_equal(result.solution, 0.0)
    np.testing.assert_array_equal(result.residual, b.astype(np.float32))
    assert (int(result.iterations), bool(result.breakdown)) == (0, False)


def test_a_pytree_is_one_vector(float64: None) -> None:
    matrix, b = random_system(7, 1e2)
    tree = {"kernel": jnp.asarray(b[:6]).reshape(2, 3), "bias": {"scalar": jnp.asarray(b[6])}}

    def flat(vector: Any) -> jax.Array:
        return jnp.concatenate([vector["kernel"].ravel(), vector["bias"]["scalar"][None]])

    def matvec(vector: Any) -> Any:
        product = jnp.asarray(matrix) @ flat(vector)
        return {"kernel": product[:6].reshape(2, 3), "bias": {"scalar": product[6]}}

    result = conjugate_gradient(matvec, tree, max_iterations=20, tolerance=1e-12)
    assert jax.tree.map(jnp.shape, result.solution) == jax.tree.map(jnp.shape, tree)
    np.testing.assert_allclose(flat(result.solution), np.linalg.solve(matrix, b), rtol=1e-9)
    np.testing.assert_allclose(flat(result.residual), b - matrix @ np.asarray(flat(result.solution)), atol=1e-11)


@pytest.mark.parametrize("sign", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_first_direction_without_positive_curvature_is_a_breakdown_at_zero(sign: float) -> None:
    b = np.asarray([1.0, 2.0, -1.0])
    result = solve(sign * np.eye(3) if np.isfinite(sign) else np.full((3, 3), sign), b)
    assert result.breakdown
    assert result.iterations == 1
    np.testing.assert_array_equal(result.solution, 0.0)
    np.testing.assert_array_equal(result.residual, b)


def test_a_later_breakdown_keeps_the_iterate_before() -> None:
    # A = diag(1, -1), b = (2, 1): |r|^2 = 5, p^T A p = 3, so x = 5/3 b and r = (2 - 10/3, 1 + 5/3) = (-4/3, 8/3);
    # p = r + (80/9)/5 b = (-12, 24)/9 + (32, 16)/9 = (20, 40)/9 has curvature (400 - 1600)/81 < 0.
    result = solve(np.diag([1.0, -1.0]), np.asarray([2.0, 1.0]))
    assert result.breakdown
    assert result.iterations == 2
    np.testing.assert_allclose(result.solution, [10 / 3, 5 / 3], rtol=1e-6)
    np.testing.assert_allclose(result.residual, [-4 / 3, 8 / 3], rtol=1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_right_hand_side_stops_at_once(poison: float) -> None:
    matrix, b = random_system(7, 1e2)
    b[3] = poison
    result = solve(matrix, b)
    assert result.iterations == 0
    np.testing.assert_array_equal(result.solution, 0.0)


def test_running_far_past_convergence_is_no_breakdown() -> None:
    # The recursive residual keeps shrinking until it underflows; that must end the loop as solved.
    for seed in range(5):
        matrix, b = random_system(7, 30.0, seed)
        result = solve(matrix, 1e-2 * b, max_iterations=1000, tolerance=0.0)
        assert not result.breakdown
        np.testing.assert_allclose(result.solution, np.linalg.solve(matrix, 1e-2 * b), rtol=1e-3, atol=1e-6)


def test_peer_defect_07_starts_from_zero_and_draws_nothing() -> None:
    """A peer starts from random numbers drawn from the global generator, so that the same system has many answers."""
    matrix, b = random_system(7, 1e2)
    results = []
    for seed in (0, 1):
        np.random.seed(seed)
        before = np.random.get_state()[1].copy()
        results.append(bytes_of(solve(matrix, b, max_iterations=3)))
        np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert results[0] == results[1]
    # From zero, the first iterate is the best multiple of b.
    first = solve(matrix, b, max_iterations=1)
    np.testing.assert_allclose(first.solution, (b @ b) / (b @ matrix @ b) * b, rtol=1e-5)


def test_many_systems_at_once_are_each_solved_alone(float64: None) -> None:
    # Under vmap the loop runs until the last lane is done: the finished ones must not move.
    systems = [random_system(7, condition, seed) for seed, condition in enumerate([1.0, 1e1, 1e3])]
    matrices = np.stack([matrix for matrix, _ in systems] + [np.eye(7), -np.eye(7)])
    vectors = np.stack([b for _, b in systems] + [np.zeros(7), np.ones(7)])
    solve_all: Callable[..., ConjugateGradientResult] = jax.vmap(solve_dense, in_axes=(0, 0, None, None))
    together = solve_all(jnp.asarray(matrices), jnp.asarray(vectors), 50, 1e-8)
    assert together.iterations[0] < together.iterations[1] < together.iterations[2]
    for lane, (matrix, b) in enumerate(zip(matrices, vectors, strict=True)):
        alone = solve(matrix, b, max_iterations=50, tolerance=1e-8)
        assert together.iterations[lane] == alone.iterations
        assert together.breakdown[lane] == alone.breakdown
        np.testing.assert_allclose(together.solution[lane], alone.solution, rtol=1e-6, atol=1e-12)
