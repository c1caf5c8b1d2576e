"""The surrogate objective and the divergence that bounds it, over a weighted batch of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

Parameters = Any
"""A pytree of float arrays."""
Self = TypeVar("Self", bound="Distribution")


@runtime_checkable
class Distribution(Protocol):
    """What the update asks of an action distribution over a batch of states; a pytree whose leaves are [..., k]."""

    def log_prob(self, actions: jax.Array) -> jax.Array:
        """Log density of actions [..., A], in nats [...]."""
        ...

    def kl(self: Self, new: Self) -> jax.Array:
        """KL(self || new), in nats [...]."""
        ...

    def fisher_metric(self: Self, tangent: Self) -> Self:
        """Apply the Fisher metric of the distribution parameters to a tangent, leaf by leaf [..., k]."""
        ...


class PolicyBatch(NamedTuple):
    """Samples of one update; what those of weight 0 hold is finite and counts for nothing."""

    inputs: jax.Array
    """[S, ...]: what the policy network reads."""
    actions: jax.Array
    """[S, action]: as sampled from the distribution, before clipping."""
    advantages: jax.Array
    """[S]: centred and scaled."""
    weights: jax.Array
    """[S]: of each sample, summing to one; 0 for a transition that must not be used."""
    fisher_inputs: jax.Array
    """[F, ...]: those of the samples that Fisher products see."""
    fisher_weights: jax.Array
    """[F]: theirs, summing to one."""

    def against(self, old: Distribution) -> Callable[[Distribution], Evaluation]:
        """Return candidate -> its `Evaluation` against the old policy; the improvement is the surrogate's."""
        return evaluator(old, self)


class Evaluation(NamedTuple):
    """A candidate policy against the old one."""

    improvement: jax.Array
    """[]: surrogate minus the old policy's surrogate."""
    kl_mean: jax.Array
    """[]: mean KL(old || new) over states, in nats."""
    kl_max: jax.Array
    """[]: largest KL(old || new) of any state, in nats."""
    ratio_excess: jax.Array
    """[]: mean of probability ratio - 1."""


def sample_weights(valid: jax.Array) -> jax.Array:
    """Return weights [...] that average over the valid samples [...]; all zero if there are none."""
    used = valid.astype(jnp.float32)
    return used / jnp.maximum(jnp.sum(used), 1.0)


class Batch(Protocol):
    """What a trust-region step asks of its samples: an objective that it can raise, and states for the metric."""

    @property
    def inputs(self) -> jax.Array:
        """[S, ...]: what the network reads."""
        ...

    @property
    def fisher_inputs(self) -> jax.Array:
        """[F, ...]: those of the samples that Fisher products see."""
        ...

    @property
    def fisher_weights(self) -> jax.Array:
        """[F]: theirs, summing to one."""
        ...

    def against(self, old: Any) -> Callable[[Any], Evaluation]:
        """Return candidate's distribution over the samples -> its `Evaluation` against the old one."""
        ...


def surrogate(new: Distribution, old: Distribution, batch: PolicyBatch) -> jax.Array:
    """Return L(theta) = mean(pi(a|s) / pi_old(a|s) A(s, a)) [] (Schulman et al. 2015, equation 14).

    Args:
        new: of the candidate, over the batch.
        old: of the old policy, over the batch.
        batch: the samples.
    """
    ratio = jnp.exp(new.log_prob(batch.actions) - old.log_prob(batch.actions))
    return weighted_mean(ratio * batch.advantages, batch.weights)


def evaluator(old: Distribution, batch: PolicyBatch) -> Callable[[Distribution], Evaluation]:
    """Return candidate -> `Evaluation` against the old distribution over the same batch.

    At the old distribution itself the improvement and every KL are exactly 0.
    """
    old_log_prob = old.log_prob(batch.actions)

    def evaluate(new: Distribution) -> Evaluation:
        # expm1 keeps the digits of small improvements that the difference of two surrogates would lose.
        excess = jnp.expm1(new.log_prob(batch.actions) - old_log_prob)
        kl = old.kl(new)
        return Evaluation(
            improvement=weighted_mean(excess * batch.advantages, batch.weights),
            kl_mean=weighted_mean(kl, batch.weights),
            kl_max=jnp.max(jnp.where(batch.weights > 0, kl, 0.0)),
            ratio_excess=weighted_mean(excess, batch.weights),
        )

    return evaluate


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return sum(weights * values) []; entries of weight 0 may hold anything."""
    # `where`, not a product: the ratio of an unused sample may overflow where no other one's does.
    return jnp.sum(jnp.where(weights > 0, values * weights, 0.0))
