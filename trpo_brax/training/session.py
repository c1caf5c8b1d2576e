"""One stretch of training: chunks dispatched, recorded and checkpointed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from trpo_brax.config import Config, to_dict
from trpo_brax.environments import Task
from trpo_brax.evaluation import (
    Episodes,
    EvaluationReport,
    RecordedRun,
    group_runs,
    learning_curve,
    plot_groups,
    summarize,
)
from trpo_brax.training import processes
from trpo_brax.training.checkpoints import Checkpoints
from trpo_brax.training.console import Console
from trpo_brax.training.folder import RunFolder
from trpo_brax.training.metrics import across_seeds, record
from trpo_brax.training.program import CHUNK_CAPACITY, Program
from trpo_brax.training.provenance import provenance
from trpo_brax.training.recorder import Recorder
from trpo_brax.training.run import Run, evaluate_seeds, write_task
from trpo_brax.training.state import TrainState
from trpo_brax.training.stopping import StopRequest
from trpo_brax.training.summary import last_episodes, mean_return, of_seed

if TYPE_CHECKING:
    from brax.envs import Env

_SECONDS_PER_CHUNK = 1.0


@dataclasses.dataclass
class _Chunk:
    """Iterations under way on the device."""

    first: int
    length: int
    metrics: Any
    dispatched: float
    copy: TrainState | None
    """The state after the chunk, where a checkpoint is due."""


class Session:
    """One stretch of training, from start or checkpoint to end or stop."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        task: Task,
        devices: Sequence[jax.Device],
        console: Console,
        stop: StopRequest,
    ) -> None:
        self._config = config
        self._devices = devices
        self._folder = folder
        self._console = console
        self._stop = stop
        self._total = config.total_iterations
        self._task = task
        self._checkpoints = Checkpoints(folder.checkpoints, seeds=config.seeds, keep=config.record.checkpoints_to_keep)
        known = self._checkpoints.iterations()
        self._done = known[-1] if known else 0
        self._records = [row for row in folder.read_metrics() if row["iteration"] <= self._done]
        self._wall_time = self._records[-1]["wall_time_s"] if self._records else 0.0
        self._seconds_per_iteration: float | None = None

    def train(self) -> None:
        """Run chunks until the last iteration or a request to stop; both leave a complete checkpoint."""
        try:
            if self._done < self._total:
                self._run_chunks()
        finally:
            self._checkpoints.close()

    def finish(self) -> None:
        """Write the curve and the summary; evaluate the last policy if training has finished."""
        config, records = self._config, self._records
        _, signal = processes.agree(0, self._stop.signal)
        summary: dict[str, Any] = {
            "status": "finished" if signal is None else "stopped",
            "signal": signal,
            "iterations": self._done,
            "env_steps": self._done * config.steps_per_iteration,
            "wall_time_s": self._wall_time,
            "training": last_episodes(records),
            "evaluation": None,
            "seeds": [
                {"seed": seed, "training": last_episodes(of_seed(records, seed)), "evaluation": None}
                for seed in config.seeds
            ],
        }
        if processes.primary():
            self._draw_curve()
            self._folder.write_json(self._folder.summary_file, summary)
        episodes = config.record.final_evaluation_episodes
        if signal is None and episodes:
            what = f"{episodes} episodes" if config.num_seeds == 1 else f"{episodes} episodes of each seed"
            with self._console.stage(f"Evaluating {what}"):
                reports = evaluate_seeds(Run.load(self._folder.path), episodes=episodes, environment=self._own())
            for entry in summary["seeds"]:
                entry["evaluation"] = reports[entry["seed"]].to_dict()
            # Over all seeds' episodes together: what to expect of a policy trained like this.
            pooled = summarize(Episodes.joined([report.details for report in reports.values()]))
            summary["evaluation"] = pooled.to_dict()
            # Every process evaluates, on devices of its own, so that they end together; one writes.
            if processes.primary():
                self._folder.write_json(self._folder.summary_file, summary)
            self._tell(reports)
        self._console.note(f"{'Finished' if signal is None else 'Stopped and saved'}: {self._folder.path}")

    def _draw_curve(self) -> None:
        config, file = self._config, self._folder.learning_curve_file
        if config.num_seeds == 1:
            learning_curve(self._records, file, f"{self._task.name}, seed {config.seed}")
        else:
            plot_groups(group_runs([RecordedRun(str(self._folder.path), config, self._records)]), file)

    def _tell(self, reports: dict[int, EvaluationReport]) -> None:
        for seed, report in reports.items():
            self._console.note(
                f"{f'Seed {seed}: return' if len(reports) > 1 else 'Return'} {report.return_mean:,.1f} +- "
                f"{report.return_std:,.1f} over {report.episodes} episodes by the policy's mode, lowest "
                f"{report.return_min:,.1f}, episode length {report.length_mean:,.0f}."
            )

    def _own(self) -> Env | None:
        return self._task.environment if self._config.environment is not None else None

    def _run_chunks(self) -> None:
        config, console, devices = self._config, self._console, self._devices
        console.note(
            f"Training {self._task.name}{f', {config.num_seeds} seeds at once,' if config.num_seeds > 1 else ''} for "
            f"{self._total} iterations of {config.steps_per_iteration:,} steps on "
            f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}, into {self._folder.path}"
        )
        with console.stage("Compiling"):
            program = Program(config, self._task, devices)
            program.compile(to_begin=not self._done)
        with console.stage("Restoring the checkpoint" if self._done else "Starting the environments"):
            if self._done:
                state = self._checkpoints.restore(self._done, program.abstract_state, program.shardings)
            else:
                state = program.initial_state()
            jax.block_until_ready(state)
        with contextlib.ExitStack() as stack:
            recorder = stack.enter_context(contextlib.closing(self._open_folder())) if processes.primary() else None
            stack.enter_context(console.training(self._total, self._done))
            first, began = self._done, self._wall_time
            self._dispatch_all(program, state, recorder)
        self._checkpoints.wait()
        steps = (self._done - first) * config.steps_per_iteration * config.num_seeds
        seconds = self._wall_time - began
        if steps:
            speed = f"{steps:,} steps in {seconds:,.1f} s ({steps / seconds:,.0f} steps/s)"
            recent = last_episodes(self._records)["episode_return_mean"]
            gained = "no episode ended" if recent is None else f"return {recent:,.1f} by sampled actions"
            console.note(f"Training: iterations {first + 1} to {self._done}, {speed}, {gained}")

    def _open_folder(self) -> Recorder:
        """Write what describes this stretch, drop metrics newer than its start, and return what appends the rest."""
        write_task(self._folder, self._task)
        self._folder.write_json(self._folder.config_file, to_dict(self._config))
        self._folder.write_json(self._folder.provenance_file, self._provenance())
        self._folder.cut_metrics(self._done)
        return Recorder(self._folder, self._records, several=self._config.num_seeds > 1)

    def _provenance(self) -> dict[str, Any]:
        """Return where this stretch came from, and where the stretches before it did."""
        file = self._folder.provenance_file
        before = self._folder.read_json(file) if file.is_file() else None
        earlier = [] if before is None else [*before.pop("earlier"), before]
        return {**provenance(self._devices), "earlier": earlier}

    def _dispatch_all(self, program: Program, state: TrainState, recorder: Recorder | None) -> None:
        """Keep the device busy: while it runs one chunk, the one before is recorded."""
        self._clock = time.monotonic()
        pending: _Chunk | None = None
        dispatched = self._done
        while dispatched < self._total:
            length, signal = processes.agree(self._chunk_length(dispatched), self._stop.signal)
            if signal is not None:
                break
            started = time.monotonic()
            state, metrics = program.run(state, length)
            if pending is not None:
                self._complete(pending, recorder)
            # Only now: a CPU's copy waits for the chunk, and the one before has to be timed first.
            copy = program.copy(state) if self._checkpoint_due(dispatched + length) else None
            pending = _Chunk(dispatched, length, metrics, started, copy)
            dispatched += length
            if self._seconds_per_iteration is None:
                # Nothing is known yet of how long an iteration takes: measure one before two are in flight.
                self._complete(pending, recorder)
                pending = None
        if pending is not None:
            self._complete(pending, recorder)
        if dispatched > 0 and dispatched not in self._checkpoints.iterations():
            self._save(state)

    def _chunk_length(self, dispatched: int) -> int:
        """Return how many iterations to dispatch next; how chunks fall changes no result."""
        if self._seconds_per_iteration is None:
            return 1
        seconds = min(_SECONDS_PER_CHUNK, self._config.runtime.max_chunk_seconds / 2)
        length = max(1, min(CHUNK_CAPACITY, int(seconds / self._seconds_per_iteration)))
        every = self._config.record.checkpoint_every
        return min(length, self._total - dispatched, every - dispatched % every)

    def _checkpoint_due(self, iteration: int) -> bool:
        return iteration % self._config.record.checkpoint_every == 0 or iteration == self._total

    def _complete(self, chunk: _Chunk, recorder: Recorder | None) -> None:
        """Wait for a chunk, write its records, and save its state where that is due."""
        metrics = jax.device_get(chunk.metrics)
        finished = time.monotonic()
        # A chunk runs from the end of the one before it, or from its dispatch where the device was idle.
        seconds = (finished - max(self._clock, chunk.dispatched)) / chunk.length
        self._clock = finished
        self._seconds_per_iteration = seconds
        steps, seeds = self._config.steps_per_iteration, self._config.seeds
        by_seed = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], len(seeds)), metrics)
        for index in range(chunk.length):
            self._wall_time += seconds
            self._done = chunk.first + index + 1
            rows = [
                {
                    "seed": seed,
                    "iteration": self._done,
                    "env_steps": self._done * steps,
                    "wall_time_s": round(self._wall_time, 4),
                    "steps_per_second": round(steps / seconds, 1),
                    **record(jax.tree.map(lambda leaf, at=(index, position): leaf[at], by_seed)),
                }
                for position, seed in enumerate(seeds)
            ]
            self._records += rows
            if recorder is not None:
                recorder.add(rows)
        if recorder is not None:
            recorder.flush()
        self._console.iteration(across_seeds(rows), self._total, (self._total - self._done) * seconds)
        if chunk.copy is not None:
            self._save(chunk.copy)

    def _save(self, state: TrainState) -> None:
        every = self._config.record.checkpoint_every
        returns = {}
        # Only checkpoints on the beat compete for best: when a run was stopped must not decide which policy that is.
        if self._done % every == 0:
            recent = [row for row in self._records if row["iteration"] > self._done - every]
            means = {seed: mean_return(of_seed(recent, seed)) for seed in self._config.seeds}
            returns = {seed: mean for seed, mean in means.items() if mean is not None}
        self._checkpoints.save(state, self._config, returns)
