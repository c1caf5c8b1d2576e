"""The report of a benchmark: one JSON object, or a page of aligned columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from trpo_brax.benchmark.columns import Columns
from trpo_brax.benchmark.curve import SweepRow
from trpo_brax.benchmark.flops import ProductCost
from trpo_brax.benchmark.memory import Memory
from trpo_brax.benchmark.parts import Parts
from trpo_brax.config import Config

_COLUMNS = {"physics": "physics alone", "rollout": "physics and policy", "training": "training"}


@dataclasses.dataclass(frozen=True)
class BenchmarkReport:
    """What was measured. Times and rates are medians over `repeats`; steps are control steps."""

    task: str
    device: str
    """Kind of device."""
    devices: int
    num_envs: int
    """N."""
    unroll_length: int
    """T; every column takes the same N x T steps."""
    repeats: int
    physics_steps_per_second: float
    """Random actions, compiled scan, nothing else: the limit."""
    rollout_steps_per_second: float
    """Physics with the policy's inference, resets and recording."""
    training_steps_per_second: float
    """Whole iterations."""
    rollout_to_physics: float
    """Median of the rounds' own ratios."""
    training_to_physics: float
    """Median of the rounds' own ratios."""
    steps_per_second_range: dict[str, tuple[float, float]]
    """Lowest and highest of each column."""
    parts_ms: dict[str, float]
    """Milliseconds of each part of an iteration; conjugate_gradient holds `cg_iterations` of fisher_product."""
    parts_ms_range: dict[str, tuple[float, float]]
    """Lowest and highest of each part."""
    iteration_ms: float
    """Of a whole iteration, from the training column."""
    call_ms: float
    """Of a call that does nothing, which every part but the product contains."""
    cg_iterations: int
    line_search_trials: int
    fisher_product_forward_passes: float
    """Operations of one product by XLA's count, in forward passes of the policy over the same samples."""
    fisher_product_forward_passes_compiled: float | None
    """The same of the programs that XLA made, work that it chose to repeat included."""
    fisher_product_forward_passes_closed_form: float
    """4 - 2 (observation h_1) / sum(in out): matrix products alone, the least that is needed."""
    fisher_product_forward_passes_by_time: float
    first_iteration_seconds: dict[str, float] | None
    """From the command to the first record: `cold`, and `warm` with a filled compilation cache; None if left out."""
    peak_memory_bytes: int
    """Of the compiled program, on all devices together, as the compiler plans it."""
    memory: Memory
    sweep: tuple[SweepRow, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready dictionaries."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """Return the page for people."""
        sections = [self._columns(), self._parts(), self._product(), self._start_and_memory()]
        if self.sweep:
            sections.append(sweep_table(self.sweep))
        return "\n\n".join(sections)

    def _columns(self) -> str:
        size = f"{self.num_envs:,} environments x {self.unroll_length} steps"
        rates = {
            "physics": (self.physics_steps_per_second, 1.0),
            "rollout": (self.rollout_steps_per_second, self.rollout_to_physics),
            "training": (self.training_steps_per_second, self.training_to_physics),
        }
        rows = [("", "steps/s", "lowest", "highest", "of physics")]
        for name, (rate, share) in rates.items():
            low, high = self.steps_per_second_range[name]
            rows.append((_COLUMNS[name], f"{rate:,.0f}", f"{low:,.0f}", f"{high:,.0f}", f"{share:.1%}"))
        return f"{self.task}: {size} on {self.devices} x {self.device}; medians of {self.repeats}\n{_aligned(rows)}"

    def _parts(self) -> str:
        rows = [("one iteration's parts", "ms", "lowest", "highest", "of iteration")]
        ranges = self.parts_ms_range | {"whole iteration": None}
        for name, milliseconds in (self.parts_ms | {"whole iteration": self.iteration_ms}).items():
            spread = ranges[name]
            limits = ("", "") if spread is None else tuple(f"{limit:,.3f}" for limit in spread)
            share = f"{milliseconds / self.iteration_ms:.1%}"
            rows.append((name.replace("_", " "), f"{milliseconds:,.3f}", limits[0], limits[1], share))
        return (
            f"{_aligned(rows)}\n{self.cg_iterations} Fisher products in conjugate gradient, "
            f"{self.line_search_trials} trials in line search; calls of their own, {self.call_ms:.3f} ms each included."
        )

    def _product(self) -> str:
        compiled = self.fisher_product_forward_passes_compiled
        rows = [
            ("one Fisher product in forward passes", ""),
            ("operations, by XLA's count", f"{self.fisher_product_forward_passes:.3f}"),
            ("operations, as XLA compiled them", "unknown" if compiled is None else f"{compiled:.3f}"),
            ("matrix products, closed form", f"{self.fisher_product_forward_passes_closed_form:.3f}"),
            ("time", f"{self.fisher_product_forward_passes_by_time:.3f}"),
        ]
        return _aligned(rows)

    def _start_and_memory(self) -> str:
        memory, start = self.memory, self.first_iteration_seconds
        rows = [("start and memory", "")]
        if start is not None:
            rows += [(f"first iteration, {name} cache", f"{seconds:.1f} s") for name, seconds in start.items()]
        rows += [
            ("program, on all devices", _size(self.peak_memory_bytes)),
            ("process, at its largest", _size(memory.process_peak_bytes)),
            ("one environment's state", _size(memory.environment_state_bytes)),
            ("its starting states", _size(memory.starting_pool_bytes)),
            ("one transition", _size(memory.transition_bytes)),
            ("program, for each environment", _size(memory.bytes_per_environment)),
            (f"environments that fit {_size(memory.memory_bytes)}", f"{memory.largest_num_envs:,}"),
        ]
        if memory.device_peak_bytes is not None:
            rows.insert(-1, ("devices, at their largest", _size(memory.device_peak_bytes)))
        return _aligned(rows)


def build_report(
    config: Config,
    device: str,
    devices: int,
    repeats: int,
    columns: Columns,
    parts: Parts,
    product: ProductCost,
    memory: Memory,
    start: dict[str, float] | None,
    sweep: tuple[SweepRow, ...] | None,
) -> BenchmarkReport:
    """Put together what was measured."""
    rates = columns.rates()
    return BenchmarkReport(
        task=config.environment or config.task,
        device=device,
        devices=devices,
        num_envs=config.rollout.num_envs,
        unroll_length=config.rollout.unroll_length,
        repeats=repeats,
        physics_steps_per_second=rates["physics"][1],
        rollout_steps_per_second=rates["rollout"][1],
        training_steps_per_second=rates["training"][1],
        rollout_to_physics=columns.rollout_to_physics,
        training_to_physics=columns.training_to_physics,
        steps_per_second_range={name: (low, high) for name, (low, _, high) in rates.items()},
        parts_ms={name: 1e3 * samples.median for name, samples in parts.times.items()},
        parts_ms_range={
            name: (1e3 * min(samples.seconds), 1e3 * max(samples.seconds)) for name, samples in parts.times.items()
        },
        iteration_ms=1e3 * columns.training.median,
        call_ms=1e3 * parts.call.median,
        cg_iterations=parts.cg_iterations,
        line_search_trials=parts.line_search_trials,
        fisher_product_forward_passes=product.counted,
        fisher_product_forward_passes_compiled=product.compiled,
        fisher_product_forward_passes_closed_form=product.closed_form,
        fisher_product_forward_passes_by_time=parts.product_in_forward_passes,
        first_iteration_seconds=start,
        peak_memory_bytes=memory.program_bytes,
        memory=memory,
        sweep=sweep,
    )


def sweep_table(rows: tuple[SweepRow, ...]) -> str:
    """Return the sweep as a table."""
    cells = [("environments", "devices", "physics", "and policy", "training steps/s", "of physics", "program")]
    for row in rows:
        rates = (row.physics_steps_per_second, row.rollout_steps_per_second, row.training_steps_per_second)
        physics, rollout, training = (f"{rate:,.0f}" for rate in rates)
        share, size = f"{row.training_to_physics:.1%}", _size(row.program_bytes)
        cells.append((f"{row.num_envs:,}", str(row.devices), physics, rollout, training, share, size))
    return _aligned(cells)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Return lines whose first column is flush left and whose others are flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _size(count: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count:,.0f} B"
