"""What the returns of many episodes say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from trpo_brax.evaluation.episodes import Episodes
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
    """Share of episodes that ended before their time limit or went non-finite."""
    details: Episodes = dataclasses.field(repr=False)

    def to_dict(self) -> dict[str, float | int]:
        """Return the statistics without the episodes."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "details"}


def summarize(episodes: Episodes) -> EvaluationReport:
    """Return the statistics of at least one episode."""
    returns = np.sort(episodes.returns.astype(np.float64))
    worst = math.ceil(0.05 * returns.size)
    return EvaluationReport(
        episodes=int(returns.size),
        return_mean=float(returns.mean()),
        return_std=float(returns.std(ddof=1)) if returns.size > 1 else 0.0,
        return_iqm=float(interquartile_mean(returns)),
        return_min=float(returns[0]),
        return_quantile_05=float(np.quantile(returns, 0.05)),
        return_cvar_05=float(returns[:worst].mean()),
        length_mean=float(episodes.lengths.mean()),
        failure_rate=float((episodes.terminated | episodes.nonfinite).mean()),
        details=episodes,
    )
