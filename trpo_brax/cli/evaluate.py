"""trpo-brax evaluate."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

from trpo_brax.cli.command import Answer, command
from trpo_brax.cli.opening import EpisodeArguments
from trpo_brax.errors import UserError
from trpo_brax.host.console import Console
from trpo_brax.host.paths import user_path


@dataclass(frozen=True)
class EvaluateArguments(EpisodeArguments):
    """Run episodes of a trained policy and print statistics of their returns."""

    failure: str = "terminated"
    """What fails: "terminated" (before its time limit), "return < X", "length < X" or several with "or"; and NaN."""
    output: str | None = None
    """File to write every episode to, as NumPy's .npz: returns, lengths, terminated, nonfinite, failed."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


@command(EvaluateArguments)
def evaluate(arguments: EvaluateArguments) -> Answer:
    """Run `trpo-brax evaluate`."""
    console = Console(sys.stderr)
    import numpy as np

    from trpo_brax.evaluation import Failure, Watcher, summarize
    from trpo_brax.runs.evaluator import check_episodes
    from trpo_brax.runs.files import check_writable, write_bytes, written

    # What cannot work is said before anything slow is begun.
    check_episodes(arguments.episodes, arguments.seed)
    failure = Failure(arguments.failure)
    output = None if arguments.output is None else user_path(arguments.output)
    if output is not None:
        if output.suffix != ".npz":
            raise UserError(f"output must be a file that ends in .npz, not {output}.")
        check_writable(output)
    run, task = arguments.open(arguments.episodes, console)
    evaluator = arguments.evaluator(run, task)
    with console.counting("Evaluating", arguments.episodes) as progress:
        episodes = evaluator.run(arguments.episodes, seed=arguments.seed, watcher=Watcher(progress=progress))
    if output is not None:
        buffer = io.BytesIO()
        facts: dict[str, Any] = {"failed": failure(episodes), "failure": str(failure), "seed": arguments.seed}
        np.savez_compressed(buffer, **vars(episodes), **facts)
        with written(output):
            write_bytes(output, buffer.getvalue())
    report = summarize(episodes, failure).to_dict()
    lines = [
        f"{name.replace('_', ' '):20} {value:,.4g}" if isinstance(value, float) else f"{name:20} {value}"
        for name, value in report.items()
    ]
    return Answer(lines, report)
