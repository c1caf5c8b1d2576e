"""The guarantee behind the trust region: a lower bound on a policy's improvement."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def penalty_coefficient(advantage_max_abs: jax.Array, discount: float | jax.Array) -> jax.Array:
    """Return C = 4 eps gamma / (1 - gamma)^2 [] (Schulman et al. 2015, theorem 1), NaN at gamma = 1.

    Args:
        advantage_max_abs: eps = max |A_old(s, a)| [], raw advantages.
        discount: gamma.
    """
    left = jnp.asarray(1.0 - discount)
    return jnp.where(left > 0, 4.0 * advantage_max_abs * discount / left**2, jnp.nan)


def improvement_lower_bound(
    surrogate_gain: jax.Array, advantage_max_abs: jax.Array, kl_max: jax.Array, discount: float | jax.Array
) -> jax.Array:
    """Return a sample estimate [] of eta(new) - eta(old) >= gain / (1 - gamma) - C KL_max, NaN at gamma = 1.

    Args:
        surrogate_gain: mean((ratio - 1) A_raw) over the batch [].
        advantage_max_abs: max |A_raw| over the batch [].
        kl_max: largest KL(old || new) of any state [], nats.
        discount: gamma.
    """
    return surrogate_gain / jnp.asarray(1.0 - discount) - penalty_coefficient(advantage_max_abs, discount) * kl_max
