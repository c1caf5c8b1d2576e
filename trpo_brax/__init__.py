"""Trust region policy optimisation for Brax: environments and learner in one compiled JAX program."""

import os as _os

# XLA prints pages of machine features when it loads a cached program; it reads this before it is first imported.
_os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from trpo_brax.config import Config, override  # noqa: E402
from trpo_brax.errors import UserError  # noqa: E402
from trpo_brax.presets import preset  # noqa: E402
from trpo_brax.training import Run, evaluate, train  # noqa: E402

__all__ = ["Config", "Run", "UserError", "evaluate", "override", "preset", "train"]
