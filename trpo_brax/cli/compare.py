"""trpo-brax compare."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.certification.settings import Listener, Pairing
from trpo_brax.cli.command import Answer, command
from trpo_brax.cli.opening import PolicyArguments
from trpo_brax.host.console import Console


@dataclass(frozen=True, kw_only=True)
class CompareArguments(PolicyArguments):
    """Say whether policy B is better than A, by episodes that both meet; exit status 0: yes, 1: no or unknown."""

    run: Annotated[str, Positional, tyro.conf.arg(metavar="RUN_A")]
    """A's run folder."""
    other: Annotated[str, Positional, tyro.conf.arg(metavar="RUN_B")]
    """B's; it may be the same one, of which --other-checkpoint is looked at."""
    other_checkpoint: str = "latest"
    """B's: latest, best or an iteration; --checkpoint is A's."""
    other_policy_seed: int | None = None
    """Whose policy B is, in a run of several seeds; --policy-seed says whose A is."""
    pairing: Pairing = field(default_factory=Pairing)
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


@command(CompareArguments)
def compare(arguments: CompareArguments) -> Answer:
    """Run `trpo-brax compare`."""
    console = Console(sys.stderr)
    from trpo_brax.certification.paired import LOOK
    from trpo_brax.certification.paired import compare as compare_policies

    run, task = arguments.open(LOOK, console)
    comparison = compare_policies(
        run,
        arguments.other,
        arguments.pairing,
        checkpoint=arguments.checkpoint,
        other_checkpoint=arguments.other_checkpoint,
        policy_seed=arguments.policy_seed,
        other_policy_seed=arguments.other_policy_seed,
        environment=task,
        listener=Listener(counting=console.counting, note=console.note),
    )
    return Answer(comparison.lines(), dataclasses.asdict(comparison), 0 if comparison.verdict == "better" else 1)
