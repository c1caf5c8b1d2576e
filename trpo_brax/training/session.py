"""One stretch of training: chunks dispatched, recorded and checkpointed."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from typing import Any

import jax

from trpo_brax.config import Config, to_dict
from trpo_brax.environments import Task
from trpo_brax.errors import ConfigError, RunFolderError, UserError
from trpo_brax.evaluation import EvaluationStopped
from trpo_brax.host import processes
from trpo_brax.host.console import Console
from trpo_brax.host.stopping import StopRequest
from trpo_brax.learner.metrics import across_seeds, record
from trpo_brax.learner.program import CHUNK_CAPACITY, Program
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.learner.state import TrainState
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.dumps import write_dump
from trpo_brax.runs.files import write_json
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.provenance import provenance
from trpo_brax.runs.recorder import Recorder
from trpo_brax.runs.records import readable_metrics, write_records
from trpo_brax.runs.saving import FAULTS, CheckpointSaver, reason
from trpo_brax.runs.summary import last_episodes, mean_return, of_seed, seen, too_many
from trpo_brax.runs.task_file import write_task
from trpo_brax.training.conclusion import Stretch
from trpo_brax.training.periodic import RANKED_BY, PeriodicEvaluation, absent, evaluation_line

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
        self._saver = CheckpointSaver(folder, config)
        self._evaluation = PeriodicEvaluation(config, task) if config.record.eval_every else None
        self._recorder: Recorder | None = None
        self._records: list[dict[str, Any]] = []
        self._restored = self._done = 0
        self._wall_time = 0.0
        self._seconds_per_iteration: float | None = None
        self._failure: str | None = None
        self._unwritten: str | None = None
        self._dumped = False

    def train(self) -> Stretch:
        """Run chunks until the last iteration, a request to stop, or a fault; what can be saved is saved."""
        with self._console.stage("Building the program"):
            program = Program(self._config, self._task, self._devices)
            _refuse_too_large(program)
        try:
            state = self._restore(program)
            if self._done < self._total:
                self._run_chunks(program, state)
        finally:
            self._saver.close()
        # Process 0 alone names checkpoints and writes metrics: what it could not do, none of them has done.
        if processes.from_primary(int(self._failure is not None)) and self._failure is None:
            self._failure = "process 0 could not save the run; it says why"
        saved = self._saver.saved if self._saver.saved is not None else self._restored
        return Stretch(self._records, self._done, saved, self._wall_time, self._failure)

    def _restore(self, program: Program) -> TrainState | None:
        """Return the state of the newest sound checkpoint, None where there is none; damaged ones are moved away."""
        # Process 0 decides: what another one sees of a shared folder may be older.
        if not processes.from_primary(int(self._folder.checkpoints.is_dir())):
            self._begin_again()
            return None
        checkpoints = Checkpoints(self._folder.checkpoints, self._config)

        def quarantine(iteration: int, why: str) -> None:
            target = checkpoints.quarantine(iteration, self._folder.quarantine)
            self._console.warn(f"{why.rstrip('.')}; the checkpoint was quarantined as {target}.")

        while True:
            newest = processes.together(lambda: checkpoints.newest_intact(quarantine) if processes.primary() else None)
            newest = processes.from_primary(newest)
            if newest is None:
                self._begin_again()
                return None
            at = newest
            with self._console.stage(f"Restoring the checkpoint of iteration {at}"):
                restore = functools.partial(checkpoints.restore, at, program.abstract_state, program.shardings)
                state = processes.together(restore)
                sound = program.sound(state)
            if sound:
                break
            why = f"checkpoint {self._folder.checkpoints / str(at)} holds numbers that are not finite"
            processes.together(functools.partial(quarantine, at, why) if processes.primary() else _nothing)
        self._restored = self._done = at
        self._records = self._kept_records(at)
        self._wall_time = self._records[-1]["wall_time_s"] if self._records else 0.0
        return state

    def _begin_again(self) -> None:
        """Say so where a run that had come somewhere has no checkpoint left, and keep what its metrics were."""
        if not processes.primary() or not self._folder.metrics_file.is_file():
            return
        try:
            kept = self._folder.set_aside(self._folder.metrics_file)
        except OSError as error:
            raise RunFolderError(f"run_dir {self._folder.path} cannot be written: {reason(error)}.") from error
        self._console.warn(f"There is no sound checkpoint: training begins again; its metrics so far are {kept}.")

    def _kept_records(self, iteration: int) -> list[dict[str, Any]]:
        """Return the records up to a checkpoint; what cannot be read of the others is no loss, and of them is told."""
        records, damaged = readable_metrics(self._folder.metrics_file)
        kept = [row for row in records if row["iteration"] <= iteration]
        last = kept[-1]["iteration"] if kept else 0
        if processes.primary() and (damaged or last < iteration):
            why = "lines that are no records" if damaged else f"nothing after iteration {last}"
            self._console.warn(f"{self._folder.metrics_file} holds {why}: some iterations are missing from it.")
        return kept

    def _run_chunks(self, program: Program, state: TrainState | None) -> None:
        config, console, devices = self._config, self._console, self._devices
        console.note(
            f"Training {self._task.name}{f', {config.num_seeds} seeds at once,' if config.num_seeds > 1 else ''} for "
            f"{self._total} iterations of {config.steps_per_iteration:,} steps on "
            f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}, into {self._folder.path}"
        )
        with console.stage("Compiling"):
            program.compile(to_begin=state is None)
        if state is None:
            with console.stage("Starting the environments"):
                state = jax.block_until_ready(program.initial_state())
        processes.together(self._open_folder)
        with console.training(self._total, self._done):
            first, began = self._done, self._wall_time
            last = self._dispatch_all(program, state)
        self._save_last(program, last)
        steps = (self._done - first) * config.steps_per_iteration * config.num_seeds
        seconds = self._wall_time - began
        if steps:
            speed = f"{steps:,} steps in {seconds:,.1f} s ({steps / seconds:,.0f} steps/s)"
            recent = last_episodes(self._records)["episode_return_mean"]
            gained = "no episode ended" if recent is None else f"return {recent:,.1f} by sampled actions"
            console.note(f"Training: iterations {first + 1} to {self._done}, {speed}, {gained}")

    def _open_folder(self) -> None:
        """Write what describes this stretch, drop metrics newer than its start, and open what takes the rest."""
        if not processes.primary():
            return
        try:
            write_task(self._folder, self._task)
            write_json(self._folder.config_file, to_dict(self._config))
            earlier = self._earlier()
            write_json(self._folder.provenance_file, provenance(self._devices, self._done, earlier))
            write_records(self._folder.metrics_file, self._records)
            self._recorder = Recorder(self._folder, self._records, several=self._config.num_seeds > 1)
        except OSError as error:
            raise RunFolderError(f"run_dir {self._folder.path} cannot be written: {reason(error)}.") from error

    def _earlier(self) -> dict[str, Any] | None:
        """Return the provenance so far; one that is broken is set aside."""
        try:
            return self._folder.read_provenance()
        except RunFolderError as error:
            kept = self._folder.set_aside(self._folder.provenance_file)
            self._console.warn(f"{str(error).rstrip('.')}; it is now {kept}.")
            return None

    def _dispatch_all(self, program: Program, state: TrainState) -> TrainState:
        """Keep the device busy: while it runs one chunk, the one before is recorded. Return the last state."""
        self._clock = time.monotonic()
        pending: _Chunk | None = None
        dispatched = self._done
        while dispatched < self._total and self._failure is None:
            length, signal = processes.agree(self._chunk_length(dispatched), self._stop.signal)
            if signal is not None:
                break
            if pending is not None and self._iteration_is_long():
                self._complete(program, pending)
                pending = None
                continue
            started = time.monotonic()
            if self._config.runtime.check_finite:
                state = self._run_checked(program, state, dispatched)
                dispatched += 1
                continue
            state, metrics = program.run(state, length)
            if pending is not None:
                self._complete(program, pending)
            # Only now: a CPU's copy waits for the chunk, and the one before has to be timed first.
            copy = program.copy(state) if self._copy_due(dispatched + length) else None
            pending = _Chunk(dispatched, length, metrics, started, copy)
            dispatched += length
            if self._seconds_per_iteration is None or self._evaluation_due(dispatched):
                # Nothing is known yet of how long an iteration takes: measure one before two are in flight. And
                # what an evaluation takes is not training.
                self._complete(program, pending)
                pending = None
        if pending is not None and self._failure is None:
            self._complete(program, pending)
        return state

    def _run_checked(self, program: Program, before: TrainState, dispatched: int) -> TrainState:
        """Run one iteration, and dump the first that met anything that is not finite."""
        started = time.monotonic()
        state, metrics, trajectory = program.run_one(before)
        copy = state if self._copy_due(dispatched + 1) else None
        rows = self._complete(program, _Chunk(dispatched, 1, metrics, started, copy))
        if not self._dumped:
            self._dump_if_seen(program, rows, before, state, trajectory)
        return state

    def _dump_if_seen(
        self,
        program: Program,
        rows: list[dict[str, Any]],
        before: TrainState,
        after: TrainState,
        trajectory: Trajectory,
    ) -> None:
        told = [(row["seed"], found) for row in rows if (found := seen(row)) is not None]
        if not told and not program.sound(after):
            told = [(rows[0]["seed"], "the state after it was not finite")]
        if not told:
            return
        (seed, found), iteration = told[0], rows[0]["iteration"]
        self._dumped = True
        try:
            path = write_dump(self._folder, before, trajectory, iteration=iteration, seed=seed, seen=found)
        except (*FAULTS, UserError) as error:
            self._console.warn(f"Iteration {iteration}: {found}; the dump could not be written: {reason(error)}.")
        else:
            own = "" if self._config.environment is None else f" --environment {self._config.environment}"
            self._console.warn(f"Iteration {iteration}: {found}. To find out where: trpo-brax replay {path}{own}")

    def _chunk_length(self, dispatched: int) -> int:
        """Return how many iterations to dispatch next; how chunks fall changes no result."""
        if self._seconds_per_iteration is None:
            return 1
        seconds = min(_SECONDS_PER_CHUNK, self._config.runtime.max_chunk_seconds / 2)
        length = max(1, min(CHUNK_CAPACITY, int(seconds / self._seconds_per_iteration)))
        beats = [self._config.record.checkpoint_every, self._config.record.eval_every or CHUNK_CAPACITY]
        return min(length, self._total - dispatched, *(every - dispatched % every for every in beats))

    def _iteration_is_long(self) -> bool:
        """Return whether two iterations in flight would be more than `max_chunk_seconds` allows."""
        return 2 * (self._seconds_per_iteration or 0.0) > self._config.runtime.max_chunk_seconds

    def _checkpoint_due(self, iteration: int) -> bool:
        return iteration % self._config.record.checkpoint_every == 0 or iteration == self._total

    def _copy_due(self, iteration: int) -> bool:
        return self._checkpoint_due(iteration) or self._evaluation_due(iteration)

    def _evaluation_due(self, iteration: int) -> bool:
        every = self._config.record.eval_every
        return every > 0 and (iteration % every == 0 or self._checkpoint_due(iteration))

    def _complete(self, program: Program, chunk: _Chunk) -> list[dict[str, Any]]:
        """Wait for a chunk, write its records, save its state where that is due, and return the last rows."""
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
                    **absent(self._config),
                }
                for position, seed in enumerate(seeds)
            ]
            if chunk.copy is not None and index == chunk.length - 1:
                self._evaluate(program, chunk.copy, rows)
            self._records += rows
            if self._recorder is not None:
                self._recorder.add(rows)
            self._failure = too_many(rows, self._config.runtime.max_nonfinite_share)
            if self._failure is not None:
                break
        self._flush()
        self._console.iteration(across_seeds(rows), self._total, (self._total - self._done) * seconds)
        if jax.process_count() == 1 and not self._saver.busy():
            self._warn(self._saver.settle())
        if chunk.copy is not None and self._checkpoint_due(self._done) and self._failure is None:
            self._warn(self._save(program, chunk.copy))
        return rows

    def _evaluate(self, program: Program, state: TrainState, rows: list[dict[str, Any]]) -> None:
        """Put the figures of an evaluation into the rows of the iteration done, where one is due."""
        if self._evaluation is None or not self._evaluation_due(self._done) or not program.sound(state):
            return
        try:
            figures = self._evaluation(state, self._done, lambda: bool(self._stop))
        except EvaluationStopped:
            return
        finally:
            self._clock = time.monotonic()
        for row in rows:
            row.update(figures[row["seed"]])
        self._console.note(evaluation_line(self._config, self._done, list(figures.values())))

    def _flush(self) -> None:
        """Write the records; those that the disk does not take wait for the next time."""
        if self._recorder is None:
            return
        try:
            self._recorder.flush()
        except OSError as error:
            if self._unwritten is None:
                self._console.warn(f"The metrics could not be written, and are kept for later: {reason(error)}.")
            self._unwritten = reason(error)
        else:
            self._unwritten = None

    def _save(self, program: Program, state: TrainState) -> str | None:
        """Begin to save the state of the iteration done, and return why not; one that is not finite is never saved."""
        if not program.sound(state):
            self._failure = f"iteration {self._done} left parameters that are not finite"
            return None
        every = self._config.record.checkpoint_every
        returns, evaluated = {}, {}
        # Only checkpoints on the beat compete for best: when a run was stopped must not decide which policy that is.
        if self._done % every == 0:
            recent = [row for row in self._records if row["iteration"] > self._done - every]
            means = {seed: mean_return(of_seed(recent, seed)) for seed in self._config.seeds}
            returns = {seed: mean for seed, mean in means.items() if mean is not None}
            last = [row for row in recent if row["iteration"] == self._done]
            evaluated = {row["seed"]: row[RANKED_BY] for row in last if row.get(RANKED_BY) is not None}
        return self._saver.save(self._done, state, returns, evaluated)

    def _save_last(self, program: Program, state: TrainState) -> None:
        """See to it that the last state is on disk; where even another attempt fails, the run has."""
        fault = self._saver.settle()
        self._warn(fault)
        # As process 0 sees it, which alone can name a checkpoint: another attempt is one of all.
        unsaved = processes.from_primary(int(self._done > self._restored and self._saver.saved != self._done))
        if self._failure is None and unsaved:
            fault = self._save(program, state) or self._saver.settle()
            if self._saver.saved != self._done and self._failure is None:
                self._failure = f"the state of iteration {self._done} could not be saved: {fault}"
        self._flush()
        if self._unwritten is not None and self._failure is None:
            self._failure = f"the last metrics could not be written: {self._unwritten}"
        if self._failure is not None:
            newest = (self._saver.saved or self._restored) if self._folder.checkpoints.is_dir() else 0
            kept = f"the newest checkpoint is that of iteration {newest}" if newest else "there is no checkpoint"
            self._failure = f"{self._failure}; {kept}"

    def _warn(self, fault: str | None) -> None:
        if fault is not None:
            self._console.warn(f"A checkpoint could not be saved; training goes on, and tries again: {fault}.")


def _nothing() -> None:
    """Another process does it."""


def _refuse_too_large(program: Program) -> None:
    """Refuse a state that this machine could never hold, before anything is compiled for it.

    Raises:
        ConfigError: it is larger than the machine's memory.
    """
    if program.mesh.devices.flat[0].platform != "cpu":
        return
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract_state))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ConfigError(
            f"the run's state would take {size / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f}: "
            "choose fewer num_envs or smaller networks."
        )
