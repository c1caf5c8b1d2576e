"""One segment of training: chunks dispatched, recorded and checkpointed."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import jax

from trpo_brax.config import Config
from trpo_brax.environments import Task
from trpo_brax.errors import ConfigError, UserError
from trpo_brax.evaluation import EvaluationStopped
from trpo_brax.host.console import Console
from trpo_brax.host.devices import Host
from trpo_brax.host.stopping import StopRequest
from trpo_brax.learner.metrics import across_seeds
from trpo_brax.learner.program import Program
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.learner.state import TrainState
from trpo_brax.runs.dumps import write_dump
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.saving import FAULTS, CheckpointSaver, reason
from trpo_brax.runs.summary import last_episodes, seen, too_many
from trpo_brax.training.ledger import Ledger, Row
from trpo_brax.training.periodic import PeriodicEvaluation, absent, evaluation_line
from trpo_brax.training.resuming import newest_sound_state
from trpo_brax.training.schedule import Schedule, annealing_doubts

ProgressFunction = Callable[[int, dict[str, Any]], None]
"""(env_steps, record of metrics.jsonl) -> nothing; Brax's convention."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """What a segment of training came to."""

    records: list[Row]
    """Of the run so far."""
    restored: int
    """The iteration it began at."""
    iterations: int
    """Done."""
    saved: int
    """The iteration of the newest checkpoint; less than `iterations` only where something went wrong."""
    wall_time: float
    """Seconds of training so far."""
    failure: str | None
    """Why the run cannot be handed over as it is: it went wrong, or could not be saved."""
    raised: BaseException | None
    """By the user's progress function, which ended the segment."""


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Iterations under way on the device."""

    first: int
    length: int
    metrics: Any
    dispatched: float
    copy: TrainState | None
    """The state after the chunk, where a checkpoint or an evaluation is due."""


class Session:
    """One segment of training, from start or checkpoint to end or stop."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        task: Task,
        host: Host,
        console: Console,
        stop: StopRequest,
        progress: ProgressFunction | None = None,
    ) -> None:
        self._config, self._folder, self._task, self._host = config, folder, task, host
        self._console, self._stop, self._progress = console, stop, progress
        self._raised: BaseException | None = None
        with console.stage("Building the program"):
            self._program = Program(config, task, host.devices)
            host.group.do(lambda: _refuse_too_large(self._program))
        self._schedule = Schedule(config.total_iterations, config.record, config.runtime.max_chunk_seconds)
        self._ledger = Ledger(folder, config.seeds, config.steps_per_iteration, console)
        self._saver = CheckpointSaver(folder, config, host.group)
        self._evaluation = PeriodicEvaluation(config, task) if config.record.evaluation_interval else None
        self._done = 0
        self._seconds: float | None = None
        """That an iteration takes."""
        self._clock = 0.0
        """When the device was last known to have finished what it was given."""
        self._failure: str | None = None
        self._dumped = False

    def train(self) -> Segment:
        """Run chunks until the last iteration, a request to stop, or a fault; what can be saved is saved."""
        group = self._host.group
        try:
            restored, state = newest_sound_state(self._config, self._folder, self._program, group, self._console)
            self._done = restored
            if state is not None:
                self._ledger.resume(restored, tell=group.primary)
            if restored < self._schedule.total:
                self._run(state, restored)
        finally:
            self._saver.close()
        # Process 0 alone names checkpoints and writes metrics: what it could not do, none of them has done.
        if group.decide(int(self._failure is not None)) and self._failure is None:
            self._failure = "process 0 could not save the run, or go on; it says why"
        saved = restored if self._saver.saved is None else self._saver.saved
        ledger = self._ledger
        return Segment(ledger.records, restored, self._done, saved, ledger.wall_time, self._failure, self._raised)

    def _run(self, state: TrainState | None, restored: int) -> None:
        config, console, devices = self._config, self._console, self._host.devices
        console.note(
            f"Training {self._task.name}{f', {config.num_seeds} seeds at once,' if config.num_seeds > 1 else ''} for "
            f"{self._schedule.total} iterations of {config.steps_per_iteration:,} steps on "
            f"{len(devices)} {devices[0].device_kind} device{'s' if len(devices) > 1 else ''}, into {self._folder.path}"
        )
        for doubt in annealing_doubts(config, len(self._task.action_low)):
            console.warn(doubt)
        with console.stage("Compiling"):
            self._program.compile(to_begin=state is None)
        if state is None:
            with console.stage("Starting the environments"):
                state = jax.block_until_ready(self._program.initial_state())
        self._host.group.do_first(lambda: self._ledger.open(config, self._task, devices, restored))
        began = self._ledger.wall_time
        with console.training(self._schedule.total, restored):
            last = self._dispatch_all(state)
        self._save_last(last, restored)
        steps = (self._done - restored) * config.steps_per_iteration * config.num_seeds
        seconds = self._ledger.wall_time - began
        if steps:
            speed = f"{steps:,} steps in {seconds:,.1f} s ({steps / seconds:,.0f} steps/s)"
            recent = last_episodes(self._ledger.records)["episode_return_mean"]
            gained = "no episode ended" if recent is None else f"return {recent:,.1f} by sampled actions"
            console.note(f"Training: iterations {restored + 1} to {self._done}, {speed}, {gained}")

    def _dispatch_all(self, state: TrainState) -> TrainState:
        """Keep the device busy: while it runs one chunk, the one before is recorded. Return the last state."""
        group, schedule, program = self._host.group, self._schedule, self._program
        self._clock = time.monotonic()
        pending: _Chunk | None = None
        dispatched = self._done
        while dispatched < schedule.total and self._failure is None:
            alone = pending is not None and schedule.one_at_a_time(self._seconds)
            length = 0 if alone else schedule.chunk_length(dispatched, self._seconds)
            # Any number will do for an exception: all that is asked for here is whether there is one.
            length, signal = group.agree(length, self._stop.signal if self._raised is None else 1)
            if signal is not None:
                break
            if pending is not None and not length:
                self._complete(pending)
                pending = None
                continue
            started = time.monotonic()
            if self._config.runtime.check_finite:
                state = self._run_checked(state, dispatched)
                dispatched += 1
                continue
            state, metrics = program.run(state, length)
            if pending is not None:
                self._complete(pending)
            # Only now: a CPU's copy waits for the chunk, and the one before has to be timed first.
            copy = program.copy(state) if self._copy_due(dispatched + length) else None
            pending = _Chunk(dispatched, length, metrics, started, copy)
            dispatched += length
            if self._seconds is None or schedule.evaluation_due(dispatched):
                # Nothing is known yet of how long an iteration takes: measure one before two are in flight. And
                # what an evaluation takes is not training.
                self._complete(pending)
                pending = None
        if pending is not None and self._failure is None:
            self._complete(pending)
        return state

    def _copy_due(self, iteration: int) -> bool:
        return self._schedule.checkpoint_due(iteration) or self._schedule.evaluation_due(iteration)

    def _run_checked(self, before: TrainState, dispatched: int) -> TrainState:
        """Run one iteration, and dump the first that met anything that is not finite."""
        started = time.monotonic()
        state, metrics, trajectory = self._program.run_one(before)
        copy = state if self._copy_due(dispatched + 1) else None
        rows = self._complete(_Chunk(dispatched, 1, metrics, started, copy))
        if not self._dumped:
            self._dump_if_seen(rows, before, state, trajectory)
        return state

    def _dump_if_seen(self, rows: list[Row], before: TrainState, after: TrainState, trajectory: Trajectory) -> None:
        told = [(row["seed"], found) for row in rows if (found := seen(row)) is not None]
        if not told and not self._program.sound(after):
            told = [(rows[0]["seed"], "the state after it was not finite")]
        if not told:
            return
        (seed, found), iteration = told[0], rows[0]["iteration"]
        self._dumped = True
        group = self._host.group
        try:
            path = write_dump(self._folder, before, trajectory, group, iteration=iteration, seed=seed, seen=found)
        except (*FAULTS, UserError) as error:
            self._console.warn(f"Iteration {iteration}: {found}; the dump could not be written: {reason(error)}.")
        else:
            command = shlex.join(["trpo-brax", "replay", str(path), *self._config.environment_options])
            self._console.warn(f"Iteration {iteration}: {found}. To find out where: {command}")

    def _complete(self, chunk: _Chunk) -> list[Row]:
        """Wait for a chunk, write its records, save its state where that is due, and return the last rows."""
        metrics = jax.device_get(chunk.metrics)
        finished = time.monotonic()
        # A chunk runs from the end of the one before it, or from its dispatch where the device was idle.
        seconds = self._seconds = (finished - max(self._clock, chunk.dispatched)) / chunk.length
        self._clock = finished
        num_seeds = self._config.num_seeds
        by_seed = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], num_seeds), metrics)
        for index in range(chunk.length):
            self._done = chunk.first + index + 1
            one = [jax.tree.map(lambda leaf, at=(index, seed): leaf[at], by_seed) for seed in range(num_seeds)]
            rows = [row | absent(self._config.record) for row in self._ledger.rows(self._done, seconds, one)]
            if chunk.copy is not None and index == chunk.length - 1:
                self._evaluate(chunk.copy, rows)
            self._ledger.add(rows)
            self._tell_progress(rows)
            self._failure = too_many(rows, self._config.runtime.max_nonfinite_share)
            if self._failure is not None:
                break
        self._ledger.flush()
        total = self._schedule.total
        self._console.iteration(across_seeds(rows), total, (total - self._done) * seconds)
        if not self._host.group.several and not self._saver.busy():
            self._warn(self._saver.settle())
        if chunk.copy is not None and self._schedule.checkpoint_due(self._done) and self._failure is None:
            self._warn(self._save(chunk.copy))
        return rows

    def _tell_progress(self, rows: list[Row]) -> None:
        """Hand copies of an iteration's records to the user's function, and keep what it raises until all is saved."""
        if self._progress is None or self._raised is not None or not self._host.group.primary:
            return
        try:
            for row in rows:
                self._progress(row["env_steps"], deepcopy(row))
        except BaseException as error:  # sys.exit() is a way to stop, too
            self._raised = error

    def _evaluate(self, state: TrainState, rows: list[Row]) -> None:
        """Put the figures of an evaluation into the rows of the iteration done, where one is due."""
        due = self._schedule.evaluation_due(self._done)
        if self._evaluation is None or not due or not self._program.sound(state):
            return
        try:
            figures = self._evaluation(state, self._done, lambda: bool(self._stop))
        except EvaluationStopped:
            return
        finally:
            self._clock = time.monotonic()
        for row in rows:
            row.update(figures[row["seed"]])
        self._console.note(evaluation_line(self._config.record, self._done, list(figures.values())))

    def _save(self, state: TrainState) -> str | None:
        """Begin to save the state of the iteration done, and return why not; one that is not finite is never saved."""
        if not self._program.sound(state):
            self._failure = f"iteration {self._done} left parameters that are not finite"
            return None
        ranks = self._ledger.ranks(self._done, self._config.record.checkpoint_every)
        return self._saver.save(self._done, state, *ranks)

    def _save_last(self, state: TrainState, restored: int) -> None:
        """See to it that the last state is on disk; where even another attempt fails, the run has."""
        fault = self._saver.settle()
        self._warn(fault)
        # As process 0 sees it, which alone can name a checkpoint: another attempt is one of all.
        unsaved = self._host.group.decide(int(self._done > restored and self._saver.saved != self._done))
        if self._failure is None and unsaved:
            fault = self._save(state) or self._saver.settle()
            if self._saver.saved != self._done and self._failure is None:
                self._failure = f"the state of iteration {self._done} could not be saved: {fault}"
        self._ledger.flush()
        if self._ledger.unwritten is not None and self._failure is None:
            self._failure = f"the last metrics could not be written: {self._ledger.unwritten}"
        if self._raised is not None and self._failure is None:
            self._failure = f"progress_fn raised {type(self._raised).__name__}"
        if self._failure is not None:
            newest = (self._saver.saved or restored) if self._folder.checkpoints.is_dir() else 0
            kept = f"the newest checkpoint is that of iteration {newest}" if newest else "there is no checkpoint"
            self._failure = f"{self._failure}; {kept}"

    def _warn(self, fault: str | None) -> None:
        if fault is not None:
            self._console.warn(f"A checkpoint could not be saved; training goes on, and tries again: {fault}.")


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
