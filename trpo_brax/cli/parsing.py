"""Words to typed arguments; what cannot be parsed becomes one sentence."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from trpo_brax.checked import suggest
from trpo_brax.errors import ConfigError

Arguments = TypeVar("Arguments")
_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def parse(kind: type[Arguments], words: Sequence[str], command: str, default: Arguments | None = None) -> Arguments:
    """Parse one command's words; what cannot be parsed becomes one sentence.

    Raises:
        ConfigError: instead of tyro's box on standard error.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=f"trpo-brax {command}", args=words, config=_STYLE, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_sentence(complaint.getvalue(), command)) from None


_PLAIN_WORDS = {
    r"invalid literal for int\(\) with base 10:": "a whole number",
    r"could not convert string to float:": "a number",
}


def _one_sentence(box: str, command: str) -> str:
    """Return tyro's complaint without its frame, with the nearest option where it names one."""
    lines = [line.strip("│ \t") for line in box.splitlines()]
    rules = [index for index, line in enumerate(lines) if line.startswith(("╭", "╰", "───", "---"))]
    first = rules[0] + 1 if rules else 0
    last = rules[1] if len(rules) > 1 else len(lines)
    sentence = " ".join(line for line in lines[first:last] if line).rstrip(".")
    # A field's own complaint arrives behind the name of its group, which the user never typed.
    sentence = re.sub(r"^Error parsing (?!--)[^:]*: ", "", sentence)
    for jargon, plain in _PLAIN_WORDS.items():
        sentence = re.sub(rf"^Error parsing (--[\w-]+): {jargon}", rf"\1 must be {plain}, not", sentence)
    choice = re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)$", sentence)
    if choice:
        allowed = [word.strip("' ") for word in choice[3].split(",")]
        return f"{choice[2]} must be one of {', '.join(allowed)}, not {choice[1]!r}{suggest(choice[1], allowed)}"
    sentence = re.sub(r"^Missing value for argument '(.*)'\..*", r"\1 needs a value", sentence)
    if missing := re.match(r"Missing from [^:]*: (.*)", sentence):
        sentence = f"{command} needs " + " and ".join(re.findall(r"(?:^|\(required\) )(\S+)", missing[1]))
    if unknown := re.match(r"Unrecognized options: (.*)", sentence):
        words = unknown[1].split(", ")
        # What stands behind an option that is unknown is taken for its value.
        options = [word for word in words if re.match("--?[A-Za-z]", word)]
        sentence = f"unknown {'option' if options else 'argument'}{'s'[: len(options or words) - 1]} "
        sentence += ", ".join(options or words)
    if near := re.search(r"Perhaps you meant:\s*(--[\w-]+)", " ".join(lines)):
        return f"{sentence}; did you mean {near[1]}?"
    return f"{sentence}; see trpo-brax {command} --help."
