"""Evaluating the policy every so often while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from trpo_brax.config import Config, RecordConfig
from trpo_brax.environments import Task
from trpo_brax.evaluation import EvaluationReport, Watcher, summarize
from trpo_brax.learner.program import policy_specification
from trpo_brax.learner.state import TrainState
from trpo_brax.randomness import Stream, stream_key
from trpo_brax.runs.evaluator import episode_runner

_TOLD = ("return_mean", "return_std", "return_min", "return_cvar_05", "length_mean", "failure_rate")
RANKED_BY = "evaluation_return_mean"


class PeriodicEvaluation:
    """Episodes of the policy's mean action, of every seed, after the iterations where that is due.

    Every evaluation has episodes of its own, of a stream that nothing else draws from, so it changes no result of the
    training; all seeds meet the same.
    """

    def __init__(self, config: Config, task: Task) -> None:
        self._config = config
        specification = policy_specification(config, task)
        self._runner = episode_runner(config.rollout, task, specification, config.record.eval_episodes)

    def __call__(
        self, state: TrainState, iteration: int, stopped: Callable[[], bool]
    ) -> dict[int, dict[str, float | int | None]]:
        """Return each seed's figures by their names in metrics.jsonl.

        Args:
            state: after the iteration.
            iteration: which.
            stopped: asked every second or so whether to give up.

        Raises:
            EvaluationStopped: `stopped` said so.
        """
        config = self._config
        key = jax.random.fold_in(stream_key(jax.random.PRNGKey(config.seed), Stream.TRAINING_EVALUATION), iteration)
        acting = jax.device_get((state.policy, state.statistics))
        figures = {}
        for place, seed in enumerate(config.seeds):
            own = acting if config.num_seeds == 1 else jax.tree.map(lambda leaf, at=place: leaf[at], acting)
            episodes = self._runner.run(
                own, key, episodes=config.record.eval_episodes, watcher=Watcher(stopped=stopped)
            )
            figures[seed] = _figures(summarize(episodes))
        return figures


def absent(record: RecordConfig) -> dict[str, None]:
    """Return the names of what an evaluation adds to a record, without values; nothing where there are none."""
    return {f"evaluation_{name}": None for name in _TOLD} if record.evaluation_interval else {}


def evaluation_line(record: RecordConfig, iteration: int, figures: Sequence[dict[str, Any]]) -> str:
    """Return one line about the evaluation of all seeds after an iteration."""
    means, lowest = ([one[f"evaluation_{name}"] for one in figures] for name in ("return_mean", "return_min"))
    seeds = "" if len(figures) == 1 else f" of each of {len(figures)} seeds"
    return (
        f"Evaluation after iteration {iteration}: return {sum(means) / len(means):,.1f}, lowest {min(lowest):,.1f}, "
        f"over {record.eval_episodes} episodes{seeds} by the mean action"
    )


def _figures(report: EvaluationReport) -> dict[str, float | int | None]:
    told: dict[str, Any] = report.to_dict()
    return {f"evaluation_{name}": told[name] for name in _TOLD}
