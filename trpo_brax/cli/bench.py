"""trpo-brax bench."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

from trpo_brax.checked import Checked, Count
from trpo_brax.cli.command import Answer, tell
from trpo_brax.cli.configuration import parse_first, preset_of, with_defaults
from trpo_brax.cli.parsing import parse
from trpo_brax.config import Config
from trpo_brax.host.console import Console


@dataclass(frozen=True)
class BenchOptions(Checked):
    """How to measure, and what to print."""

    repeats: Annotated[int, Count(1)] = 5
    """Timed repeats of everything, after a warm-up; medians are reported."""
    skip_start: bool = False
    """Leave out the time from start to first iteration: it takes two or more starts of the trainer."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


@dataclass(frozen=True)
class BenchArguments(Config):
    """Measure speed on the devices that training would use, and where the time goes."""

    bench: BenchOptions = field(default_factory=BenchOptions)


def bench(words: list[str]) -> int:
    """Run `trpo-brax bench` and return its exit status."""
    first = parse_first(BenchArguments, words, "bench")
    arguments = parse(BenchArguments, words, "bench", default=with_defaults(BenchArguments, preset_of(first)))
    return tell(lambda: _measured(with_defaults(Config, arguments), arguments.bench), as_json=arguments.bench.json)


def _measured(config: Config, options: BenchOptions) -> Answer:
    console = Console(sys.stderr)
    with console.stage("Loading JAX and Brax"):
        from trpo_brax.benchmark.measure import bench as measure
    report = measure(config, repeats=options.repeats, skip_start=options.skip_start, console=console)
    return Answer([report.table()], report.to_dict())
