"""A trained policy: observation in, action out."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_brax.config import NetworkConfig
from trpo_brax.policy.actions import ActionBounds
from trpo_brax.policy.distributions import DiagonalGaussian
from trpo_brax.policy.networks import Networks
from trpo_brax.policy.observation_statistics import ObservationStatistics


@dataclasses.dataclass(frozen=True)
class PolicySpecification:
    """What a policy is, without its numbers: enough to rebuild it with no environment at hand."""

    network: NetworkConfig
    observation_size: int
    bounds: ActionBounds

    def networks(self) -> Networks:
        """Return the networks it is made of."""
        return Networks.build(self.network, self.observation_size, self.bounds)

    def distribution(
        self, parameters: Any, statistics: ObservationStatistics, observations: jax.Array
    ) -> DiagonalGaussian:
        """Return the distribution over raw actions for raw observations [..., observation]."""
        normalized = statistics.normalize(observations, self.network.observation_clip)
        return self.networks().distribution(parameters, normalized)


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """Observation -> action, exactly as the environment's `step` receives it; pure, so it can be jitted and vmapped."""

    specification: PolicySpecification
    parameters: Any = dataclasses.field(repr=False)
    statistics: ObservationStatistics = dataclasses.field(repr=False)

    def __call__(self, observation: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Return the mean action, or one drawn with `key`.

        Args:
            observation: [..., observation], as the environment gives it.
            key: a PRNG key: sample; None: the mean of what sampling would give, clipped where an
                action is bounded on both sides.

        Returns:
            [..., A] within the action bounds.

        Raises:
            ValueError: the observation has another size than the policy was trained on.
        """
        observation = jnp.asarray(observation, jnp.float32)
        size = self.specification.observation_size
        if observation.shape[-1:] != (size,):
            raise ValueError(f"this policy observes {size} numbers, not an array of shape {observation.shape}.")
        distribution = self.specification.distribution(self.parameters, self.statistics, observation)
        bounds = self.specification.bounds
        return bounds.to_environment(
            distribution.mean_within(bounds.bounded) if key is None else distribution.sample(key)
        )

    def fingerprint(self) -> str:
        """Return the SHA-256, in hexadecimal, of all that decides how it acts: specification and every number."""
        digest = hashlib.sha256(repr(self.specification).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path((self.parameters, self.statistics)):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()
