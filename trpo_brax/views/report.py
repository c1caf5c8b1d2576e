"""A run as one page: what it came to, how it got there, what is stated of its policy, and what made it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from trpo_brax.config import Config, to_dict
from trpo_brax.diagnosis.findings import by_seed, diagnose
from trpo_brax.errors import RunFolderError
from trpo_brax.runs.certificates import CERTIFICATE, is_finished, read_certificate
from trpo_brax.runs.files import open_plain, read_json
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.records import read_metrics
from trpo_brax.views.certificate_page import certificate_body
from trpo_brax.views.curves import RecordedRun, group_runs
from trpo_brax.views.page import document, picture, table, text, video
from trpo_brax.views.plots import learning_figure, png_of
from trpo_brax.views.training_plots import training_figure

_MOST_VIDEO_BYTES = 64 << 20
_FIGURES = {
    "return_mean": "mean return",
    "return_std": "standard deviation",
    "return_iqm": "interquartile mean",
    "return_min": "lowest",
    "return_quantile_05": "5% quantile",
    "return_cvar_05": "mean of the worst 5%",
    "length_mean": "mean length, control steps",
    "failure_rate": "failure rate",
}


def report_page(path: str | os.PathLike[str]) -> str:
    """Return the page of a run folder, as one HTML file that fetches nothing.

    What the folder does not hold yet, the page says how to make.

    Raises:
        RunFolderError: this is no run folder, or one of its files cannot be read.
    """
    folder = RunFolder(path)
    config = folder.read_config()
    records = read_metrics(folder.metrics_file)
    name = config.environment or config.task
    seeds = f"seed {config.seed}" if config.num_seeds == 1 else f"seeds {config.seeds[0]} to {config.seeds[-1]}"
    title = f"{name}, {seeds}"
    parts = [
        f'<h1>{text(title)}</h1>\n<p class="sub">Trust region policy optimisation, {text(folder.path.name)}</p>',
        _summary(folder, records),
        _pictures(folder, config, records, title),
        _findings(config, records),
        _worst(folder),
        _certificate(folder),
        _details("Configuration", to_dict(config)),
        _details("Provenance", folder.read_provenance()),
    ]
    return document(title, "\n".join(parts))


def _summary(folder: RunFolder, records: Sequence[dict[str, Any]]) -> str:
    last = records[-1] if records else None
    told = []
    if last is not None:
        steps, seconds = last["env_steps"], last["wall_time_s"]
        told.append(f"{last['iteration']:,} iterations, {steps:,} control steps, {seconds:,.1f} s of training.")
    if not os.path.lexists(folder.summary_file):
        return f"<h2>Summary</h2>\n<p>{text(' '.join([*told, 'The run has not ended yet.']))}</p>"
    summary = read_json(folder.summary_file)
    try:
        evaluation = summary["evaluation"]
        told.append(f"Status: {summary['status']}.")
        if summary["failure"] is not None:
            told.append(f"{summary['failure']}.")
        if evaluation is None:
            return f"<h2>Summary</h2>\n<p>{text(' '.join(told))} The last policy was not evaluated.</p>"
        rows = [(words, float(evaluation[key])) for key, words in _FIGURES.items()]
        whose = (
            "The last policy" if len(summary["seeds"]) == 1 else f"The last policies of {len(summary['seeds'])} seeds"
        )
        told.append(
            f"{whose}, acting by the mean action, over {evaluation['episodes']:,} episodes that training never saw:"
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder.summary_file} is no summary of a run.") from error
    return f"<h2>Summary</h2>\n<p>{text(' '.join(told))}</p>\n{table(('', ''), rows)}"


def _pictures(folder: RunFolder, config: Config, records: Sequence[dict[str, Any]], title: str) -> str:
    if not records:
        return "<h2>Training</h2>\n<p>There are no iterations yet.</p>"
    run = RecordedRun(title, config, records)
    across_time = group_runs([run])[0].across_time()
    steadiness = (
        ""
        if across_time is None
        else "\n<p>Across time, by sampled actions: the middle half of a seed's changes from one iteration to the next "
        "spans {:,.4g}, and the worst 5% of its falls below its best are {:,.4g} on average.</p>".format(*across_time)
    )
    return (
        f"<h2>Training</h2>\n{picture(png_of(learning_figure(records, title)), 'Return against control steps')}"
        f"{steadiness}\n{picture(png_of(training_figure(run)), 'What the steps did, iteration by iteration')}"
    )


def _findings(config: Config, records: Sequence[dict[str, Any]]) -> str:
    parts = ["<h2>Findings</h2>"]
    for seed, rows in by_seed(records, config).items():
        for finding in diagnose(rows, config):
            which = f"Seed {seed}: " if config.num_seeds > 1 else ""
            first, *others = finding.report()
            said = " ".join(line.strip() for line in others)
            parts.append(f'<div class="{text(finding.level)}"><b>{text(which + first)}</b><br>{text(said)}</div>')
    if len(parts) == 1:
        parts.append("<p>None.</p>")
    return "\n".join(parts)


def _worst(folder: RunFolder) -> str:
    file = folder.path / "videos" / "worst.mp4"
    heading = "<h2>The worst episode</h2>"
    if file.parent.is_symlink():
        raise RunFolderError(f"{file.parent} is a link: it is not followed.")
    if not os.path.lexists(file):
        return f"{heading}\n<p>Not rendered yet: <code>trpo-brax render {text(folder.path)}</code></p>"
    with open_plain(file, _MOST_VIDEO_BYTES) as opened:
        return (
            f"{heading}\n{video(opened.read(_MOST_VIDEO_BYTES), 'The worst of the episodes that were rendered from.')}"
        )


def _certificate(folder: RunFolder) -> str:
    heading = "<h2>Certificate</h2>"
    certificate = read_certificate(folder.path)
    if certificate is None or ("declared" in certificate and not is_finished(certificate)):
        return f"{heading}\n<p>None yet: <code>trpo-brax certify {text(folder.path)}</code></p>"
    try:
        return f"{heading}\n{certificate_body(certificate)}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{folder.path / CERTIFICATE} is no certificate: certify again, or remove it.") from error


def _details(heading: str, data: Any) -> str:
    if data is None:
        return ""
    said = text(json.dumps(data, indent=2))
    return f"<h2>{text(heading)}</h2>\n<details><summary>Show</summary>\n<pre>{said}</pre>\n</details>"
