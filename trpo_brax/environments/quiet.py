"""Keeping other people's chatter off the user's terminal.

Brax, MuJoCo and their optional companions print and warn when they are imported and when a task is loaded. None of it
says anything that a user of this trainer could act on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Python warnings, absl logging, and what Python code prints, inside the block.

    What was printed is shown after all if the block raises: then it may matter.
    """
    absl, said, shown = logging.getLogger("absl"), io.StringIO(), sys.stderr
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    except BaseException:
        shown.write(said.getvalue())
        raise
    finally:
        absl.setLevel(level)
