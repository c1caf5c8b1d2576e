"""The report of a benchmark: one JSON object, or a page of aligned columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from trpo_brax.benchmark.columns import Columns
from trpo_brax.benchmark.parts import Parts
from trpo_brax.config import Config

_COLUMNS = {"physics": "physics alone", "rollout": "physics and policy", "training": "training"}


@dataclasses.dataclass(frozen=True)
class BenchmarkReport:
    """What was measured. Times and rates are told as medians; steps are control steps."""

    config: Config
    device: str
    """Kind of device."""
    devices: int
    columns: Columns
    """Random actions, compiled scan, nothing else: the limit; physics with the policy's inference, resets and
    recording; whole iterations."""
    parts: Parts
    fisher_product_forward_passes: float
    """Operations of one product by XLA's count, in forward passes of the policy over the same samples."""
    first_iteration_seconds: dict[str, float] | None
    """From the command to the first record: `cold`, and `warm` with a filled compilation cache; None if left out."""
    peak_memory_bytes: int
    """Of the compiled program, on all devices together, as the compiler plans it."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready dictionaries; ratios are the median of the rounds' own, ranges lowest and highest."""
        rates, times = self.columns.rates(), self.parts.times
        return {
            "task": self.config.environment or self.config.task,
            "device": self.device,
            "devices": self.devices,
            "num_envs": self.config.rollout.num_envs,
            "unroll_length": self.config.rollout.unroll_length,
            "repeats": len(self.columns.times["training"].seconds),
            **{f"{name}_steps_per_second": rates[name][1] for name in _COLUMNS},
            "rollout_to_physics": self.columns.to_physics("rollout"),
            "training_to_physics": self.columns.to_physics("training"),
            "steps_per_second_range": {name: (low, high) for name, (low, _, high) in rates.items()},
            "parts_ms": {name: 1e3 * one.median for name, one in times.items()},
            "parts_ms_range": {name: (1e3 * min(one.seconds), 1e3 * max(one.seconds)) for name, one in times.items()},
            "iteration_ms": 1e3 * self.columns.times["training"].median,
            "call_ms": 1e3 * self.parts.call.median,
            "cg_iterations": self.parts.cg_iterations,
            "line_search_trials": self.parts.line_search_trials,
            "fisher_product_forward_passes": self.fisher_product_forward_passes,
            "first_iteration_seconds": self.first_iteration_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def table(self) -> str:
        """Return the page for people."""
        return "\n\n".join([self._columns(), self._parts(), self._rest()])

    def _columns(self) -> str:
        rollout = self.config.rollout
        rows = [("", "steps/s", "lowest", "highest", "of physics")]
        for name, (low, rate, high) in self.columns.rates().items():
            share = f"{self.columns.to_physics(name):.1%}"
            rows.append((_COLUMNS[name], f"{rate:,.0f}", f"{low:,.0f}", f"{high:,.0f}", share))
        return (
            f"{self.config.environment or self.config.task}: {rollout.num_envs:,} environments x "
            f"{rollout.unroll_length} steps on {self.devices} x {self.device}; medians of "
            f"{len(self.columns.times['training'].seconds)}\n{_aligned(rows)}"
        )

    def _parts(self) -> str:
        rows = [("one iteration's parts", "ms", "lowest", "highest", "of iteration")]
        whole = self.columns.times["training"]
        for name, samples in (self.parts.times | {"whole iteration": whole}).items():
            median, low, high = (1e3 * of for of in (samples.median, min(samples.seconds), max(samples.seconds)))
            share = f"{samples.median / whole.median:.1%}"
            rows.append((name.replace("_", " "), f"{median:,.3f}", f"{low:,.3f}", f"{high:,.3f}", share))
        return (
            f"{_aligned(rows)}\n{self.parts.cg_iterations} Fisher products in conjugate gradient, "
            f"{self.parts.line_search_trials} trials in line search; calls of their own, "
            f"{1e3 * self.parts.call.median:.3f} ms each included."
        )

    def _rest(self) -> str:
        start = (self.first_iteration_seconds or {}).items()
        rows = [
            ("a Fisher product's operations, in forward passes", f"{self.fisher_product_forward_passes:.3f}"),
            *((f"first iteration, {name} cache", f"{seconds:.1f} s") for name, seconds in start),
            ("memory of the program, on all devices", f"{self.peak_memory_bytes / 2**20:,.1f} MiB"),
        ]
        return _aligned(rows)


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
