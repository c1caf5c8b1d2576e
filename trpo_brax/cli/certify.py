"""trpo-brax certify."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trpo_brax.certification.settings import Certification, Listener
from trpo_brax.cli.command import Answer, command
from trpo_brax.cli.opening import PolicyArguments
from trpo_brax.host.console import Console
from trpo_brax.host.paths import user_path


@dataclass(frozen=True)
class CertifyArguments(PolicyArguments):
    """State what a policy will do, with stated confidence, from episodes drawn for nothing else."""

    statements: Certification = field(default_factory=Certification)
    output: str | None = None
    """Folder for certificate.json and certificate.html; by default the run's."""
    json: bool = False
    """Print one JSON object, that of certificate.json, and nothing else on standard output."""


@command(CertifyArguments)
def certify(arguments: CertifyArguments) -> Answer:
    """Run `trpo-brax certify`."""
    console = Console(sys.stderr)
    run, task = arguments.open(arguments.statements.episodes, console)
    from trpo_brax.certification.certifier import certify as certify_run
    from trpo_brax.runs.files import check_writable, write_text, written
    from trpo_brax.views.certificate_page import certificate_page

    output = run.path if arguments.output is None else user_path(arguments.output)
    page = output / "certificate.html"
    check_writable(page, makes_folders=True)

    def write_page(certificate: Mapping[str, Any]) -> None:
        with written(page):
            write_text(page, certificate_page(certificate))

    certificate = certify_run(
        run,
        arguments.statements,
        checkpoint=arguments.checkpoint,
        policy_seed=arguments.policy_seed,
        environment=task,
        output=output,
        listener=Listener(counting=console.counting, note=console.note, written=write_page),
    )
    return Answer([*_lines(certificate), str(page)], certificate)


def _lines(certificate: Mapping[str, Any]) -> list[str]:
    head = f"Together with {100 * certificate['confidence']:g}% confidence, of {certificate['episodes']:,} episodes:"
    lines = [head, *(f"  {statement['sentence']}" for statement in certificate["statements"])]
    if (runs := certificate["training_runs"]) is not None:
        lines.append(f"Each by itself, by the {runs['figure']} of each of {runs['runs']} seeds:")
        lines += [f"  {sentence}" for sentence in runs["sentences"]]
    return lines
