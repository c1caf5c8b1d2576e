"""Small JAX policies for the algorithm's tests, and a second distribution that the package knows nothing of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tests.references import Array, GaussianBatch, Network
from trpo_brax.algorithm import PolicyBatch
from trpo_brax.policy import DiagonalGaussian

OBSERVATION, HIDDEN, ACTION = 3, 4, 2
"""All different, so that no broadcasting mistake hides."""


@struct.dataclass
class Categorical:
    """Actions 0 .. K-1, in the last axis of size 1, by logits."""

    logits: jax.Array
    """[..., K]"""

    def log_prob(self, actions: jax.Array) -> jax.Array:
        """Return the log probability [...] of actions [..., 1]."""
        chosen = jnp.take_along_axis(jax.nn.log_softmax(self.logits), actions.astype(jnp.int32), axis=-1)
        return jnp.squeeze(chosen, axis=-1)

    def kl(self, new: Categorical) -> jax.Array:
        """Return KL(self || new) [...]."""
        difference = jax.nn.log_softmax(self.logits) - jax.nn.log_softmax(new.logits)
        return jnp.sum(jax.nn.softmax(self.logits) * difference, axis=-1)

    def fisher_metric(self, tangent: Categorical) -> Categorical:
        """Apply diag(p) - p p^T."""
        p = jax.nn.softmax(self.logits)
        return Categorical(p * (tangent.logits - jnp.sum(p * tangent.logits, axis=-1, keepdims=True)))


def network(parameters: Any, observations: jax.Array) -> jax.Array:
    """Return the output of `tests.references.Network` parameters."""
    return jnp.tanh(observations @ parameters["w1"] + parameters["b1"]) @ parameters["w2"] + parameters["b2"]


def value_of(parameters: Any, observations: jax.Array) -> jax.Array:
    """Return a network's only output [...], as a critic's."""
    return network(parameters, observations)[..., 0]


def gaussian_policy(parameters: Any, observations: jax.Array) -> DiagonalGaussian:
    """Return a diagonal Gaussian with a network's mean and a state-independent log_std."""
    mean = network(parameters, observations)
    return DiagonalGaussian(mean, jnp.broadcast_to(parameters["log_std"], mean.shape))


def shared_gaussian_policy(parameters: Any, observations: jax.Array) -> DiagonalGaussian:
    """Return the same distribution with one log_std [A] for all states."""
    return DiagonalGaussian(network(parameters, observations), parameters["log_std"])


def categorical_policy(parameters: Any, observations: jax.Array) -> Categorical:
    """Return a categorical distribution with a network's logits."""
    return Categorical(network(parameters, observations))


def random_network(rng: np.random.Generator, outputs: int = ACTION, *, gaussian: bool = True) -> Network:
    """Return parameters far enough from 0 that tanh bends."""
    parameters = {
        "w1": rng.standard_normal((OBSERVATION, HIDDEN)),
        "b1": 0.3 * rng.standard_normal(HIDDEN),
        "w2": rng.standard_normal((HIDDEN, outputs)),
        "b2": 0.3 * rng.standard_normal(outputs),
    }
    if gaussian:
        parameters["log_std"] = rng.uniform(-1.0, 0.3, outputs)
    return parameters


def random_batch(rng: np.random.Generator, policy: Network, length: int = 6, environments: int = 5) -> GaussianBatch:
    """Return a batch [N, T] sampled from a Gaussian policy, with an eighth of the samples unused."""
    observations = rng.standard_normal((environments, length, OBSERVATION))
    mean = np.tanh(observations @ policy["w1"] + policy["b1"]) @ policy["w2"] + policy["b2"]
    actions = mean + np.exp(policy["log_std"]) * rng.standard_normal(mean.shape)
    used = rng.permutation(length * environments).reshape(environments, length) >= length * environments // 8
    advantages = rng.standard_normal((environments, length))
    return GaussianBatch(observations, actions, advantages, used / used.sum())


def as_jax(tree: Any, dtype: Any = None) -> Any:
    """Return a tree of NumPy arrays as JAX arrays, in the precision in force or `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype or jnp.result_type(float)), tree)


def policy_batch(batch: GaussianBatch, stride: int = 1) -> PolicyBatch:
    """Return a reference's batch as the package takes it; Fisher products see every `stride`-th time step."""
    observations, weights = batch.observations[:, ::stride], batch.weights[:, ::stride]
    fisher = (observations.reshape(-1, OBSERVATION), weights.ravel() / max(weights.sum(), 1e-9))
    return PolicyBatch(*(as_jax(part) for part in (*batch.flat(), *fisher)))


def bytes_of(tree: Any) -> list[bytes]:
    """Return every leaf's bytes: equality of these is equality bit for bit."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def to_numpy(tree: Any) -> dict[str, Array]:
    """Return a dictionary of arrays in float64 NumPy."""
    return {name: np.asarray(value, np.float64) for name, value in tree.items()}
