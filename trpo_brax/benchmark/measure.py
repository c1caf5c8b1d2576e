"""The benchmark from the outside: one process, the devices that `train` would use, one report."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from trpo_brax.benchmark.columns import measure_columns
from trpo_brax.benchmark.curve import SweepRow, draw, sweep
from trpo_brax.benchmark.flops import product_cost
from trpo_brax.benchmark.memory import measure_memory
from trpo_brax.benchmark.options import BenchOptions
from trpo_brax.benchmark.parts import measure_parts
from trpo_brax.benchmark.report import BenchmarkReport, build_report
from trpo_brax.benchmark.start import first_iteration_seconds
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.config import Config
from trpo_brax.environments.making import make_task
from trpo_brax.errors import ConfigError
from trpo_brax.host import devices as device_choice
from trpo_brax.host.console import Console


def run_bench(config: Config, options: BenchOptions, console: Console) -> BenchmarkReport:
    """Measure, and print the report: with `options.json` one JSON object and nothing else on standard output.

    Args:
        config: as for training; one seed is measured, and how long it would train does not matter.
        options: how to measure.
        console: where progress is told; with `options.json` it must not be standard output.
    """
    # An environment's author may print: standard output is for the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        report = bench(config, options, console)
    print(json.dumps(report.to_dict(), allow_nan=False) if options.json else report.table())
    return report


def bench(config: Config, options: BenchOptions | None = None, console: Console | None = None) -> BenchmarkReport:
    """Measure everything that `options` asks for.

    Args:
        config: as for training.
        options: how to measure; the defaults if not given.
        console: where progress is told; standard output by default.

    Raises:
        UserError: one sentence says what cannot work.
    """
    options, console = options or BenchOptions(), console or Console()
    _check_sweep(config, options)
    start = None
    if not options.skip_start:
        # Before this process touches a GPU: it would keep most of its memory from the processes that are timed.
        with console.stage("Timing starts, cold and with the compilation cache warm"):
            start = first_iteration_seconds(config)
    for note in device_choice.configure(config.runtime, config.rollout.num_envs):
        console.note(note)
    with console.stage("Building the task and compiling the program"):
        devices = device_choice.select(config.runtime, config.rollout.num_envs)
        workbench = Workbench.build(config, make_task(config), devices)
        workbench.program.compile()
    with console.stage("Measuring physics, rollout and training"):
        columns = measure_columns(workbench, options.repeats)
    with console.stage("Measuring the iteration's parts"):
        parts = measure_parts(workbench, options.repeats)
        product = product_cost(workbench.iteration.networks, config.trust_region, parts.fisher_samples)
    memory = measure_memory(workbench, options.memory_gib)
    rows: tuple[SweepRow, ...] | None = None
    if options.sweep_sizes:
        rows = tuple(sweep(config, options, options.sweep_sizes, console))
        draw(rows, Path(options.picture), f"{workbench.task.name}, {config.rollout.unroll_length} steps an iteration")
        console.note(f"Wrote {options.picture}")
    return build_report(
        workbench.config,
        devices[0].device_kind,
        len(devices),
        options.repeats,
        columns,
        parts,
        product,
        memory,
        start,
        rows,
    )


def _check_sweep(config: Config, options: BenchOptions) -> None:
    wanted = config.runtime.cpu_devices
    for size in options.sweep_sizes:
        if wanted is not None and size % wanted:
            raise ConfigError(
                f"cpu_devices must divide every number in sweep_envs, and {wanted} does not divide {size}."
            )
    if options.sweep_sizes and not Path(options.picture).resolve().parent.is_dir():
        raise ConfigError(f"picture {options.picture!r} is in a folder that does not exist.")
