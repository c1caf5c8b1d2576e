"""Keeping other people's chatter off the user's terminal.

Brax, MuJoCo and their optional companions print walls of warnings when they are imported and when a task is loaded,
some of them from C. None of it says anything that a user of this trainer could act on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Python warnings, absl logging, and everything written to file descriptors 1 and 2, inside the block.

    What was written is shown after all if the block raises: then it may matter.
    """
    absl = logging.getLogger("absl")
    level = absl.level
    with warnings.catch_warnings(), tempfile.TemporaryFile() as sink:
        warnings.simplefilter("ignore")
        absl.setLevel(logging.ERROR)
        text = io.TextIOWrapper(sink, errors="replace", write_through=True)
        with contextlib.ExitStack() as restore:
            for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
                stream.flush()
                saved = os.dup(descriptor)
                restore.callback(os.close, saved)
                os.dup2(sink.fileno(), descriptor)
                restore.callback(os.dup2, saved, descriptor)
                restore.callback(stream.flush)
            # A stream that is not the descriptor's own, as in a notebook, is silenced by itself.
            restore.enter_context(contextlib.redirect_stdout(text))
            restore.enter_context(contextlib.redirect_stderr(text))
            try:
                yield
            except BaseException:
                restore.close()
                sink.seek(0)
                sys.stderr.write(sink.read().decode(errors="replace"))
                raise
            finally:
                absl.setLevel(level)
