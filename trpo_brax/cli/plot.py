"""trpo-brax plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from trpo_brax.checked import Checked, Count
from trpo_brax.cli.command import Answer, command
from trpo_brax.errors import ConfigError, UserError
from trpo_brax.host.paths import user_path


@dataclass(frozen=True)
class PlotArguments(Checked):
    """Draw learning curves: of runs that differ only in seed, the interquartile mean and a 95% bootstrap interval."""

    runs: Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders; those of one task and configuration are one curve."""
    output: str = "learning_curves.png"
    """Picture to write; its ending says of which kind: png, svg or pdf."""
    panels: str | None = None
    """Picture to write of what went on inside training, of one RUN: KL, surrogate improvement, step outcomes, explained
    variance, entropy, throughput."""
    table: str | None = None
    """CSV file to write the drawn numbers to."""
    x: Literal["env_steps", "wall_time"] = "env_steps"
    """What the returns are drawn against: control steps of a seed, or seconds of training."""
    window: Annotated[int, Count(1)] = 1
    """Draw the mean over the episodes of so many iterations; 1: of each by itself."""


@command(PlotArguments)
def plot(arguments: PlotArguments) -> Answer:
    """Run `trpo-brax plot`."""
    if not arguments.runs:
        raise ConfigError("plot needs at least one RUN; see trpo-brax plot --help.")
    if arguments.panels is not None and len(arguments.runs) > 1:
        raise ConfigError(f"panels are drawn of one RUN at a time, not of {len(arguments.runs)}.")
    from trpo_brax.runs.files import check_writable
    from trpo_brax.runs.folder import RunFolder
    from trpo_brax.runs.records import read_metrics
    from trpo_brax.views.curves import RecordedRun, band, group_runs, write_bands
    from trpo_brax.views.plots import check_kind, groups_figure, save_figure
    from trpo_brax.views.training_plots import training_figure

    folders = [RunFolder(path) for path in arguments.runs]
    runs = [RecordedRun(str(one.path), one.read_config(), read_metrics(one.metrics_file)) for one in folders]
    output = user_path(arguments.output)
    table = None if arguments.table is None else user_path(arguments.table)
    panels = None if arguments.panels is None else user_path(arguments.panels)
    for picture in (output, panels):
        if picture is not None:
            check_kind(picture)
    for file in (output, panels, table):
        if file is not None:
            check_writable(file)
    lines = [f"{one.name} has no iterations yet." for one in runs if not one.records]
    try:
        bands = [band(group, arguments.x, arguments.window) for group in group_runs(runs)]
        save_figure(groups_figure(bands, arguments.x, arguments.window), output)
        if table is not None:
            write_bands(bands, table, arguments.x)
        lines.append(str(output))
        if panels is not None:
            save_figure(training_figure(runs[0], arguments.x), panels)
            lines.append(str(panels))
    except OSError as error:
        raise UserError(f"{error.filename or arguments.output} cannot be written: {error.strerror}.") from error
    return Answer(lines)
