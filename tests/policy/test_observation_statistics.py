"""Running moments against NumPy's of everything seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.references import Array
from trpo_brax.policy import ObservationStatistics

SIZE = 3
update = jax.jit(ObservationStatistics.updated)


def batches_of(rng: np.random.Generator) -> list[tuple[Array, Array]]:
    """Return unequal batches [N, T, observation] of unlike scales and their valid entries [N, T]."""
    shapes = [(1, 1), (20, 7), (3, 50), (40, 2)]
    offsets, scales = rng.normal(0, 5, (len(shapes), SIZE)), np.exp(rng.normal(0, 1, (len(shapes), SIZE)))
    return [
        (offset + scale * rng.standard_normal((*shape, SIZE)), rng.uniform(size=shape) < 0.8)
        for shape, offset, scale in zip(shapes, offsets, scales, strict=True)
    ]


def folded(
    batches: list[tuple[Array, Array]], statistics: ObservationStatistics | None = None
) -> ObservationStatistics:
    statistics = ObservationStatistics.empty(SIZE) if statistics is None else statistics
    for observations, valid in batches:
        statistics = update(statistics, jnp.asarray(observations, jnp.float32), jnp.asarray(valid))
    return statistics


def assert_moments(statistics: ObservationStatistics, seen: Array, rtol: float = 1e-5) -> None:
    assert float(statistics.count) == len(seen)
    np.testing.assert_allclose(statistics.mean, seen.mean(axis=0), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(statistics.std(), seen.std(axis=0), rtol=rtol)


@pytest.mark.parametrize("filler", [np.nan, np.inf, 1e30])
def test_moments_of_all_batches_together(filler: float) -> None:
    batches = batches_of(np.random.default_rng(0))
    seen = np.concatenate([observations[valid] for observations, valid in batches])
    spoilt = [(np.where(valid[..., None], observations, filler), valid) for observations, valid in batches]
    assert_moments(folded(spoilt), seen)
    # The order they came in does not matter, nor how they were cut.
    assert_moments(folded(spoilt[::-1]), seen)
    assert_moments(folded([(seen[:, None], np.ones((len(seen), 1), bool))]), seen)


@pytest.mark.parametrize("shape", [(16, 8), (128, 512)])
def test_a_large_offset_loses_no_accuracy(shape: tuple[int, int]) -> None:
    # Spread 1 at 1e4: a float32 there resolves 1e-3, so 1% of the spread is easily had if sums are taken with care.
    rng = np.random.default_rng(1)
    batches = [((1e4 + rng.standard_normal((*shape, SIZE))).astype(np.float32), np.ones(shape, bool)) for _ in range(3)]
    seen = np.concatenate([observations.reshape(-1, SIZE).astype(np.float64) for observations, _ in batches])
    statistics = folded(batches)
    assert np.abs(statistics.mean - seen.mean(axis=0)).max() < 0.01
    np.testing.assert_allclose(statistics.std(), seen.std(axis=0), rtol=0.01)
    normalized = statistics.normalize(jnp.asarray(seen, jnp.float32), clip=10.0)
    np.testing.assert_allclose(normalized, (seen - seen.mean(axis=0)) / seen.std(axis=0), atol=0.05)


def test_a_constant_observation_normalises_to_zero() -> None:
    for constant in (0.0, 3.3, -1e4):
        observations = np.full((128, 512, SIZE), constant, np.float32)
        statistics = folded([(observations, np.ones((128, 512), bool))] * 2)
        normalized = statistics.normalize(jnp.asarray(observations[0]), clip=10.0)
        # Never below 1e-4, the standard deviation would blow a rounding error of the mean up to that times 1e4.
        rounding = abs(constant) * 2.0**-23 / 1e-4
        assert np.abs(normalized).max() <= 4 * rounding


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30])
def test_a_batch_that_is_not_finite_changes_nothing(poison: float) -> None:
    # 1e30 is finite, its square in float32 is not.
    batches = batches_of(np.random.default_rng(2))
    before = folded(batches)
    observations = batches[1][0].copy()
    observations[4, 3, 1] = poison
    after = folded([(observations, np.ones(observations.shape[:2], bool))], before)
    for ours, theirs in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_valid_changes_nothing() -> None:
    batches = batches_of(np.random.default_rng(3))
    for before in (folded(batches), ObservationStatistics.empty(SIZE)):
        after = folded([(batches[1][0], np.zeros(batches[1][1].shape, bool))], before)
        for ours, theirs in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_normalisation_by_hand() -> None:
    # Three observations of mean (2, 0, 5) and variance (8/3, 2/3, 0).
    observations = np.asarray([[[0, 1, 5]], [[2, -1, 5]], [[4, 0, 5]]], np.float32)
    statistics = folded([(observations, np.ones((3, 1), bool))])
    std = np.sqrt([8 / 3, 2 / 3])
    np.testing.assert_allclose(statistics.std(), [*std, 1e-4], rtol=1e-6)
    inputs = jnp.asarray([[3.0, -1.0, 5.0], [1000.0, -1000.0, 5.1]])
    expected = [[1 / std[0], -1 / std[1], 0.0], [4.0, -4.0, 4.0]]
    np.testing.assert_allclose(statistics.normalize(inputs, clip=4.0), expected, rtol=1e-6)


def test_before_anything_was_seen_observations_pass_through() -> None:
    inputs = jnp.asarray([[3.0, -0.5, 100.0]])
    normalized = ObservationStatistics.empty(SIZE).normalize(inputs, clip=10.0)
    np.testing.assert_array_equal(normalized, [[3.0, -0.5, 10.0]])
