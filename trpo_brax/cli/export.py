"""trpo-brax export."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from trpo_brax.cli.opening import open_run
from trpo_brax.cli.parsing import parse
from trpo_brax.config import Platform
from trpo_brax.host.console import Console

if TYPE_CHECKING:
    from trpo_brax.deployment import Artifact


@dataclass(frozen=True)
class ExportArguments:
    """Write a trained policy as one model, from observation to action, that runs without this package."""

    run: Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    output: str | None = None
    """Folder to make; by default export in the run folder, export-stablehlo for StableHLO."""
    format: Literal["onnx", "stablehlo"] = "onnx"
    """onnx: for onnxruntime, with a verify.py beside it; stablehlo: for JAX on a CPU or an NVIDIA GPU."""
    checkpoint: str = "latest"
    """latest, best (by evaluation return, where --eval-every was on, else by training return) or an iteration."""
    policy_seed: int | None = None
    """Whose policy, in a run of several seeds; by default the first one's."""
    environment: str | None = None
    """package.module:Class, for a run on an environment of your own."""
    platform: Platform = "auto"
    """auto: what JAX finds; cpu; gpu: fail where there is none."""


def export(words: list[str]) -> int:
    """Run `trpo-brax export` and return its exit status."""
    arguments = parse(ExportArguments, words, "export")
    # An environment's author may print: standard output is for the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        artifact = _export(arguments)
    print(artifact.file)
    return 0


def _export(arguments: ExportArguments) -> Artifact:
    console = Console(sys.stderr)
    opened = open_run(arguments.run, arguments.environment, arguments.platform, 1, console)
    from trpo_brax.deployment import export as export_policy

    with console.stage("Exporting and checking"):
        artifact = export_policy(
            opened.run,
            arguments.output,
            format=arguments.format,
            checkpoint=arguments.checkpoint,
            policy_seed=arguments.policy_seed,
            environment=opened.environment,
        )
    for note in artifact.notes:
        console.warn(note)
    return artifact
