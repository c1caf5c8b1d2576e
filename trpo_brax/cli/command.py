"""What most commands have in common: words to arguments, and an answer to standard output."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from trpo_brax.cli.parsing import parse

Arguments = TypeVar("Arguments")


class Answer(NamedTuple):
    """What a command found."""

    lines: Sequence[str]
    """For people."""
    result: Any = None
    """For --json."""
    status: int = 0
    """Exit status."""


def command(kind: type[Arguments]) -> Callable[[Callable[[Arguments], Answer]], Callable[[list[str]], int]]:
    """Make a command, words -> exit status, of a function of its name that answers arguments of a `kind`."""

    def make(answer: Callable[[Arguments], Answer]) -> Callable[[list[str]], int]:
        @functools.wraps(answer)
        def run(words: list[str]) -> int:
            arguments = parse(kind, words, answer.__name__)
            # Whoever only looks at a run leaves a GPU's memory to others.
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
            return tell(lambda: answer(arguments), as_json=getattr(arguments, "json", False))

        return run

    return make


def tell(answer: Callable[[], Answer], *, as_json: bool) -> int:
    """Print an answer, and return its exit status."""
    # An environment's author may print: standard output is for the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        lines, result, status = answer()
    print(json.dumps(result, allow_nan=False) if as_json else "\n".join(lines))
    return status
