"""What is known about a policy: episodes, failures, statistics."""

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
from trpo_brax.evaluation.statistics import EvaluationReport, summarize

__all__ = [
    "DEFAULT_FAILURE",
    "EpisodeRunner",
    "Episodes",
    "EvaluationReport",
    "EvaluationStopped",
    "Failure",
    "Recording",
    "Watcher",
    "batch_size",
    "policy_actor",
    "summarize",
]
