"""The critic's fit against hand-written Adam steps, and which samples each of them sees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import references
from tests.algorithm.policies import OBSERVATION, as_jax, bytes_of, random_network, to_numpy, value_of
from tests.references import Array, Network
from trpo_brax.algorithm import CriticFit, fit_by_minibatches

RATE = 1e-2
OPTIMIZER = optax.flatten(optax.adam(RATE))
"""Its state is over all parameters as one vector."""
LENGTH, ENVIRONMENTS = 6, 5


@functools.cache
def compiled(epochs: int, minibatches: int) -> Callable[..., CriticFit]:
    """Return the compiled fit of a network critic by Adam."""
    return jax.jit(
        lambda parameters, state, observations, targets, valid: fit_by_minibatches(
            value_of,
            OPTIMIZER,
            parameters,
            state,
            observations,
            targets,
            valid,
            epochs=epochs,
            minibatches=minibatches,
        )
    )


def problem(seed: int = 0, length: int = LENGTH) -> tuple[Network, Array, Array, Array]:
    """Return a critic, observations [N, T, O], targets [N, T] and valid [N, T]."""
    rng = np.random.default_rng(seed)
    critic = random_network(rng, 1, gaussian=False)
    observations, targets = (
        rng.standard_normal((ENVIRONMENTS, length, OBSERVATION)),
        rng.standard_normal((ENVIRONMENTS, length)),
    )
    return critic, observations, targets, rng.uniform(size=targets.shape) > 0.2


def fit(
    critic: Network,
    observations: Array,
    targets: Array,
    valid: Array,
    *,
    epochs: int,
    minibatches: int,
    state: Any = None,
) -> CriticFit:
    parameters = as_jax(critic)
    state = OPTIMIZER.init(parameters) if state is None else state
    arrays = (as_jax(observations), as_jax(targets), jnp.asarray(valid))
    return compiled(epochs, minibatches)(parameters, state, *arrays)


def by_hand(
    critic: Network, observations: Array, targets: Array, valid: Array, *, epochs: int, minibatches: int
) -> tuple[Network, float]:
    """Return the critic after Adam steps on time steps m, m + M, ... in turn, and the last pass's mean loss."""
    vector = references.flatten(critic)
    adam = references.Adam(RATE, np.zeros_like(vector), np.zeros_like(vector))
    for _ in range(epochs):
        losses = []
        for m in range(minibatches):
            used = valid[:, m::minibatches]
            loss, gradient = references.squared_error(
                references.unflatten(vector, critic),
                observations[:, m::minibatches][used],
                targets[:, m::minibatches][used],
            )
            vector = adam.step(vector, gradient)
            losses.append(loss)
    return references.unflatten(vector, critic), float(np.mean(losses))


@pytest.mark.parametrize(("epochs", "minibatches", "length"), [(1, 1, 6), (1, 2, 6), (3, 2, 6), (2, 4, 6), (2, 5, 7)])
def test_matches_adam_steps_written_by_hand(float64: None, epochs: int, minibatches: int, length: int) -> None:
    case = problem(length=length)
    expected, loss = by_hand(*case, epochs=epochs, minibatches=minibatches)
    result = fit(*case, epochs=epochs, minibatches=minibatches)
    np.testing.assert_allclose(
        references.flatten(result.parameters), references.flatten(expected), rtol=1e-10, atol=1e-12
    )
    assert float(result.loss) == pytest.approx(loss, rel=1e-11)
    assert result.optimizer_state[0].count == epochs * minibatches


def test_the_optimiser_goes_on_where_it_was(float64: None) -> None:
    case = problem()
    first = fit(*case, epochs=1, minibatches=2)
    second = fit(to_numpy(first.parameters), *case[1:], epochs=1, minibatches=2, state=first.optimizer_state)
    both = fit(*case, epochs=2, minibatches=2)
    np.testing.assert_allclose(
        references.flatten(second.parameters), references.flatten(both.parameters), rtol=1e-12, atol=1e-14
    )


# Which samples a minibatch holds


