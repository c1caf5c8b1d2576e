"""Commands that take a whole configuration: TASK's preset gives the defaults of every other option."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

from trpo_brax.cli.parsing import parse
from trpo_brax.config import Config, override
from trpo_brax.presets import preset

Arguments = TypeVar("Arguments", bound=Config)


def parse_first(kind: type[Arguments], words: list[str], command: str) -> Arguments:
    """Parse to find out the task (empty, if none was given) or the run to resume."""
    plain = [word for word in words if word not in ("-h", "--help")]
    return parse(kind, plain, command, default=with_defaults(kind, override(Config(), task="")))


def preset_of(first: Config) -> Config:
    """Return the settings that the first parse asks for: the task's, or the general ones for one's own environment."""
    if first.environment is not None and not first.task:
        return Config()
    return preset(first.task or "inverted_pendulum")


def with_defaults(kind: type[Arguments], config: Config) -> Arguments:
    """Return the arguments of a command whose configuration is `config`, or that configuration alone, as a `Config`."""
    return kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)})
