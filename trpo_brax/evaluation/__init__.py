"""What is known about a policy: episodes, statistics, pictures."""

from trpo_brax.evaluation.curves import RecordedRun, group_runs
from trpo_brax.evaluation.episodes import (
    EpisodeRunner,
    Episodes,
    EvaluationStopped,
    Recording,
    Watcher,
    batch_size,
    policy_actor,
)
from trpo_brax.evaluation.failure import DEFAULT_FAILURE, Failure
from trpo_brax.evaluation.plots import learning_curve, plot_groups
from trpo_brax.evaluation.statistics import EvaluationReport, summarize

__all__ = [
    "DEFAULT_FAILURE",
    "EpisodeRunner",
    "Episodes",
    "EvaluationReport",
    "EvaluationStopped",
    "Failure",
    "RecordedRun",
    "Recording",
    "Watcher",
    "batch_size",
    "group_runs",
    "learning_curve",
    "plot_groups",
    "policy_actor",
    "summarize",
]
