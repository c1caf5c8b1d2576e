"""trpo-brax bench."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from trpo_brax.benchmark.options import BenchOptions
from trpo_brax.cli.configuration import configuration, parse_first, preset_of, with_defaults
from trpo_brax.cli.parsing import parse
from trpo_brax.config import Config
from trpo_brax.host.console import Console


@dataclass(frozen=True)
class BenchArguments(Config):
    """Measure speed and memory on the devices that training would use, and where they go."""

    bench: BenchOptions = field(default_factory=BenchOptions)


def bench(words: list[str]) -> int:
    """Run `trpo-brax bench` and return its exit status."""
    first = parse_first(BenchArguments, words, "bench")
    arguments = parse(BenchArguments, words, "bench", default=with_defaults(BenchArguments, preset_of(first)))
    console = Console(sys.stderr)
    with console.stage("Loading JAX and Brax"):
        from trpo_brax.benchmark import run_bench
    run_bench(configuration(arguments), arguments.bench, console)
    return 0
