"""The mathematics of the update, as pure functions of arrays and callables."""

from trpo_brax.algorithm.advantages import (
    generalized_advantage_estimation,
    standardize,
    successor_values,
    weighted_moments,
)
from trpo_brax.algorithm.bound import improvement_lower_bound, penalty_coefficient
from trpo_brax.algorithm.conjugate_gradient import ConjugateGradientResult, conjugate_gradient
from trpo_brax.algorithm.critic import CriticFit, explained_variance, fit_critic
from trpo_brax.algorithm.damping import DampingState
from trpo_brax.algorithm.fisher import fisher_product
from trpo_brax.algorithm.line_search import LineSearchResult, StepOutcome, all_finite, backtracking_line_search
from trpo_brax.algorithm.natural_step import FullStep, full_natural_step
from trpo_brax.algorithm.policy_update import PolicyUpdate, StepSamples
from trpo_brax.algorithm.surrogate import (
    Distribution,
    Evaluation,
    PolicyBatch,
    evaluator,
    sample_weights,
    surrogate,
)
from trpo_brax.algorithm.trust_region import TrustRegionStep, trust_region_step

__all__ = [
    "ConjugateGradientResult",
    "CriticFit",
    "DampingState",
    "Distribution",
    "Evaluation",
    "FullStep",
    "LineSearchResult",
    "PolicyBatch",
    "PolicyUpdate",
    "StepOutcome",
    "StepSamples",
    "TrustRegionStep",
    "all_finite",
    "backtracking_line_search",
    "conjugate_gradient",
    "evaluator",
    "explained_variance",
    "fisher_product",
    "fit_critic",
    "full_natural_step",
    "generalized_advantage_estimation",
    "improvement_lower_bound",
    "penalty_coefficient",
    "sample_weights",
    "standardize",
    "successor_values",
    "surrogate",
    "trust_region_step",
    "weighted_moments",
]
