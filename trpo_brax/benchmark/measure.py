"""The benchmark from the outside: one process, the devices that `train` would use, one report."""

from __future__ import annotations

from trpo_brax.benchmark.columns import measure_columns
from trpo_brax.benchmark.flops import counting_device, product_forward_passes
from trpo_brax.benchmark.parts import measure_parts
from trpo_brax.benchmark.report import BenchmarkReport
from trpo_brax.benchmark.start import first_iteration_seconds
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.config import Config
from trpo_brax.environments.making import make_task
from trpo_brax.host.console import Console
from trpo_brax.host.devices import prepare


def bench(
    config: Config, *, repeats: int = 5, skip_start: bool = False, console: Console | None = None
) -> BenchmarkReport:
    """Measure one configuration.

    Args:
        config: as for training; one seed is measured, and how long it would train does not matter.
        repeats: timed repeats of everything, after a warm-up; medians are reported.
        skip_start: leave out the time from start to first iteration.
        console: where progress is told; standard output by default.

    Raises:
        UserError: one sentence says what cannot work.
    """
    console = console or Console()
    start = None
    if not skip_start:
        # Before this process touches a GPU: it would keep most of its memory from the processes that are timed.
        with console.stage("Timing starts, cold and with the compilation cache warm"):
            start = first_iteration_seconds(config)
    devices = prepare(config.runtime, config.rollout.num_envs, console.note).devices
    counting_device()  # where there is none, it is said before anything is measured
    with console.stage("Building the task and compiling the program"):
        workbench = Workbench.build(config, make_task(config), devices)
        workbench.program.compile()
    with console.stage("Measuring physics, rollout and training"):
        columns = measure_columns(workbench, repeats)
    with console.stage("Measuring the iteration's parts"):
        parts = measure_parts(workbench, repeats)
        networks = workbench.program.iteration.networks
        product = product_forward_passes(networks, config.trust_region, parts.fisher_samples)
    return BenchmarkReport(
        config=workbench.config,
        device=devices[0].device_kind,
        devices=len(devices),
        columns=columns,
        parts=parts,
        fisher_product_forward_passes=product,
        first_iteration_seconds=start,
        peak_memory_bytes=workbench.planned_bytes(),
    )
