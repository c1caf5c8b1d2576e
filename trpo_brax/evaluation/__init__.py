"""What is known about a policy: episodes, statistics, pictures."""

from trpo_brax.evaluation.episodes import EpisodeRunner, Episodes, policy_actor, run_episodes
from trpo_brax.evaluation.plots import learning_curve
from trpo_brax.evaluation.statistics import EvaluationReport, summarize

__all__ = [
    "EpisodeRunner",
    "Episodes",
    "EvaluationReport",
    "learning_curve",
    "policy_actor",
    "run_episodes",
    "summarize",
]
