"""trpo-brax diagnose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.cli.command import Answer, command


@dataclass(frozen=True)
class DiagnoseArguments:
    """Name what a run's metrics show to have gone wrong, where it began and what to do; findings are no error."""

    run: Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    policy_seed: int | None = None
    """Whose metrics, in a run of several seeds; by default those of each."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


@command(DiagnoseArguments)
def diagnose(arguments: DiagnoseArguments) -> Answer:
    """Run `trpo-brax diagnose`."""
    from trpo_brax.diagnosis.findings import by_seed
    from trpo_brax.diagnosis.findings import diagnose as find
    from trpo_brax.runs.folder import RunFolder
    from trpo_brax.runs.records import read_metrics

    folder = RunFolder(arguments.run)
    config = folder.read_config()
    seed = None if arguments.policy_seed is None else config.check_seed(arguments.policy_seed)
    told, lines = [], []
    for one, rows in by_seed(read_metrics(folder.metrics_file), config).items():
        if seed in (None, one):
            findings, count = find(rows, config), len(rows)
            largest = max(
                (row["reward_max_abs"] for row in rows if row.get("reward_max_abs") is not None), default=None
            )
            found = [finding.to_dict() for finding in findings]
            told.append({"seed": one, "iterations": count, "reward_max_abs": largest, "findings": found})
            lines += [f"Seed {one}:"] if config.num_seeds > 1 else []
            lines += [line for finding in findings for line in finding.report()]
            lines += [] if findings else [f"Nothing found in {count} iteration{'' if count == 1 else 's'}."]
            lines += [] if largest is None else [f"The largest reward of a step was {largest:.4g} in absolute value."]
    return Answer(lines, {"run": str(folder.path), "seeds": told})
