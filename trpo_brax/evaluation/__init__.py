"""What is known about a policy: episodes, statistics, pictures."""

from trpo_brax.evaluation.episodes import Episodes, run_episodes
from trpo_brax.evaluation.plots import learning_curve
from trpo_brax.evaluation.statistics import EvaluationReport, summarize

__all__ = ["Episodes", "EvaluationReport", "learning_curve", "run_episodes", "summarize"]
