"""trpo-brax export."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from trpo_brax.cli.command import Answer, command
from trpo_brax.cli.opening import PolicyArguments
from trpo_brax.host.console import Console


@dataclass(frozen=True)
class ExportArguments(PolicyArguments):
    """Write a trained policy as one model, from observation to action, that runs without this package."""

    output: str | None = None
    """Folder to make; by default export in the run folder, export-stablehlo for StableHLO."""
    format: Literal["onnx", "stablehlo"] = "onnx"
    """onnx: for onnxruntime, with a verify.py beside it; stablehlo: for JAX on a CPU or an NVIDIA GPU."""


@command(ExportArguments)
def export(arguments: ExportArguments) -> Answer:
    """Run `trpo-brax export`."""
    console = Console(sys.stderr)
    run, task = arguments.open(1, console)
    from trpo_brax.deployment import export as export_policy

    with console.stage("Exporting and checking"):
        artifact = export_policy(
            run,
            arguments.output,
            format=arguments.format,
            checkpoint=arguments.checkpoint,
            policy_seed=arguments.policy_seed,
            environment=task,
        )
    for note in artifact.notes:
        console.warn(note)
    return Answer([str(artifact.file)])
