"""Steps a second against the number of environments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from trpo_brax.benchmark.columns import measure_columns
from trpo_brax.benchmark.memory import measure_memory
from trpo_brax.benchmark.options import BenchOptions
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.config import Config, override
from trpo_brax.environments.making import make_task
from trpo_brax.host.console import Console
from trpo_brax.host.devices import select
from trpo_brax.views.plots import BLUE, COLOURS, ORANGE

_GREEN = COLOURS[2]


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """One number of environments; rates are control steps a second."""

    num_envs: int
    devices: int
    physics_steps_per_second: float
    rollout_steps_per_second: float
    training_steps_per_second: float
    training_to_physics: float
    program_bytes: int


def sweep(
    config: Config, options: BenchOptions, sizes: Sequence[int], console: Console | None = None
) -> list[SweepRow]:
    """Measure the three columns at each number of environments, in the order given.

    The devices must have been configured. All else stays as it is in `config`, so batches grow with the environments.
    """
    console = console or Console()
    rows = []
    for size in sizes:
        sized = override(config, num_envs=size)
        with console.stage(f"Measuring {size:,} environments"):
            bench = Workbench.build(sized, make_task(sized), select(sized.runtime, size))
            columns = measure_columns(bench, options.repeats)
        rates = columns.rates()
        rows.append(
            SweepRow(
                num_envs=size,
                devices=bench.mesh.size,
                physics_steps_per_second=rates["physics"][1],
                rollout_steps_per_second=rates["rollout"][1],
                training_steps_per_second=rates["training"][1],
                training_to_physics=columns.training_to_physics,
                program_bytes=measure_memory(bench, options.memory_gib).program_bytes,
            )
        )
    return rows


def draw(rows: Sequence[SweepRow], file: Path, title: str) -> None:
    """Draw the three columns against the number of environments, which is on a logarithmic axis.

    Args:
        rows: of a sweep.
        file: PNG to write.
        title: above the curves.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: row.num_envs)
    sizes = [row.num_envs for row in rows]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for label, colour, rates in (
        ("physics alone", _GREEN, [row.physics_steps_per_second for row in rows]),
        ("physics and policy", BLUE, [row.rollout_steps_per_second for row in rows]),
        ("training", ORANGE, [row.training_steps_per_second for row in rows]),
    ):
        axes.plot(sizes, rates, color=colour, lw=1.2, marker="o", ms=4, label=label)
    axes.set(title=title, xlabel="environments", ylabel="control steps / s", xscale="log", ylim=(0, None))
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    figure.savefig(file, dpi=120)
