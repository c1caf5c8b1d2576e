"""trpo-brax verify."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.certification.settings import Listener
from trpo_brax.cli.command import Answer, command
from trpo_brax.cli.opening import RunArguments
from trpo_brax.host.console import Console


@dataclass(frozen=True)
class VerifyArguments(RunArguments):
    """Hold an exported policy against its run, by actions and by episodes; exit status 1 where it fails."""

    artifact: Annotated[str, Positional, tyro.conf.arg(metavar="ARTIFACT")]
    """Folder that trpo-brax export made, or the model in it."""
    run: str
    """Run folder that it was exported from."""
    episodes: int | None = None
    """How many of each; by default its certificate's, else 1,000. With fewer than that its statements go unchecked."""
    margin: float = 0.05
    """How far mean return and CVaR may be off, as a share of the mean return."""
    failure_margin: float = 0.01
    """How far the failure rate may be off; 0.01 takes at least 381 episodes, a larger one fewer."""
    tolerance: float = 1e-5
    """How far an action may be off, in units of the action range."""
    checkpoint: str | None = None
    """latest, best or an iteration of the run; by default the one that the artifact names."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


@command(VerifyArguments)
def verify(arguments: VerifyArguments) -> Answer:
    """Run `trpo-brax verify`."""
    console = Console(sys.stderr)
    run, task = arguments.open(arguments.episodes or 1000, console)
    from trpo_brax.deployment import Artifact
    from trpo_brax.deployment import verify as verify_policy

    artifact = Artifact.load(arguments.artifact)
    verification = verify_policy(
        artifact,
        run,
        episodes=arguments.episodes,
        margin=arguments.margin,
        failure_margin=arguments.failure_margin,
        tolerance=arguments.tolerance,
        checkpoint=arguments.checkpoint,
        environment=task,
        listener=Listener(counting=console.counting, note=console.note),
    )
    lines = [
        f"{'passed' if finding.passed else 'FAILED':8}{finding.name:28}{finding.sentence}"
        for finding in verification.findings
    ]
    loop = verification.closed_loop
    if loop is not None and loop.statements_note is not None:
        lines.append(f"{'':8}{'certificate':28}{loop.statements_note}")
    lines.append("passed" if verification.passed else "FAILED")
    return Answer(lines, verification.to_dict(), 0 if verification.passed else 1)
