"""One stretch of training: chunks dispatched, recorded and checkpointed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from trpo_brax.config import Config, to_dict
from trpo_brax.environments import Task
from trpo_brax.evaluation import learning_curve
from trpo_brax.training.checkpoints import Checkpoints
from trpo_brax.training.console import Console
from trpo_brax.training.folder import RunFolder
from trpo_brax.training.metrics import record
from trpo_brax.training.program import CHUNK_CAPACITY, Program
from trpo_brax.training.provenance import provenance
from trpo_brax.training.recorder import Recorder
from trpo_brax.training.run import Run, evaluate, write_task
from trpo_brax.training.state import TrainState
from trpo_brax.training.stopping import StopRequest

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
        self._checkpoints = Checkpoints(folder.checkpoints, keep=config.record.checkpoints_to_keep)
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
        config, records, stopped = self._config, self._records, bool(self._stop)
        learning_curve(records, self._folder.learning_curve_file, f"{self._task.name}, seed {config.seed}")
        summary: dict[str, Any] = {
            "status": "stopped" if stopped else "finished",
            "signal": self._stop.signal,
            "iterations": self._done,
            "env_steps": self._done * config.steps_per_iteration,
            "wall_time_s": self._wall_time,
            "training": _last_episodes(records),
            "evaluation": None,
        }
        self._folder.write_json(self._folder.summary_file, summary)
        episodes = config.record.final_evaluation_episodes
        if not stopped and episodes:
            with self._console.stage(f"Evaluating {episodes} episodes"):
                report = evaluate(Run.load(self._folder.path), episodes=episodes, environment=self._own())
            summary["evaluation"] = report.to_dict()
            self._folder.write_json(self._folder.summary_file, summary)
            self._console.note(
                f"Return {report.return_mean:,.1f} +- {report.return_std:,.1f} over {report.episodes} episodes by the "
                f"policy's mode, lowest {report.return_min:,.1f}, episode length {report.length_mean:,.0f}."
            )
        self._console.note(f"{'Stopped and saved' if stopped else 'Finished'}: {self._folder.path}")

    def _own(self) -> Env | None:
        return self._task.environment if self._config.environment is not None else None

    def _run_chunks(self) -> None:
        config, console, devices = self._config, self._console, self._devices
        console.note(
            f"Training {self._task.name} for {self._total} iterations of {config.steps_per_iteration:,} steps on "
            f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}, into {self._folder.path}"
        )
        with console.stage("Compiling"):
            program = Program(config, self._task, devices)
            program.compile()
        with console.stage("Restoring the checkpoint" if self._done else "Starting the environments"):
            if self._done:
                state = self._checkpoints.restore(self._done, program.abstract_state, program.shardings)
            else:
                state = program.initial_state()
            jax.block_until_ready(state)
        write_task(self._folder, self._task)
        self._folder.write_json(self._folder.config_file, to_dict(config))
        self._folder.write_json(self._folder.provenance_file, self._provenance())
        self._records = self._folder.cut_metrics(self._done)
        recording = contextlib.closing(Recorder(self._folder, self._records))
        with recording as recorder, console.training(self._total, self._done):
            first, began = self._done, self._wall_time
            self._dispatch_all(program, state, recorder)
        self._checkpoints.wait()
        steps, seconds = (self._done - first) * config.steps_per_iteration, self._wall_time - began
        if steps:
            speed = f"{steps:,} steps in {seconds:,.1f} s ({steps / seconds:,.0f} steps/s)"
            recent = _last_episodes(self._records)["episode_return_mean"]
            gained = "no episode ended" if recent is None else f"return {recent:,.1f} by sampled actions"
            console.note(f"Training: iterations {first + 1} to {self._done}, {speed}, {gained}")

    def _provenance(self) -> dict[str, Any]:
        """Return where this stretch came from, and where the stretches before it did."""
        file = self._folder.provenance_file
        before = self._folder.read_json(file) if file.is_file() else None
        earlier = [] if before is None else [*before.pop("earlier"), before]
        return {**provenance(self._devices), "earlier": earlier}

    def _dispatch_all(self, program: Program, state: TrainState, recorder: Recorder) -> None:
        """Keep the device busy: while it runs one chunk, the one before is recorded."""
        self._clock = time.monotonic()
        pending: _Chunk | None = None
        dispatched = self._done
        while dispatched < self._total and not self._stop:
            length = self._chunk_length(dispatched)
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

    def _complete(self, chunk: _Chunk, recorder: Recorder) -> None:
        """Wait for a chunk, write its records, and save its state where that is due."""
        metrics = jax.device_get(chunk.metrics)
        finished = time.monotonic()
        # A chunk runs from the end of the one before it, or from its dispatch where the device was idle.
        seconds = (finished - max(self._clock, chunk.dispatched)) / chunk.length
        self._clock = finished
        self._seconds_per_iteration = seconds
        for index in range(chunk.length):
            self._wall_time += seconds
            self._done = chunk.first + index + 1
            row = {
                "iteration": self._done,
                "env_steps": self._done * self._config.steps_per_iteration,
                "wall_time_s": round(self._wall_time, 4),
                "steps_per_second": round(self._config.steps_per_iteration / seconds, 1),
                **record(jax.tree.map(lambda rows, at=index: rows[at], metrics)),
            }
            recorder.add(row)
        recorder.flush()
        self._console.iteration(row, self._total, (self._total - self._done) * seconds)
        if chunk.copy is not None:
            self._save(chunk.copy)

    def _save(self, state: TrainState) -> None:
        every = self._config.record.checkpoint_every
        # Only checkpoints on the beat compete for best: when a run was stopped must not decide which policy that is.
        ranked = self._done % every == 0
        self._checkpoints.save(state, self._config, _mean_return(self._records[-every:]) if ranked else None)


def _mean_return(records: list[dict[str, Any]]) -> float | None:
    """Return the mean return of all episodes in the records, None if none ended."""
    # A mean can be null although episodes ended: finite rewards may add up to more than a float32.
    rows = [row for row in records if row["episodes"] and row["episode_return_mean"] is not None]
    if not rows:
        return None
    return float(np.average([row["episode_return_mean"] for row in rows], weights=[row["episodes"] for row in rows]))


def _last_episodes(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean training return over the last tenth of the iterations, and how many episodes that is."""
    recent = records[-max(1, len(records) // 10) :]
    return {"episode_return_mean": _mean_return(recent), "episodes": sum(row["episodes"] for row in recent)}
