"""One run of this trainer with its preset, through its public interface."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path

import tyro

import trpo_brax as tb
from experiments.peers.record import Point, Training, evaluate_and_write
from experiments.peers.settings import Job
from trpo_brax.environments import brax_task
from trpo_brax.evaluation import policy_actor


class _Watch(threading.Thread):
    """Waits for the first record on disk, and asks for a stop when the training seconds are spent."""

    def __init__(self, job: Job, metrics: Path) -> None:
        super().__init__(daemon=True)
        self._job = job
        self._metrics = metrics
        self._ended = threading.Event()
        self.start_seconds = 0.0

    def run(self) -> None:
        while not (self._metrics.is_file() and self._metrics.stat().st_size):
            if self._ended.wait(0.02):
                return
        self.start_seconds = time.time() - self._job.started
        if not self._job.start_only and not self._ended.wait(self._job.seconds):
            os.kill(os.getpid(), signal.SIGTERM)  # the trainer's own way to stop: the run is saved

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self.join()


def main(job: Job) -> None:
    """Train, evaluate the checkpoints, write."""
    config = tb.override(tb.preset(job.task), seed=job.seed, cpu_devices=job.devices, eval_every=0)
    config = tb.override(config, final_evaluation_episodes=0)
    if job.start_only:
        config = tb.override(config, total_steps=1)
    every = -(-config.total_iterations // job.points)
    config = tb.override(config, checkpoint_every=every, checkpoints_to_keep=config.total_iterations)
    folder = job.folder / "run"
    shutil.rmtree(folder, ignore_errors=True)
    watch = _Watch(job, folder / "metrics.jsonl")
    watch.start()
    run = tb.train(config, run_dir=folder)
    watch.end()
    rows = run.metrics()
    saved = [row for row in rows if row["iteration"] % every == 0 or row is rows[-1]]
    policies = [run.policy(row["iteration"]) for row in saved]
    points = [
        Point(row["env_steps"], row["wall_time_s"], (policy.parameters, policy.statistics))
        for row, policy in zip(saved, policies, strict=True)
    ]
    training = Training(
        points=points,
        steps_per_second=statistics.median(row["steps_per_second"] for row in rows[1:]) if len(rows) > 1 else 0.0,
        unit_steps=config.steps_per_iteration,
        start_seconds=watch.start_seconds,
        ended_by="start" if job.start_only else "steps" if run.summary["status"] == "finished" else "budget",
    )
    act = policy_actor(policies[-1].specification, stochastic=False)
    evaluate_and_write(job, training, brax_task(job.task, config.rollout.backend), act)
    provenance = json.loads((folder / "provenance.json").read_text())
    origin = {"commit": provenance["git"]["commit"], "processor": provenance["processor"]}
    (job.folder / "origin.json").write_text(json.dumps(origin) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Job))
