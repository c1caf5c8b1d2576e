"""What acts and what judges: networks, action distributions, observation statistics."""

from trpo_brax.policy.actions import ActionBounds
from trpo_brax.policy.distributions import DiagonalGaussian
from trpo_brax.policy.networks import CriticParameters, Networks
from trpo_brax.policy.observation_statistics import ObservationStatistics
from trpo_brax.policy.policy import Policy, PolicySpecification

__all__ = [
    "ActionBounds",
    "CriticParameters",
    "DiagonalGaussian",
    "Networks",
    "ObservationStatistics",
    "Policy",
    "PolicySpecification",
]
