"""trpo-brax export."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trpo_brax.cli.opening import PolicyArguments
from trpo_brax.cli.parsing import parse
from trpo_brax.host.console import Console

if TYPE_CHECKING:
    from trpo_brax.deployment import Artifact


@dataclass(frozen=True)
class ExportArguments(PolicyArguments):
    """Write a trained policy as one model, from observation to action, that runs without this package."""

    output: str | None = None
    """Folder to make; by default export in the run folder, export-stablehlo for StableHLO."""
    format: Literal["onnx", "stablehlo"] = "onnx"
    """onnx: for onnxruntime, with a verify.py beside it; stablehlo: for JAX on a CPU or an NVIDIA GPU."""


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
    opened = arguments.open(1, console)
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
