"""trpo-brax diagnose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.cli.parsing import parse
from trpo_brax.errors import ConfigError


@dataclass(frozen=True)
class DiagnoseArguments:
    """Name what a run's metrics show to have gone wrong, where it began and what to do; findings are no error."""

    run: Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    policy_seed: int | None = None
    """Whose metrics, in a run of several seeds; by default those of each."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


def diagnose(words: list[str]) -> int:
    """Run `trpo-brax diagnose` and return its exit status."""
    arguments = parse(DiagnoseArguments, words, "diagnose")
    from trpo_brax.diagnosis.findings import by_seed
    from trpo_brax.diagnosis.findings import diagnose as find
    from trpo_brax.runs.folder import RunFolder
    from trpo_brax.runs.records import read_metrics

    folder = RunFolder(arguments.run)
    config = folder.read_config()
    seed, seeds = arguments.policy_seed, config.seeds
    if seed is not None and seed not in seeds:
        span = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
        raise ConfigError(f"policy_seed must be one of the seeds of {folder.path}, {span}, not {seed}.")
    records = by_seed(read_metrics(folder.metrics_file), config)
    if seed is not None:
        records = {seed: records[seed]}
    found = {one: find(rows, config) for one, rows in records.items()}
    if arguments.json:
        told = [
            {"seed": one, "iterations": len(records[one]), "findings": [finding.to_dict() for finding in findings]}
            for one, findings in found.items()
        ]
        print(json.dumps({"run": str(folder.path), "seeds": told}, allow_nan=False))
        return 0
    for one, findings in found.items():
        if len(seeds) > 1:
            print(f"Seed {one}:")
        for finding in findings:
            print("\n".join(finding.report()))
        if not findings:
            count = len(records[one])
            print(f"Nothing found in {count} iteration{'' if count == 1 else 's'}.")
    return 0
