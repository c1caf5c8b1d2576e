"""How fast it is, and where the time and the memory go."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trpo_brax.benchmark.options import BenchOptions

if TYPE_CHECKING:
    from trpo_brax.benchmark.curve import sweep
    from trpo_brax.benchmark.measure import bench, run_bench
    from trpo_brax.benchmark.report import BenchmarkReport

__all__ = ["BenchOptions", "BenchmarkReport", "bench", "run_bench", "sweep"]

_MODULES = {"bench": "measure", "run_bench": "measure", "BenchmarkReport": "report", "sweep": "curve"}
"""No module has the name of a function: imported, it would stand in its place."""


def __getattr__(name: str) -> Any:
    # The command line needs the options before JAX is imported.
    if name not in _MODULES:
        raise AttributeError(f"module 'trpo_brax.benchmark' has no attribute {name!r}")
    return getattr(import_module(f"trpo_brax.benchmark.{_MODULES[name]}"), name)
