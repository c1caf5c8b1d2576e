"""Pictures of how return rose."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.errors import UserError
from trpo_brax.evaluation.interquartile import Floats
from trpo_brax.views.curves import Axis, Band, Curve, CurveGroup, band, write_bands

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


def learning_curve(records: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """Draw one run's return against control steps, with the spread over episodes and, of several seeds, over seeds.

    Args:
        records: of metrics.jsonl.
        file: PNG to write.
        title: above the curve.
    """
    save_figure(learning_figure(records, title), file)


def learning_figure(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """Return the picture of `learning_curve`.

    The spread is one standard deviation to either side of the mean over all episodes that ended in an iteration, of
    all seeds. Of several seeds the curve is the interquartile mean, with its bootstrap interval.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = [record for record in records if record["episode_return_mean"] is not None]
    seeds = sorted({record.get("seed", 0) for record in records})
    figure = Figure(figsize=(6.7, 3.7), layout="constrained")
    axes = figure.add_subplot()
    steps, mean, std = _episodes(rows)
    of_all = " over episodes of all seeds" if len(seeds) > 1 else ""
    axes.fill_between(
        steps, mean - std, mean + std, color=BLUE, alpha=0.2, lw=0, label=f"± 1 standard deviation{of_all}"
    )
    if len(seeds) > 1:
        curves = [Curve.of(row for row in records if row["seed"] == seed) for seed in seeds]
        _draw_band(axes, band(CurveGroup(title, "", tuple(curves))), ORANGE)
    else:
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
    """Write a picture, of the kind that the file's ending says.

    Raises:
        UserError: there is no such kind.
        OSError: it cannot be written.
    """
    kinds, kind = figure.canvas.get_supported_filetypes(), file.suffix.lstrip(".")
    if kind not in kinds:
        raise UserError(f"a picture cannot be written as {file.name}: its ending must be one of {', '.join(kinds)}.")
    if kind == "png":
        file.write_bytes(png_of(figure))
    else:
        figure.savefig(file)


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


def _episodes(rows: Sequence[dict[str, Any]]) -> tuple[Floats, Floats, Floats]:
    """Return control steps, and the mean and standard deviation over the episodes of all seeds, of each iteration."""
    by_steps: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_steps.setdefault(row["env_steps"], []).append(row)
    moments = []
    for _, same in sorted(by_steps.items()):
        weights = np.array([row.get("episodes", 1) for row in same], float)
        means = np.array([row["episode_return_mean"] for row in same], float)
        spreads = np.array([row["episode_return_std"] for row in same], float)
        mean = np.average(means, weights=weights)
        moments.append((mean, np.sqrt(np.average(spreads**2 + (means - mean) ** 2, weights=weights))))
    mean_and_std = np.array(moments, float).reshape(-1, 2)
    return np.array(sorted(by_steps), float), mean_and_std[:, 0], mean_and_std[:, 1]


def plot_groups(
    groups: Sequence[CurveGroup], file: Path, axis: Axis = "env_steps", window: int = 1, table: Path | None = None
) -> None:
    """Draw the learning curves of groups of seeds, and write their numbers.

    Args:
        groups: as `group_runs` makes them.
        file: picture to write; its ending says of which kind.
        axis: what to put the returns against.
        window: smooth every seed's curve over the episodes of so many iterations; 1: not at all.
        table: CSV to write the drawn numbers to.

    Raises:
        UserError: there are more configurations than colours, or the picture cannot be of that kind.
    """
    bands = [band(group, axis, window) for group in groups]
    save_figure(groups_figure(bands, axis, window), file)
    if table is not None:
        write_bands(bands, table, axis)


def groups_figure(bands: Sequence[Band], axis: Axis, window: int) -> Figure:
    """Return the picture of `plot_groups`: a panel a task, a colour a configuration.

    A curve is thick where all of its seeds are present, with their interval around it, and thin and dashed without
    one where some are absent.
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
    return textwrap.fill(f"{one.label}: {said}" if one.label else said, 80)


def _notes(bands: Sequence[Band]) -> str:
    notes = []
    if any((one.present < one.seeds).any() for one in bands):
        notes.append("Dashed: some of the seeds are absent; the mean is of the others and has no interval.")
    if any(1 < one.seeds < 4 for one in bands):
        notes.append("Of fewer than four seeds the interquartile mean is the mean, and the interval is their range.")
    return "\n".join(notes)
