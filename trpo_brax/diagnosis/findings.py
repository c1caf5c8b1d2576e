"""Why a run did not learn: named findings in its metrics, each with the iteration where it began."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trpo_brax.config import Config
from trpo_brax.diagnosis import experience_findings, update_findings
from trpo_brax.diagnosis.evidence import Evidence, Finding

__all__ = ["Finding", "by_seed", "diagnose"]

_LOOKS: tuple[Callable[[Evidence], Finding | None], ...] = (
    experience_findings.environments_nonfinite,
    experience_findings.reward_scale,
    experience_findings.observation_exploding,
    experience_findings.observation_constant,
    experience_findings.actions_saturated,
    experience_findings.explained_variance,
    update_findings.cg_residual_high,
    update_findings.steps_rejected,
    update_findings.kl_below_limit,
    update_findings.entropy_collapse,
    experience_findings.return_flat,
    experience_findings.mean_action_below_samples,
)
"""In the order in which one can be the cause of another: rollout, advantages, policy step, and what came of them."""


def diagnose(records: Sequence[dict[str, Any]], config: Config) -> tuple[Finding, ...]:
    """Return what is found in the metrics of one seed, problems first.

    Args:
        records: of metrics.jsonl, of one seed, in any order; quantities that they lack are not judged.
        config: of the run.
    """
    if not records:
        return ()
    evidence = Evidence(sorted(records, key=lambda record: record["iteration"]), config)
    found = [finding for look in _LOOKS if (finding := look(evidence)) is not None]
    return tuple(sorted(found, key=lambda finding: finding.level != "problem"))


def by_seed(records: Iterable[dict[str, Any]], config: Config) -> dict[int, list[dict[str, Any]]]:
    """Return the records of each of the run's seeds; a seed without any has an empty list."""
    rows: dict[int, list[dict[str, Any]]] = {seed: [] for seed in config.seeds}
    for record in records:
        if record["seed"] in rows:
            rows[record["seed"]].append(record)
    return rows
