"""What to measure; nothing here changes what is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trpo_brax.checked import POSITIVE, Checked, Count
from trpo_brax.errors import ConfigError

_FEWEST_ENVS = 4


@dataclass(frozen=True)
class BenchOptions(Checked):
    """How `trpo-brax bench` measures and what it writes."""

    repeats: Annotated[int, Count(1)] = 5
    """Timed repeats of everything, after a warm-up; medians are reported."""
    sweep_envs: str = ""
    """Numbers of environments to measure besides, as 64,256,1024,4096: a table and a picture of steps/s."""
    picture: str = "bench.png"
    """PNG file for the sweep's picture."""
    memory_gib: Annotated[float, POSITIVE] | None = None
    """Memory in GiB to find the largest number of environments for; by default all of the devices'."""
    skip_start: bool = False
    """Leave out the time from start to first iteration: it takes two or more starts of the trainer."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sweep_sizes

    @property
    def sweep_sizes(self) -> tuple[int, ...]:
        """Numbers of environments to sweep over, as given; empty for no sweep.

        Raises:
            ConfigError: it is not a list of whole numbers that a configuration allows.
        """
        words = [word.strip() for word in self.sweep_envs.split(",")] if self.sweep_envs.strip() else []
        if not all(word.isascii() and word.isdigit() and int(word) >= _FEWEST_ENVS for word in words):
            raise ConfigError(
                f"sweep_envs must be whole numbers of at least {_FEWEST_ENVS} with commas between them, as in "
                f"64,256,1024, not {self.sweep_envs!r}."
            )
        return tuple(int(word) for word in words)
