"""What the returns of many episodes say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from trpo_brax.evaluation.episodes import Episodes
from trpo_brax.evaluation.failure import DEFAULT_FAILURE, Failure
from trpo_brax.evaluation.interquartile import interquartile_mean


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """Statistics of E episodes, and the episodes themselves."""

    episodes: int
    return_mean: float
    return_std: float
    """Sample standard deviation; 0 for one episode."""
    return_iqm: float
    """Interquartile mean: the mean of the middle half (Agarwal et al. 2021, arXiv 2108.13264)."""
    return_min: float
    return_quantile_05: float
    """5% quantile, linearly interpolated."""
    return_cvar_05: float
    """Mean of the worst 5% of episodes, rounded up to whole ones."""
    length_mean: float
    """Control steps."""
    failure_rate: float
    """Share of episodes that failed."""
    failure: str
    """What counts as a failure."""
    nonfinite_rate: float
    """Share of episodes that went non-finite; their returns are those of the steps before."""
    return_quantile_25: float
    return_quantile_50: float
    return_quantile_75: float
    return_quantile_95: float
    return_max: float
    length_min: int
    length_max: int
    details: Episodes = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, float | int | str]:
        """Return the statistics without the episodes."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "details"}


def summarize(episodes: Episodes, failure: Failure = DEFAULT_FAILURE) -> EvaluationReport:
    """Return the statistics of at least one episode."""
    returns = np.sort(episodes.returns.astype(np.float64))
    low, lower, middle, upper, high = (float(x) for x in np.quantile(returns, (0.05, 0.25, 0.5, 0.75, 0.95)))
    return EvaluationReport(
        episodes=int(returns.size),
        return_mean=float(returns.mean()),
        return_std=float(returns.std(ddof=1)) if returns.size > 1 else 0.0,
        return_iqm=float(interquartile_mean(returns)),
        return_min=float(returns[0]),
        return_quantile_05=low,
        return_cvar_05=conditional_value_at_risk(returns, 0.05),
        length_mean=float(episodes.lengths.mean()),
        failure_rate=float(failure(episodes).mean()),
        failure=str(failure),
        nonfinite_rate=float(episodes.nonfinite.mean()),
        return_quantile_25=lower,
        return_quantile_50=middle,
        return_quantile_75=upper,
        return_quantile_95=high,
        return_max=float(returns[-1]),
        length_min=int(episodes.lengths.min()),
        length_max=int(episodes.lengths.max()),
        details=episodes,
    )


def lower_quantile(values: npt.ArrayLike, probability: float) -> float:
    """Return the lowest of values [E] that at least a share `probability` of them does not exceed."""
    return float(np.quantile(np.asarray(values, np.float64), probability, method="inverted_cdf"))


def conditional_value_at_risk(returns: npt.ArrayLike, alpha: float) -> float:
    """Return the mean of the worst `alpha` share of returns [E], rounded up to whole episodes (CVaR)."""
    ordered = np.sort(np.asarray(returns, np.float64))
    return float(ordered[: math.ceil(alpha * ordered.size)].mean())
