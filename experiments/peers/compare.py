"""Compare this trainer with Brax PPO, Brax SAC and sb3-contrib TRPO: same task, physics, machine and evaluator.

    pip install --no-deps --require-hashes --requirement experiments/peers/requirements.txt
    python experiments/peers/compare.py --tasks inverted_pendulum hopper --seeds 0 1 2 --seconds 120

One run after another, each in a process of its own. A finished run is not repeated, so the script can be stopped and
started again; tables and picture in experiments/results/peers/ are rewritten after every run. What is compared, how:

- Every trainer has its own authors' settings (settings.py says whose and where) and ends after the number of steps that
  they published or after `--seconds` of training, whichever is first; which of the two is in the tables.
- Returns are means over 128 episodes without noise (our mean action, their mode), by trpo_brax's evaluator, from the
  same starting states.
- Training seconds hold no imports, tracing, compilation or evaluation. Peers are timed in units of progress (PPO: one
  batch and its updates; SAC: 1,024 steps; sb3: one iteration), and the first, in which things are compiled, counts as
  long as the median of the others. trpo_brax compiles before its clock starts; saving checkpoints is inside it.
- Steps per second are the median over units (trpo_brax: iterations) after the first, then over seeds.
- Start seconds run from the start of the process to the end of the first unit: `cold` with an empty compilation cache,
  in a run of its own; `warm` with the cache that such a run filled, as in all training runs. The first unit's own work
  is in it: summary.csv has its steps and its seconds.
- JAX trainers run their first seed on each number of `--devices`, the other seeds on the faster one, which is quoted.
  A cold start is the median of `--cold-starts` of them, on the number of devices where that is shorter.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import tyro

from experiments.peers.picture import draw
from experiments.peers.settings import PPO, VARIANTS, VariantName
from experiments.peers.tables import Result, quoted, write_setup, write_tables
from trpo_brax.host.devices import usable_cores

RESULTS = Path(__file__).parents[1] / "results" / "peers"


def _all_host_devices() -> int:
    """Return the largest power of two that is not above the number of usable cores: it divides every batch."""
    return 1 << (usable_cores().bit_length() - 1)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare this trainer with Brax PPO, Brax SAC and sb3-contrib TRPO."""

    tasks: tuple[str, ...] = tuple(PPO)
    """Tasks to train."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each task."""
    seconds: float = 120.0
    """Training seconds after which a run is cut off."""
    devices: tuple[int, ...] = tuple(sorted({1, _all_host_devices()}))
    """Numbers of JAX devices to run on."""
    variants: tuple[VariantName, ...] = tuple(name for name in VARIANTS if name != "ppo-playground")
    """Trainers and settings."""
    cold_starts: int = 3
    """Starts with an empty compilation cache on each number of devices; their median is kept."""
    points: int = 12
    """Most policies evaluated of a run."""
    runs_dir: Path = Path("runs/peers")
    """Where the runs and the compilation caches are kept."""
    results_dir: Path = RESULTS
    """Where tables and picture are written."""


class Comparison:
    """Runs what has not been run yet and keeps the tables up to date."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._results: list[Result] = []
        self._origin: dict[str, str] = {}

    def run(self) -> None:
        """Run everything."""
        for task in self._arguments.tasks:
            for variant in self._arguments.variants:
                if task in VARIANTS[variant].tasks:
                    self._variant(variant, task)

    def _variant(self, variant: VariantName, task: str) -> None:
        counts = self._arguments.devices if VARIANTS[variant].jax_devices else (1,)
        first, *others = self._arguments.seeds
        for devices in counts:
            for index in range(self._arguments.cold_starts):
                self._job(variant, task, index, devices, start_only=True)
            self._job(variant, task, first, devices)
        best = quoted(self._trained(), variant, task)[0]["devices"]
        for seed in others:
            self._job(variant, task, seed, best)

    def _job(self, variant: VariantName, task: str, seed: int, devices: int, *, start_only: bool = False) -> None:
        name = f"{variant}-{task}-{devices}"
        folder = self._arguments.runs_dir.resolve() / f"{name}-{'start-' if start_only else ''}{seed}"
        cache = self._arguments.runs_dir.resolve() / "cache" / name
        result = folder / "result.json"
        if not result.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if start_only:
                shutil.rmtree(cache, ignore_errors=True)
            self._process(variant, task, seed, devices, folder, cache, start_only)
        self._results.append(json.loads(result.read_text()))
        if variant == "trpo_brax":
            self._origin = json.loads((folder / "origin.json").read_text())
        write_tables(self._arguments.results_dir, self._results)
        write_setup(self._arguments.results_dir, self._results, self._origin, self._arguments.seconds)
        if trained := self._trained():
            draw(self._arguments.results_dir / "peers.png", trained)
        self._say(self._results[-1], folder.name)

    def _process(
        self, variant: VariantName, task: str, seed: int, devices: int, folder: Path, cache: Path, start_only: bool
    ) -> None:
        arguments = self._arguments
        words = [sys.executable, "-m", f"experiments.peers.{VARIANTS[variant].module}", "--variant", variant]
        words += ["--task", task, "--seed", str(seed), "--devices", str(devices), "--folder", str(folder)]
        words += ["--seconds", str(arguments.seconds), "--points", str(arguments.points)]
        words += ["--start-only"] if start_only else []
        settings = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        log = folder / "log.txt"
        with log.open("w") as output:
            finished = subprocess.run(
                [*words, "--started", repr(time.time())],
                env=os.environ | settings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if finished.returncode:
            raise SystemExit(f"{folder.name} failed with status {finished.returncode}; see {log}.")

    def _trained(self) -> list[Result]:
        return [result for result in self._results if result["ended_by"] != "start"]

    def _say(self, result: Result, name: str) -> None:
        start = f"first unit after {result['start_seconds']:.1f} s"
        if result["ended_by"] == "start":
            print(f"{name}: {start}", flush=True)
            return
        returns = result["points"][-1]["return_mean"]
        print(
            f"{name}: {start}, {result['steps_per_second']:,.0f} steps/s, return {returns:,.1f} at "
            f"{result['env_steps']:,} steps and {result['training_seconds']:.1f} s ({result['ended_by']})",
            flush=True,
        )


if __name__ == "__main__":
    Comparison(tyro.cli(Arguments)).run()
