"""Pictures of how return rose."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.errors import UserError
from trpo_brax.runs.files import write_bytes
from trpo_brax.views.curves import Axis, Band, Curve, CurveGroup, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Eight colours that every kind of colour vision tells apart (Okabe & Ito 2008)."""
BLUE, ORANGE = COLOURS[:2]
DOTS_PER_INCH = 120
PALETTE = 200
"""Colours in a PNG."""
X_LABELS: dict[Axis, str] = {"env_steps": "control steps", "wall_time": "wall-clock seconds"}


def learning_figure(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """Return one run's return against control steps: of one seed the mean and the spread over episodes.

    The spread is one standard deviation to either side of the mean over the episodes that ended in an iteration. Of
    several seeds the curve is the interquartile mean, with its bootstrap interval.

    Args:
        records: of metrics.jsonl.
        title: above the curve.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = [record for record in records if record["episode_return_mean"] is not None]
    seeds = sorted({record.get("seed", 0) for record in records})
    figure = Figure(figsize=(6.7, 3.7), layout="constrained")
    axes = figure.add_subplot()
    if len(seeds) > 1:
        curves = [Curve.of(row for row in rows if row["seed"] == seed) for seed in seeds]
        _draw_band(axes, band(CurveGroup(title, "", tuple(curves))), BLUE)
    else:
        names = ("env_steps", "episode_return_mean", "episode_return_std")
        steps, mean, std = (np.array([row[name] for row in rows], float) for name in names)
        axes.fill_between(steps, mean - std, mean + std, color=BLUE, alpha=0.2, lw=0, label="± 1 standard deviation")
        axes.plot(steps, mean, color=BLUE, lw=1.2, marker=".", ms=3, label="mean over episodes that ended")
    axes.set(title=title, xlabel="control steps", ylabel="return (sampled actions)", xlim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    trim(axes)
    if rows:
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def trim(axes: Axes) -> None:
    """Give a panel a light grid and no frame above and to the right."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a picture whole or not at all, of the kind that the file's ending says.

    Raises:
        UserError: there is no such kind.
        OSError: it cannot be written.
    """
    check_kind(file)
    buffer = io.BytesIO()
    if file.suffix == ".png":
        buffer.write(png_of(figure))
    else:
        figure.savefig(buffer, format=file.suffix.lstrip("."))
    write_bytes(file, buffer.getvalue())


def check_kind(file: Path) -> None:
    """Raise a `UserError` where a file's ending says of no kind of picture."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.lstrip(".") not in kinds:
        raise UserError(f"a picture cannot be written as {file.name}: its ending must be one of {', '.join(kinds)}.")


def png_of(figure: Figure) -> bytes:
    """Return a figure as a compressed PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(DOTS_PER_INCH)
    canvas, buffer = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    # Curves on white: a palette shows no less, in a third of the bytes.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(PALETTE, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def groups_figure(bands: Sequence[Band], axis: Axis, window: int) -> Figure:
    """Return the learning curves of groups of seeds: a panel a task, a colour a configuration.

    A curve is thick where all of its seeds are present, with their interval around it, and thin and dashed without
    one where some are absent.

    Args:
        bands: of the groups that `group_runs` makes, of `axis` and `window` too.
        axis: what the returns are put against.
        window: the iterations that a curve is smoothed over.

    Raises:
        UserError: there are more configurations than colours.
    """
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(one.label for one in bands))
    if len(labels) > len(COLOURS):
        raise UserError(f"{len(labels)} configurations are too many for one picture: at most {len(COLOURS)}.")
    colours = dict(zip(labels, COLOURS, strict=False))
    tasks = list(dict.fromkeys(one.task for one in bands))
    columns = min(2, max(1, len(tasks)))
    rows = max(1, -(-len(tasks) // columns))
    lines = max((sum(one.task == task for one in bands) for task in tasks), default=1)
    figure = Figure(figsize=(6.4 * columns, (3.6 + 0.3 * lines) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, task in zip(panels, tasks, strict=False):
        for one in bands:
            if one.task == task:
                _draw_band(panel, one, colours[one.label])
        smoothing = f", mean of {window} iterations" if window > 1 else ""
        panel.set(title=task, xlabel=X_LABELS[axis], ylabel=f"return (sampled actions{smoothing})", xlim=(0, None))
        trim(panel)
        # Below the panel: a sentence a curve finds no free place inside it.
        panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    if notes := _notes(bands):
        figure.supxlabel(notes, fontsize=8, color="0.35")
    return figure


def _draw_band(panel: Axes, one: Band, colour: str) -> None:
    panel.plot([], [], color=colour, lw=1.5, label=_legend(one))
    if one.seeds > 1:
        panel.fill_between(one.x, one.low, one.high, color=colour, alpha=0.2, lw=0)
    # A line where seeds come or go would look like a leap of the policy: it breaks there.
    for part in np.split(np.arange(one.x.size), np.flatnonzero(np.diff(one.present)) + 1):
        if part.size:
            width, style = (1.5, "-") if one.present[part[0]] == one.seeds else (0.8, "--")
            marker = "." if part.size == 1 or one.x.size <= 50 else ""
            panel.plot(one.x[part], one.iqm[part], color=colour, lw=width, ls=style, marker=marker, ms=3)


def _legend(one: Band) -> str:
    said = {0: "no iterations", 1: "1 seed, no interval"}.get(
        one.seeds, f"interquartile mean of {one.seeds} seeds, 95% bootstrap interval"
    )
    if one.across_time is not None:
        said += "; across time: spread {:.4g}, worst drawdowns {:.4g}".format(*one.across_time)
    return textwrap.fill(f"{one.label}: {said}" if one.label else said, 80)


def _notes(bands: Sequence[Band]) -> str:
    notes = []
    if any((one.present < one.seeds).any() for one in bands):
        notes.append("Dashed: some of the seeds are absent; the mean is of the others and has no interval.")
    if any(1 < one.seeds < 4 for one in bands):
        notes.append("Of fewer than four seeds the interquartile mean is the mean, and the interval is their range.")
    return "\n".join(notes)
