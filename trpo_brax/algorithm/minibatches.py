"""Fitting a value function by an optax optimiser, minibatch by minibatch: for critics too wide for second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from trpo_brax.algorithm.critic import CriticFit
from trpo_brax.algorithm.line_search import all_finite
from trpo_brax.algorithm.surrogate import Parameters


class Minibatch(NamedTuple):
    """Samples of one update; all minibatches of a pass lead with [M]."""

    observations: jax.Array
    """[S, observation]"""
    targets: jax.Array
    """[S]"""
    weights: jax.Array
    """[S]: 0 for an invalid sample; of the valid ones they sum to one."""
    some_valid: jax.Array
    """bool []"""


def fit_by_minibatches(
    value_of: Callable[[Parameters, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    parameters: Parameters,
    optimizer_state: Any,
    observations: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
    *,
    epochs: int,
    minibatches: int,
) -> CriticFit:
    """Minimise mean squared error by `epochs` passes over `minibatches` minibatches.

    Parameters are one vector throughout: an update of a small network is a few small operations, whose number and not
    whose size is what they cost.

    Minibatch m holds time steps m, m + M, m + 2M, ... of every environment: its samples are as far apart in time as
    they can be, its content does not depend on how environments are spread over devices, and nothing but the mean
    gradient crosses a device boundary. A minibatch whose update would not be finite changes nothing.

    Args:
        value_of: (parameters, observations [..., observation]) -> values [...], by matrix products of the highest
            precision: a GPU's default is TF32.
        optimizer: any optax transformation.
        parameters: of the critic.
        optimizer_state: of `optimizer` for the parameters as one vector, as `optax.flatten` initialises it.
        observations: [N, T, observation], finite.
        targets: [N, T], finite.
        valid: [N, T] samples that may be used.
        epochs: passes.
        minibatches: per pass; at most T are used.
    """
    length = targets.shape[1]
    minibatches = min(minibatches, length)

    def split(array: jax.Array) -> jax.Array:
        """Return [M, N T / M, ...]: environments lead within a minibatch, so that every shard stays whole."""
        padded = jnp.pad(array, [(0, 0), (0, -length % minibatches)] + [(0, 0)] * (array.ndim - 2))
        strided = padded.reshape(array.shape[0], -1, minibatches, *array.shape[2:])
        return jnp.moveaxis(strided, 2, 0).reshape(minibatches, -1, *array.shape[2:])

    # Padding is False in `valid`, so it weighs nothing. Weights are made before the loop: counting crosses devices.
    used = split(valid)
    counts = jnp.sum(used, axis=1)
    data = Minibatch(
        split(observations),
        split(targets),
        used / jnp.maximum(counts, 1)[:, None],
        counts > 0,
    )
    vector, as_tree = ravel_pytree(parameters)

    def loss_of(candidate: jax.Array, minibatch: Minibatch) -> jax.Array:
        errors = value_of(as_tree(candidate), minibatch.observations) - minibatch.targets
        return jnp.sum(jnp.where(minibatch.weights > 0, minibatch.weights * jnp.square(errors), 0.0))

    def update(carry: tuple[jax.Array, Any], minibatch: Minibatch) -> Any:
        old, old_state = carry
        loss, gradient = jax.value_and_grad(loss_of)(old, minibatch)
        updates, new_state = optimizer.update(gradient, old_state, old)
        new = optax.apply_updates(old, updates)
        # Without a valid sample Adam would still move, by its momentum.
        finite = all_finite((new, new_state, gradient))
        kept = optax.tree_utils.tree_where(finite & minibatch.some_valid, (new, new_state), (old, old_state))
        return kept, (loss, ~finite)

    def one_pass(carry: tuple[jax.Array, Any], _: None) -> Any:
        carry, (losses, refused) = jax.lax.scan(update, carry, data)
        return carry, (jnp.mean(losses), jnp.sum(refused, dtype=jnp.int32))

    carry = (vector, optimizer_state)
    (vector, optimizer_state), (losses, refused) = jax.lax.scan(one_pass, carry, None, length=epochs)
    loss = jnp.where(jnp.any(valid), losses[-1], jnp.nan)
    return CriticFit(as_tree(vector), optimizer_state, loss, jnp.sum(refused))
