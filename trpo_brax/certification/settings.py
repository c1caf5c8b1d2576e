"""What is to be certified, and who is told while it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Literal

from trpo_brax.checked import FINITE, POSITIVE, Bounds, Checked
from trpo_brax.config import MOST_DELAY
from trpo_brax.errors import ConfigError

_INSIDE = Bounds(0.0, 1.0, low_open=True, high_open=True)


@dataclasses.dataclass(frozen=True)
class Certification(Checked):
    """What to state, and from how many episodes."""

    episodes: Annotated[int, Bounds(20, 10**8)] = 10_000
    """Episodes to state it from; drawn from a stream that neither training nor any choice uses."""
    confidence: Annotated[float, Bounds(0.0, 1.0 - 1e-9, low_open=True)] = 0.95
    """With which all four statements hold together."""
    alpha: Annotated[float, _INSIDE] = 0.05
    """The CVaR is the mean of the worst episodes, this share of them."""
    failure: str = "terminated"
    """What fails: "terminated" (before its time limit), "return < X", "length < X" or several with "or"; and NaN."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of the episodes."""
    return_floor: Annotated[float, FINITE] | None = None
    """No return can be lower: the bounds on mean and CVaR rest on it. By default the task's, else it is assumed."""
    return_cap: Annotated[float, FINITE] | None = None
    """Returns above it are counted as this. By default the task's, else the highest seen while choosing."""
    choose: Literal["no", "return_mean", "return_cvar_05"] = "no"
    """First choose among all checkpoints kept, by this figure, on other episodes; no: take --checkpoint."""
    choice_episodes: Annotated[int, Bounds(20, 10**8)] = 1000
    """Episodes of each checkpoint to choose by, and to assume a floor from."""
    perturb: bool = False
    """Repeat the statements in worlds that differ from the training's."""
    perturb_episodes: Annotated[int, Bounds(20, 10**8)] = 1000
    """Episodes in each of those worlds."""
    factors: tuple[Annotated[float, Bounds(0.01, 100.0)], ...] = (0.5, 0.7, 0.85, 1.15, 1.3, 1.5)
    """By which body mass, friction, gravity and actuator gain are multiplied, one at a time."""
    noise: tuple[Annotated[float, Bounds(0.0)], ...] = (0.02, 0.05, 0.1, 0.2)
    """Standard deviations of observation noise, in units of each component's own in training."""
    delays: tuple[Annotated[int, Bounds(1, MOST_DELAY)], ...] = (1, 2, 3)
    """Control steps by which observations come late."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.return_floor is not None and self.return_cap is not None and self.return_floor >= self.return_cap:
            raise ConfigError(
                f"return_floor must be less than return_cap, not {self.return_floor:g} and {self.return_cap:g}."
            )


@dataclasses.dataclass(frozen=True)
class Pairing(Checked):
    """How two policies are compared."""

    episodes: Annotated[int, Bounds(1, 10**8)] = 10_000
    """Most episodes of each; fewer where fewer say which is better."""
    confidence: Annotated[float, Bounds(0.0, 1.0 - 1e-9, low_open=True)] = 0.95
    """With which both bounds on the difference hold, however often one looks."""
    failure: str = "terminated"
    """What fails: "terminated" (before its time limit), "return < X", "length < X" or several with "or"; and NaN."""
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0
    """Seed of the episodes; no training draws from the same stream."""
    largest_difference: Annotated[float, POSITIVE] | None = None
    """No two returns of an episode differ by more: the bounds rest on it. By default the task's, else it is assumed."""


@dataclasses.dataclass(frozen=True)
class Listener:
    """Who is told what goes on."""

    counting: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] = lambda text, total: nullcontext(
        lambda done: None
    )
    """A block in which episodes are counted."""
    note: Callable[[str], None] = lambda text: None
    written: Callable[[Mapping[str, Any]], None] = lambda certificate: None
    """Given what certificate.json holds, each time it has been written."""
    stopped: Callable[[], bool] = lambda: False
