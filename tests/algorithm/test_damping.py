"""Damping rises after refused steps and comes back: against a plain Python rule, and by hand."""

from __future__ import annotations

import dataclasses
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.algorithm.policies import as_jax, gaussian_policy, policy_batch, random_batch, random_network
from trpo_brax.algorithm import DampingState, StepOutcome, trust_region_step
from trpo_brax.config import TrustRegionConfig

SETTINGS = TrustRegionConfig(damping=0.1, damping_patience=3, damping_growth=4.0, damping_levels=2)
REFUSALS = [
    StepOutcome.KL_EXCEEDED,
    StepOutcome.NO_IMPROVEMENT,
    StepOutcome.NON_FINITE,
    StepOutcome.BAD_CURVATURE,
]


def values_over(outcomes: list[StepOutcome], settings: TrustRegionConfig) -> list[float]:
    """Return the damping before each step and after the last."""
    after = jax.jit(lambda state, outcome: state.after(outcome, settings))
    state = DampingState.initial()
    values = [float(state.value(settings))]
    for outcome in outcomes:
        state = after(state, jnp.int32(outcome))
        values.append(float(state.value(settings)))
    return values


def test_by_hand() -> None:
    """Three refusals raise, an accepted step lowers, and the second raise needs three more."""
    no, yes = StepOutcome.KL_EXCEEDED, StepOutcome.ACCEPTED
    values = values_over([no, no, no, no, no, no, no, no, no, yes, yes, yes], SETTINGS)
    low, once, twice = 0.1, 0.4, 1.6
    wanted = [low, low, low, once, once, once, twice, twice, twice, twice, once, low, low]
    assert values == [pytest.approx(value) for value in wanted]


@pytest.mark.parametrize("outcome", REFUSALS)
def test_every_kind_of_refusal_counts(outcome: StepOutcome) -> None:
    assert values_over([outcome] * 3, SETTINGS)[-1] == pytest.approx(0.4)


def test_a_zero_gradient_asks_for_no_step_and_changes_nothing() -> None:
    zero, no = StepOutcome.ZERO_GRADIENT, StepOutcome.NO_IMPROVEMENT
    assert values_over([no, zero, no, zero, zero, no], SETTINGS)[-1] == pytest.approx(0.4)
    assert values_over([no, no, no, zero, zero], SETTINGS)[-1] == pytest.approx(0.4)
    assert values_over([zero] * 9, SETTINGS)[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("patience", "growth", "levels"), [(1, 4.0, 6), (3, 2.0, 3), (2, 10.0, 0), (5, 1.5, 10)])
def test_any_sequence_is_the_plain_rule(seed: int, patience: int, growth: float, levels: int) -> None:
    settings = TrustRegionConfig(damping=0.1, damping_patience=patience, damping_growth=growth, damping_levels=levels)
    chance = random.Random(seed)
    outcomes = chance.choices(list(StepOutcome), weights=[3, 4, 4, 1, 1, 1], k=60)
    level, refused, wanted = 0, 0, [0.1]
    for outcome in outcomes:
        if outcome == StepOutcome.ACCEPTED:
            level, refused = max(level - 1, 0), 0
        elif outcome != StepOutcome.ZERO_GRADIENT:
            refused += 1
            if refused == patience:
                level, refused = min(level + 1, levels), 0
        wanted.append(0.1 * growth**level)
    np.testing.assert_allclose(values_over(outcomes, settings), wanted, rtol=1e-6)


def test_coming_back_is_exact() -> None:
    """Whole levels: after as many accepted steps it is the configured number again, bit for bit."""
    settings = dataclasses.replace(SETTINGS, damping=0.3, damping_growth=1.7, damping_levels=10, damping_patience=1)
    values = values_over([StepOutcome.NO_IMPROVEMENT] * 10 + [StepOutcome.ACCEPTED] * 10, settings)
    assert values[-1] == values[0] == np.float32(0.3)
    assert values == values[::-1]
    assert all(later > earlier for earlier, later in itertools.pairwise(values[:11]))


def test_without_damping_it_still_rises() -> None:
    settings = dataclasses.replace(SETTINGS, damping=0.0)
    assert values_over([StepOutcome.KL_EXCEEDED] * 3, settings) == [0.0, 0.0, 0.0, pytest.approx(4e-3)]


def test_the_step_solves_with_the_damping_it_is_given() -> None:
    """A damping handed in, as an array, is the same step as the same number in the settings."""
    rng = np.random.default_rng(0)
    network = random_network(rng)
    policy, batch = as_jax(network), policy_batch(random_batch(rng, network, 6, 5))
    settings = TrustRegionConfig(damping=0.1, fisher_fraction=0.5)

    def predicted(damping: float, given: jax.Array | None = None) -> float:
        chosen = dataclasses.replace(settings, damping=damping)
        return float(trust_region_step(gaussian_policy, policy, batch, chosen, given).predicted_improvement)

    assert predicted(0.1, jnp.float32(0.8)) == pytest.approx(predicted(0.8), rel=1e-5)
    assert predicted(0.1, jnp.float32(0.8)) != pytest.approx(predicted(0.1), rel=1e-2)
