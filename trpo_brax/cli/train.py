"""trpo-brax train."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from trpo_brax.cli.configuration import parse_first, preset_of, with_defaults
from trpo_brax.cli.opening import refuse_unnamed
from trpo_brax.cli.parsing import parse
from trpo_brax.config import Config
from trpo_brax.errors import RunFolderError
from trpo_brax.host.console import Console


@dataclass(frozen=True)
class TrainArguments(Config):
    """Train a policy with TRPO and leave a run folder. Every option has a default that suits the task."""

    run_dir: str | None = None
    """Folder to keep the run in; by default runs/TASK-SEED-TIMESTAMP."""
    resume: bool = False
    """Continue the run in --run-dir, exactly as if it had never stopped."""


def train(words: list[str]) -> int:
    """Run `trpo-brax train` and return its exit status."""
    arguments = _parse_training(words)
    console = Console()
    with console.stage("Loading JAX and Brax"):
        from trpo_brax.environments.quiet import quiet
        from trpo_brax.training.loop import train as train_run

        with quiet():
            importlib.import_module("brax.envs")
    config = with_defaults(Config, arguments)
    run = train_run(config, run_dir=arguments.run_dir, resume=arguments.resume, console=console)
    signal = run.summary["signal"]
    return 0 if signal is None else 128 + int(signal)


def _parse_training(words: list[str]) -> TrainArguments:
    """Parse twice: once for the task or the run to resume, once with its settings as the defaults."""
    first = parse_first(TrainArguments, words, "train")
    if not first.resume:
        return parse(TrainArguments, words, "train", default=with_defaults(TrainArguments, preset_of(first)))
    if first.run_dir is None:
        raise RunFolderError("--resume continues the run in --run-dir, which was not given.")
    from trpo_brax.runs.folder import RunFolder

    saved = RunFolder(first.run_dir).read_config()
    refuse_unnamed(saved, first.environment, first.environment_arguments, first.run_dir)
    return parse(TrainArguments, words, "train", default=with_defaults(TrainArguments, saved))
