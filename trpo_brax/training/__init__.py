"""The way through: TrainState, rollout, the compiled iteration, the host loop, checkpoints, metrics."""

from trpo_brax.training.loop import train
from trpo_brax.training.run import Run, evaluate

__all__ = ["Run", "evaluate", "train"]
