"""trpo-brax report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.cli.command import Answer, command
from trpo_brax.host.paths import user_path


@dataclass(frozen=True)
class ReportArguments:
    """Write a run as one HTML page that fetches nothing: summary, curves, findings, certificate, video, provenance."""

    run: Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder; with what certify and render left in it."""
    output: str | None = None
    """File to write; by default report.html in the run folder."""


@command(ReportArguments)
def report(arguments: ReportArguments) -> Answer:
    """Run `trpo-brax report`."""
    from trpo_brax.runs.files import check_writable, write_text, written
    from trpo_brax.runs.folder import RunFolder
    from trpo_brax.views.report import report_page

    output = user_path(arguments.run) / "report.html" if arguments.output is None else user_path(arguments.output)
    RunFolder(arguments.run).read_config()
    check_writable(output)
    page = report_page(arguments.run)
    with written(output):
        write_text(output, page)
    return Answer([str(output)])
