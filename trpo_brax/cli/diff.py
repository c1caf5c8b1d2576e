"""trpo-brax diff."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.cli.command import Answer, command
from trpo_brax.errors import ConfigError
from trpo_brax.host.paths import user_path


@dataclass(frozen=True)
class DiffArguments:
    """Tell where two runs first differ and what could explain it; exit status 0: nowhere, 1: somewhere."""

    runs: Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="RUN_A RUN_B", help_behavior_hint="")] = ()
    """Two run folders."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


@command(DiffArguments)
def diff(arguments: DiffArguments) -> Answer:
    """Run `trpo-brax diff`."""
    if len(arguments.runs) != 2:
        raise ConfigError(f"diff needs two RUNs, not {len(arguments.runs)}; see trpo-brax diff --help.")
    from trpo_brax.forensics.difference import compare

    difference = compare(*map(user_path, arguments.runs))
    return Answer(difference.report(), difference.to_dict(), int(difference.differ))
