"""The mathematics of the update, as pure functions of arrays and callables."""

from trpo_brax.algorithm.advantages import (
    generalized_advantage_estimation,
    standardize,
    successor_values,
    weighted_moments,
)
from trpo_brax.algorithm.bound import improvement_lower_bound, penalty_coefficient
from trpo_brax.algorithm.conjugate_gradient import ConjugateGradientResult, conjugate_gradient
from trpo_brax.algorithm.critic import CriticFit, UnitGaussian, ValueBatch, explained_variance, fit_by_gauss_newton
from trpo_brax.algorithm.fisher import fisher_product
from trpo_brax.algorithm.line_search import (
    Accept,
    FullStep,
    LineSearchResult,
    StepOutcome,
    all_finite,
    any_improvement,
    anywhere,
    backtracking_line_search,
    inside_the_region,
)
from trpo_brax.algorithm.minibatches import fit_by_minibatches
from trpo_brax.algorithm.surrogate import (
    Batch,
    Distribution,
    Evaluation,
    PolicyBatch,
    evaluator,
    sample_weights,
    surrogate,
    weighted_mean,
)
from trpo_brax.algorithm.trust_region import (
    Scale,
    TrustRegionStep,
    to_the_edge,
    to_the_minimum,
    trust_region_step,
)

__all__ = [
    "Accept",
    "Batch",
    "ConjugateGradientResult",
    "CriticFit",
    "Distribution",
    "Evaluation",
    "FullStep",
    "LineSearchResult",
    "PolicyBatch",
    "Scale",
    "StepOutcome",
    "TrustRegionStep",
    "UnitGaussian",
    "ValueBatch",
    "all_finite",
    "any_improvement",
    "anywhere",
    "backtracking_line_search",
    "conjugate_gradient",
    "evaluator",
    "explained_variance",
    "fisher_product",
    "fit_by_gauss_newton",
    "fit_by_minibatches",
    "generalized_advantage_estimation",
    "improvement_lower_bound",
    "inside_the_region",
    "penalty_coefficient",
    "sample_weights",
    "standardize",
    "successor_values",
    "surrogate",
    "to_the_edge",
    "to_the_minimum",
    "trust_region_step",
    "weighted_mean",
    "weighted_moments",
]
