"""trpo-brax plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from trpo_brax.checked import Checked, Count
from trpo_brax.cli.command import Answer, command
from trpo_brax.errors import ConfigError, UserError


@dataclass(frozen=True)
class PlotArguments(Checked):
    """Draw learning curves: of runs that differ only in seed, the interquartile mean and a 95% bootstrap interval."""

    runs: Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders; those of one task and configuration are one curve."""
    output: str = "learning_curves.png"
    """Picture to write; its ending says of which kind: png, svg or pdf."""
    panels: str | None = None
    """Picture to write of what went on inside training: KL, surrogate improvement, step outcomes, explained variance,
    entropy, throughput; each run has a colour."""
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
    from trpo_brax.runs.folder import RunFolder
    from trpo_brax.runs.records import read_metrics
    from trpo_brax.views.curves import RecordedRun, group_runs
    from trpo_brax.views.plots import plot_groups, save_figure
    from trpo_brax.views.training_plots import training_figure

    folders = [RunFolder(path) for path in arguments.runs]
    runs = [RecordedRun(str(one.path), one.read_config(), read_metrics(one.metrics_file)) for one in folders]
    output = Path(arguments.output)
    table = None if arguments.table is None else Path(arguments.table)
    lines = [f"{one.name} has no iterations yet." for one in runs if not one.records]
    try:
        plot_groups(group_runs(runs), output, arguments.x, arguments.window, table)
        lines.append(str(output))
        if arguments.panels is not None:
            save_figure(training_figure(runs, arguments.x), Path(arguments.panels))
            lines.append(arguments.panels)
    except OSError as error:
        raise UserError(f"{error.filename or arguments.output} cannot be written: {error.strerror}.") from error
    return Answer(lines)
