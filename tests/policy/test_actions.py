"""From raw actions to the environment's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_brax.policy import ActionBounds

INF = float("inf")
BOUNDS = [((-1.0, -1.0), (1.0, 1.0)), ((-0.4, -3.0), (0.4, 3.0)), ((0.0, -2.0), (10.0, -1.0))]


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_minus_one_to_one_covers_the_range(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    bounds = ActionBounds(low, high)
    for raw in (-1.0, -0.25, 0.0, 0.5, 1.0):
        expected = [a + (raw + 1) / 2 * (b - a) for a, b in zip(low, high, strict=True)]
        np.testing.assert_allclose(bounds.to_environment(jnp.full(2, raw)), expected, rtol=1e-6, atol=1e-7)
    assert bounds.size == 2
    np.testing.assert_allclose(bounds.centre, (np.asarray(low) + high) / 2, rtol=1e-6)
    np.testing.assert_allclose(bounds.half_range, (np.asarray(high) - low) / 2, rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_beyond_the_range_is_clipped_to_its_very_ends(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    bounds = ActionBounds(low, high)
    for raw, end in ((1.5, high), (1e30, high), (INF, high), (-1.5, low), (-1e30, low), (-INF, low)):
        np.testing.assert_array_equal(bounds.to_environment(jnp.full(2, raw)), np.asarray(end, np.float32))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-INF, INF, [-5.0, 0.5, 5.0]),
        (-INF, 2.0, [-5.0, 0.5, 2.0]),
        (-1.0, INF, [-1.0, 0.5, 5.0]),
    ],
)
def test_a_side_without_bound_passes_through(low: float, high: float, expected: list[float]) -> None:
    bounds = ActionBounds((low,), (high,))
    np.testing.assert_array_equal(bounds.to_environment(jnp.asarray([[-5.0], [0.5], [5.0]]))[:, 0], expected)


@pytest.mark.filterwarnings("error")
def test_no_bounds_at_all_raise_no_warning() -> None:
    bounds = ActionBounds((-INF, -1.0), (INF, 1.0))
    np.testing.assert_array_equal(bounds.to_environment(jnp.asarray([7.0, 7.0])), [7.0, 1.0])
    np.testing.assert_array_equal(bounds.saturated(jnp.asarray([7.0, 7.0])), [False, True])


def test_components_keep_to_their_own_bounds() -> None:
    bounds = ActionBounds((-0.4, 0.0, -INF), (0.4, 10.0, INF))
    result = bounds.to_environment(jnp.asarray([[0.5, 0.5, 0.5], [2.0, -2.0, 20.0]]))
    np.testing.assert_allclose(result, [[0.2, 7.5, 0.5], [0.4, 0.0, 20.0]], rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [*BOUNDS, ((-INF, -1.0), (2.0, INF)), ((-INF, -INF), (INF, INF))])
def test_saturated_is_where_something_is_cut_off(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    bounds = ActionBounds(low, high)
    raw = jnp.asarray(3 * np.random.default_rng(0).standard_normal((500, 2)), jnp.float32)
    bounded = bool(np.all(np.isfinite(low + high)))
    centre = np.add(low, high) / 2 if bounded else np.zeros(2)
    half = np.subtract(high, low) / 2 if bounded else np.ones(2)
    wanted = centre + half * np.asarray(raw, np.float64)
    cut = (wanted < np.asarray(low)) | (wanted > np.asarray(high))
    np.testing.assert_array_equal(bounds.saturated(raw), cut)
    received = np.asarray(bounds.to_environment(raw), np.float64)
    np.testing.assert_allclose(received[~cut], wanted[~cut], rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(received - wanted)[cut] > 0)


def test_compiled_and_mapped_alike() -> None:
    bounds = ActionBounds(*BOUNDS[1])
    raw = jnp.asarray(np.random.default_rng(1).standard_normal((7, 2)), jnp.float32)
    together = jax.jit(bounds.to_environment)(raw)
    np.testing.assert_allclose(jax.vmap(bounds.to_environment)(raw), together, rtol=1e-6)
    assert together.dtype == np.float32
