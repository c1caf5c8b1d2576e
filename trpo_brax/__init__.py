"""Trust region policy optimisation for Brax: environments and learner in one compiled JAX program."""

from __future__ import annotations

import os as _os
from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from trpo_brax.config import Config, override
from trpo_brax.errors import UserError
from trpo_brax.presets import preset

if TYPE_CHECKING:
    from trpo_brax.certification.certifier import certify
    from trpo_brax.certification.paired import compare
    from trpo_brax.certification.settings import Certification, Pairing
    from trpo_brax.runs.evaluator import evaluate
    from trpo_brax.runs.run import Run
    from trpo_brax.training.loop import train

# XLA prints pages of machine features when it loads a cached program; it reads this before it is first imported.
_os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__all__ = [
    "Certification",
    "Config",
    "Pairing",
    "Run",
    "UserError",
    "certify",
    "compare",
    "evaluate",
    "override",
    "preset",
    "train",
]


_MODULES = {
    "Certification": "certification.settings",
    "Pairing": "certification.settings",
    "Run": "runs.run",
    "certify": "certification.certifier",
    "compare": "certification.paired",
    "evaluate": "runs.evaluator",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    # JAX and Brax take seconds to import: they wait until something needs them.
    if name in _MODULES:
        return getattr(_import_module(f"trpo_brax.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'trpo_brax' has no attribute {name!r}")
