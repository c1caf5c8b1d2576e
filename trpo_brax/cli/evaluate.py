"""trpo-brax evaluate."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.cli.parsing import parse
from trpo_brax.config import Platform
from trpo_brax.training.console import Console


@dataclass(frozen=True)
class EvaluateArguments:
    """Run episodes of a trained policy and print statistics of their returns."""

    run: Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    checkpoint: str = "latest"
    """latest, best (by training return) or an iteration."""
    episodes: int = 1000
    """How many; they run in parallel, each environment's first."""
    stochastic: bool = False
    """Sample actions as in training, instead of acting by the mode."""
    seed: int = 0
    """Seed of the episodes; no training draws from the same stream."""
    policy_seed: int | None = None
    """Whose policy, in a run of several seeds; by default the first one's."""
    environment: str | None = None
    """package.module:Class, for a run on an environment of your own."""
    platform: Platform = "auto"
    """auto: what JAX finds; cpu; gpu: fail where there is none."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


def evaluate(words: list[str]) -> int:
    """Run `trpo-brax evaluate` and return its exit status."""
    arguments = parse(EvaluateArguments, words, "evaluate")
    # An environment's author may print: standard output is for the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        report = _report(arguments)
    if arguments.json:
        print(json.dumps(report, allow_nan=False))
        return 0
    for name, value in report.items():
        print(f"{name.replace('_', ' '):20} {value:,.4g}" if isinstance(value, float) else f"{name:20} {value}")
    return 0


def _report(arguments: EvaluateArguments) -> dict[str, float | int]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from trpo_brax.config import RuntimeConfig
    from trpo_brax.environments import load_environment
    from trpo_brax.training import Run
    from trpo_brax.training import evaluate as evaluate_run
    from trpo_brax.training.devices import configure
    from trpo_brax.training.run import check_evaluation

    console = Console(sys.stderr)
    run = Run.load(arguments.run)
    check_evaluation(arguments.episodes, arguments.seed)
    for note in configure(RuntimeConfig(platform=arguments.platform), arguments.episodes):
        console.note(note)
    environment = load_environment(arguments.environment) if arguments.environment else None
    # What cannot work is said before anything slow is begun.
    run.task(environment)
    run.policy(arguments.checkpoint, policy_seed=arguments.policy_seed)
    with console.stage(f"Evaluating {arguments.episodes} episodes"):
        report = evaluate_run(
            run,
            episodes=arguments.episodes,
            checkpoint=arguments.checkpoint,
            stochastic=arguments.stochastic,
            seed=arguments.seed,
            policy_seed=arguments.policy_seed,
            environment=environment,
        )
    return report.to_dict()
