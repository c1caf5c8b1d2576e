"""What is known about a policy: episodes, statistics, pictures."""

from trpo_brax.evaluation.curves import RecordedRun, group_runs
from trpo_brax.evaluation.episodes import EpisodeRunner, Episodes, EvaluationStopped, policy_actor, run_episodes
from trpo_brax.evaluation.plots import learning_curve, plot_groups
from trpo_brax.evaluation.statistics import EvaluationReport, summarize

__all__ = [
    "EpisodeRunner",
    "Episodes",
    "EvaluationReport",
    "EvaluationStopped",
    "RecordedRun",
    "group_runs",
    "learning_curve",
    "plot_groups",
    "policy_actor",
    "run_episodes",
    "summarize",
]
