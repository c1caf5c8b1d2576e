"""What is done once a segment of training has ended: pictures, findings, summary, evaluation of the last policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from trpo_brax.config import Config
from trpo_brax.diagnosis.findings import by_seed, diagnose
from trpo_brax.environments import Task
from trpo_brax.errors import UserError
from trpo_brax.evaluation import (
    Episodes,
    EvaluationReport,
    EvaluationStopped,
    Watcher,
    summarize,
)
from trpo_brax.host.console import Console
from trpo_brax.host.processes import Group
from trpo_brax.host.stopping import StopRequest
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.files import write_json
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.run import Run
from trpo_brax.runs.saving import reason
from trpo_brax.runs.summary import last_episodes
from trpo_brax.training.session import Segment
from trpo_brax.views.curves import RecordedRun
from trpo_brax.views.plots import learning_figure, save_figure
from trpo_brax.views.training_plots import training_figure


def conclude(
    config: Config, folder: RunFolder, task: Task, group: Group, console: Console, stop: StopRequest, segment: Segment
) -> str | None:
    """Write the curve and the summary; evaluate the last policy if training has finished.

    Returns:
        Why the run is not whole, if it is not.
    """
    return _Conclusion(config, folder, task, group, console, stop, segment).write()


@dataclasses.dataclass
class _Conclusion:
    _config: Config
    _folder: RunFolder
    _task: Task
    _group: Group
    _console: Console
    _stop: StopRequest
    _segment: Segment

    def __post_init__(self) -> None:
        self._failure = self._segment.failure
        self._records = by_seed(self._segment.records, self._config)
        self._findings = {seed: diagnose(rows, self._config) for seed, rows in self._records.items()}

    def write(self) -> str | None:
        _, signal = self._group.agree(0, self._stop.signal)
        summary = self._summary(signal)
        if self._group.primary:
            self._try("the learning curve", self._draw_curve)
            self._try("the picture of training", self._draw_panels)
            self._try("summary.json", lambda: write_json(self._folder.summary_file, summary))
            self._warn()
        if self._segment.failure is None and signal is None and self._config.record.final_evaluation_episodes:
            signal = self._evaluate(summary)
        if self._failure is None:
            self._console.note(f"{'Finished' if signal is None else self._stopped()}: {self._folder.path}")
        return self._failure

    def _stopped(self) -> str:
        """Return what a stop left behind, in words."""
        segment = self._segment
        if segment.iterations > segment.restored:
            return "Stopped and saved"
        if segment.saved:
            return f"Stopped before another iteration, with the checkpoint of iteration {segment.saved} as it was"
        return "Stopped before the first iteration, with nothing to save"

    def _summary(self, signal: int | None) -> dict[str, Any]:
        segment, config = self._segment, self._config
        ending = "finished" if signal is None else "stopped"
        return {
            "status": ending if segment.failure is None else "failed",
            "failure": segment.failure,
            "signal": signal,
            "iterations": segment.iterations,
            "saved_iteration": segment.saved,
            "env_steps": segment.iterations * config.steps_per_iteration,
            "wall_time_s": segment.wall_time,
            "training": last_episodes(segment.records),
            "evaluation": None,
            "findings": [{"seed": seed, **one} for seed in self._findings for one in self._found(seed)],
            "seeds": [
                {
                    "seed": seed,
                    "training": last_episodes(rows),
                    "evaluation": None,
                    "best": None,
                    "findings": self._found(seed),
                }
                for seed, rows in self._records.items()
            ],
        }

    def _evaluate(self, summary: dict[str, Any]) -> int | None:
        """Evaluate the last policies into the summary, and return the signal that stopped it, if one did."""
        config = self._config
        episodes = config.record.final_evaluation_episodes
        what = f"{episodes} episodes" if config.num_seeds == 1 else f"{episodes} episodes of each seed"
        try:
            with self._console.stage(f"Evaluating {what}"):
                run = Run.load(self._folder.path)
                evaluator = Evaluator(run, episodes=episodes, environment=self._task)
                reports, best = self._reports(run, evaluator, episodes)
        except UserError as error:
            self._failure = f"the last policy could not be evaluated: {str(error).rstrip('.')}"
            summary |= {"status": "failed", "failure": self._failure}
        except EvaluationStopped:
            summary |= {"status": "stopped", "signal": self._stop.signal}
        else:
            for entry in summary["seeds"]:
                seed = entry["seed"]
                entry["evaluation"] = reports[seed].to_dict()
                entry["best"] = None if seed not in best else {"iteration": best[seed][0], **best[seed][1].to_dict()}
            # Over all seeds' episodes together: what to expect of a policy trained like this.
            pooled = summarize(Episodes.joined([report.details for report in reports.values()]))
            summary["evaluation"] = pooled.to_dict()
            self._tell(reports, best)
        # Every process evaluates, on devices of its own, so that they end together; one writes.
        if self._group.primary:
            self._try("summary.json", lambda: write_json(self._folder.summary_file, summary))
        signal: int | None = summary["signal"]
        return signal

    def _title(self) -> str:
        seeds = self._config.seeds
        told = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        return f"{self._task.name}, {told}"

    def _draw_curve(self) -> None:
        save_figure(learning_figure(self._segment.records, self._title()), self._folder.learning_curve_file)

    def _draw_panels(self) -> None:
        run = RecordedRun(self._title(), self._config, self._segment.records)
        save_figure(training_figure(run), self._folder.training_panels_file)

    def _found(self, seed: int) -> list[dict[str, Any]]:
        return [finding.to_dict() for finding in self._findings[seed]]

    def _warn(self) -> None:
        """Tell the problems, one a line."""
        for seed, findings in self._findings.items():
            for finding in findings:
                if finding.level == "problem":
                    of_seed = f"seed {seed}, " if len(self._findings) > 1 else ""
                    self._console.warn(f"{of_seed}{finding.line()}")

    def _reports(
        self, run: Run, evaluator: Evaluator, episodes: int
    ) -> tuple[dict[int, EvaluationReport], dict[int, tuple[int, EvaluationReport]]]:
        """Return what the same episodes say of each seed's last policy, and of its best where that is another."""
        watcher = Watcher(stopped=lambda: bool(self._stop))
        reports, best = {}, {}
        for seed, latest in evaluator.iterations.items():
            reports[seed] = summarize(evaluator.run(episodes, policy_seed=seed, watcher=watcher))
            try:
                if (chosen := run.checkpoints.resolve("best", seed)) == latest:
                    continue
                policy = run.policy(chosen, policy_seed=seed)
            except UserError as error:
                self._console.warn(f"The best policy was not evaluated: {error}")
            else:
                best[seed] = chosen, summarize(evaluator.run(episodes, policy=policy, watcher=watcher))
        return reports, best

    def _tell(self, reports: dict[int, EvaluationReport], best: dict[int, tuple[int, EvaluationReport]]) -> None:
        for seed, report in reports.items():
            several = len(reports) > 1
            self._console.note(f"{f'Seed {seed}, latest' if several else 'Latest'} policy: {_in_words(report)}")
            if seed in best and not several:
                iteration, other = best[seed]
                self._console.note(f"Best policy, of iteration {iteration}: {_in_words(other)}")

    def _try(self, what: str, write: Callable[[], None]) -> None:
        """Write a file; where the disk does not take it, the run has failed, but goes on to its end."""
        try:
            if not self._folder.config_file.is_file():
                raise FileNotFoundError(2, "the run folder is gone")
            write()
        except OSError as error:
            self._console.warn(f"{what} could not be written: {reason(error)}.")
            if self._failure is None:
                self._failure = f"{what} could not be written: {reason(error)}"


def _in_words(report: EvaluationReport) -> str:
    """Return what episodes by the mean action say of a policy, and how many of them failed."""
    failed = round(report.failure_rate * report.episodes)
    ends = f"{failed} of {report.episodes}" if failed else f"none of {report.episodes}"
    return (
        f"return {report.return_mean:,.1f} +- {report.return_std:,.1f} by its mean action, lowest "
        f"{report.return_min:,.1f}; {ends} episodes ended before the time limit."
    )