def recorder(updates: int) -> optax.GradientTransformation:
    """Return an optimiser that changes nothing and keeps every gradient it is given."""

    def init(parameters: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros((), jnp.int32), jnp.zeros((updates, *parameters.shape))

    def update(gradient: jax.Array, state: Any, _: Any = None) -> Any:
        count, seen = state
        return jnp.zeros_like(gradient), (count + 1, seen.at[count].set(gradient))

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    ("length", "minibatches", "expected"),
    [
        (6, 2, [[0, 2, 4], [1, 3, 5]]),
        (6, 3, [[0, 3], [1, 4], [2, 5]]),
        (5, 2, [[0, 2, 4], [1, 3]]),
        (5, 4, [[0, 4], [1], [2], [3]]),
        (3, 8, [[0], [1], [2]]),
        (4, 1, [[0, 1, 2, 3]]),
    ],
)
def test_minibatch_m_holds_time_steps_m_and_every_mth_after(
    length: int, minibatches: int, expected: list[list[int]]
) -> None:
    # The critic is a table of one value a sample, so a gradient shows which samples it came from and with which weight.
    samples = jnp.arange(ENVIRONMENTS * length).reshape(ENVIRONMENTS, length)
    table = jnp.zeros(ENVIRONMENTS * length)
    optimizer = recorder(2 * len(expected))
    result = fit_by_minibatches(
        lambda parameters, inputs: parameters[inputs[..., 0]],
        optimizer,
        table,
        optimizer.init(table),
        samples[..., None],
        jnp.ones(samples.shape),
        jnp.ones(samples.shape, bool),
        epochs=2,
        minibatches=minibatches,
    )
    count, gradients = result.optimizer_state
    assert count == 2 * len(expected)
    for update, gradient in enumerate(np.asarray(gradients)):
        steps = expected[update % len(expected)]
        wanted = np.zeros((ENVIRONMENTS, length))
        wanted[:, steps] = -2 / (len(steps) * ENVIRONMENTS)  # d mean (V - 1)^2 / dV at V = 0
        np.testing.assert_allclose(gradient.reshape(ENVIRONMENTS, length), wanted, rtol=1e-6)
    assert float(result.loss) == pytest.approx(1.0, rel=1e-6)


# What must not matter, and what must not happen


@pytest.mark.parametrize("field", ["observations", "targets"])
def test_what_an_invalid_sample_holds_does_not_matter(field: str) -> None:
    """As long as it is finite; here the square of its error overflows."""
    critic, observations, targets, valid = problem()
    assert 0 < valid.sum() < valid.size
    spoilt = {"observations": observations.copy(), "targets": targets.copy()}
    spoilt[field][~valid] = 1e30
    expected = fit(critic, observations, targets, valid, epochs=2, minibatches=2)
    result = fit(critic, spoilt["observations"], spoilt["targets"], valid, epochs=2, minibatches=2)
    assert bytes_of(result) == bytes_of(expected)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_minibatch_that_is_not_finite_is_left_out(float64: None, poison: float) -> None:
    critic, observations, targets, _ = problem()
    valid = np.ones(targets.shape, bool)
    targets[2, 3] = poison  # in the second of two minibatches
    result = fit(critic, observations, targets, valid, epochs=3, minibatches=2)
    healthy, _ = by_hand(critic, observations[:, ::2], targets[:, ::2], valid[:, ::2], epochs=3, minibatches=1)
    np.testing.assert_allclose(
        references.flatten(result.parameters), references.flatten(healthy), rtol=1e-10, atol=1e-12
    )
    assert (int(result.optimizer_state[0].count), int(result.refused)) == (3, 3)


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 1e25, 1e38])
def test_nothing_that_is_not_finite_is_ever_kept(size: float) -> None:
    # 1e25 is finite and so is its gradient, but not the square of it that Adam would keep for good.
    critic, observations, targets, valid = problem()
    targets[valid] = size
    parameters = as_jax(critic)
    state = OPTIMIZER.init(parameters)
    result = fit(critic, observations, targets, valid, epochs=2, minibatches=2, state=state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((result.parameters, result.optimizer_state)))
    assert bytes_of((result.parameters, result.optimizer_state)) == bytes_of((parameters, state))


def test_nothing_valid_changes_nothing() -> None:
    critic, observations, targets, valid = problem()
    result = fit(critic, observations, targets, np.zeros_like(valid), epochs=2, minibatches=2)
    assert bytes_of(result.parameters) == bytes_of(as_jax(critic))
    assert np.isnan(result.loss), "no sample, no loss: null in the records, never 0"


def test_without_a_valid_sample_momentum_does_not_go_on_either() -> None:
    critic, observations, targets, valid = problem()
    before = fit(critic, observations, targets, valid, epochs=2, minibatches=2)
    critic = to_numpy(before.parameters)
    nothing = fit(
        critic, observations, targets, np.zeros_like(valid), epochs=2, minibatches=2, state=before.optimizer_state
    )
    assert bytes_of((nothing.parameters, nothing.optimizer_state)) == bytes_of(
        (before.parameters, before.optimizer_state)
    )
    # A minibatch without one is left out, and the other is not.
    half = valid & (np.arange(LENGTH) % 2 == 1)
    one = fit(critic, observations, targets, half, epochs=1, minibatches=2, state=before.optimizer_state)
    only = fit(
        critic,
        observations[:, 1::2],
        targets[:, 1::2],
        valid[:, 1::2],
        epochs=1,
        minibatches=1,
        state=before.optimizer_state,
    )
    np.testing.assert_allclose(references.flatten(one.parameters), references.flatten(only.parameters), rtol=1e-6)
    assert one.optimizer_state[0].count == before.optimizer_state[0].count + 1
