"""The way through: TrainState, rollout, the compiled iteration, the host loop, checkpoints, metrics."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trpo_brax.training.certifier import certify
    from trpo_brax.training.evaluator import evaluate
    from trpo_brax.training.loop import train
    from trpo_brax.training.run import Run

__all__ = ["Run", "certify", "evaluate", "train"]

_MODULES = {"Run": "run", "certify": "certifier", "evaluate": "evaluator", "train": "loop"}


def __getattr__(name: str) -> Any:
    # The console is needed before JAX is: importing it must not import all the rest.
    if name in _MODULES:
        return getattr(import_module(f"trpo_brax.training.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'trpo_brax.training' has no attribute {name!r}")
