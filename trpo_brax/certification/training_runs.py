"""What the next training run will reach, from independent runs of one configuration with different seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from trpo_brax.certification.bounds import quantile_lower

_TOLERANCE_SHARES = (0.5, 0.75, 0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class TrainingRunsStatement:
    """Statements about training itself, from m runs that are summarised by one figure each, higher being better.

    They assume that the seeds were all the difference between the runs, and that no run was left out. Each holds by
    itself; those with a confidence do not hold jointly at it.
    """

    runs: int
    """m."""
    worst: float
    """The lowest of the m figures."""
    probability_next_below_worst: float
    """At most 1 / (m + 1), over the m runs and the next: each of m + 1 exchangeable runs is as likely the lowest, and
    ties only help."""
    share_reaching_worst_lower: float
    """With the confidence, at least this share of all training runs reaches `worst`: (1 - confidence)^(1 / m)."""
    tolerances: tuple[tuple[float, float], ...]
    """Pairs (share, figure): with the confidence, at least that share of all training runs reaches the figure, an order
    statistic of the m. A share for which m is too small is absent."""
    confidence: float

    def sentences(self) -> tuple[str, ...]:
        """Return the statements in plain English, one each; a tolerance at `worst` says no more than the second."""
        runs = "the 1 training run" if self.runs == 1 else f"the {self.runs} training runs"
        sure = f"With {100.0 * self.confidence:.6g}% confidence, at least"
        return (
            f"The next training run ends below {self.worst:.6g}, the worst of {runs}, with probability at most "
            f"1/{self.runs + 1} ({self.probability_next_below_worst:.1%}).",
            f"{sure} {_percent_down(self.share_reaching_worst_lower)} of all training runs reach {self.worst:.6g}.",
            *(
                f"{sure} {share:.0%} of all training runs reach {figure:.6g}."
                for share, figure in self.tolerances
                if figure > self.worst
            ),
        )


def training_runs_statement(figures: npt.ArrayLike, confidence: float) -> TrainingRunsStatement:
    """Return what m training runs `[m]`, each measured in the same way, say about the next one.

    A share s of the runs reaches a lower bound on the (1 - s) quantile, so the tolerance statements are those of
    `quantile_lower` (Wilks 1941, one-sided tolerance limits). A figure may be -inf, a run that came to nothing.

    Raises ValueError where there is no figure, one is not a number, or the confidence is not inside (0, 1).
    """
    array = np.asarray(figures, np.float64)
    if array.ndim != 1 or array.size == 0 or np.isnan(array).any():
        raise ValueError(f"training runs need one figure at least, all of them numbers, in one axis: {array}")
    bounds = ((share, quantile_lower(array, 1.0 - share, confidence)) for share in _TOLERANCE_SHARES)
    return TrainingRunsStatement(
        runs=int(array.size),
        worst=float(array.min()),
        probability_next_below_worst=1.0 / (array.size + 1),
        share_reaching_worst_lower=(1.0 - confidence) ** (1.0 / array.size),
        tolerances=tuple((share, figure) for share, figure in bounds if figure is not None),
        confidence=confidence,
    )


def _percent_down(share: float) -> str:
    """Return a share as per cent with one decimal, rounded down: a promise is never rounded up."""
    return f"{np.floor(1000.0 * share) / 10.0:.1f}%"
