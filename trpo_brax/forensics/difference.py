"""Two runs compared: the first iteration and quantity that differ, and what could explain it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trpo_brax.forensics import origins
from trpo_brax.forensics.values import LEFT_OF_ONE, ROUNDING, ValueDifference, differences, flat
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.records import read_metrics

ORDER = (
    *("env_steps", "episodes", "episode_return_mean", "episode_return_std", "episode_return_min"),
    *("episode_length_mean", "environment", "nonfinite_envs", "nonfinite_share", "action_saturation"),
    *("observation_constant_share", "observation_max_abs", "observation_spread_min"),
    *("explained_variance", "advantage_max_abs", "penalty_coefficient"),
    *("damping", "cg_iterations", "cg_relative_residual", "line_search_trials", "step_fraction", "step_outcome"),
    *("surrogate_improvement_predicted", "surrogate_improvement", "kl_mean", "kl_max", "improvement_lower_bound"),
    *("entropy", "parameter_fingerprint"),
    "critic_loss",
)
"""Quantities in the order in which an iteration computes them: rollout, advantages, policy step, critic.

What differs makes all that is computed from it differ too: the first in this order is the nearest to the cause.
"""

_KEY = {"iteration", "seed"}
_CLOCK = {"wall_time_s", "steps_per_second"}
_FINGERPRINT = "parameter_fingerprint"

Rows = Mapping[tuple[int, int], Mapping[str, Any]]
"""(iteration, seed) -> quantity -> value; nested quantities as group/name."""


class HasFolder(Protocol):
    """A `Run`, or a `RunFolder` where JAX is not to be imported."""

    @property
    def path(self) -> Path:
        """The run folder."""


@dataclass(frozen=True)
class RowDifference:
    """An iteration of a seed in which quantities differ."""

    iteration: int
    seeds: tuple[int, int]
    """In A and in B."""
    values: tuple[ValueDifference, ...]
    """Those that differ, as computed."""
    compared: int
    """How many quantities there are."""
    rounding: bool
    """Rounding is enough to explain all of them."""


@dataclass(frozen=True)
class Side:
    """One of the two runs."""

    path: str
    first_iteration: int | None
    last_iteration: int
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        if self.first_iteration is None:
            return f"{self.path}: no iterations"
        plural = "s" if len(self.seeds) > 1 else ""
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.path}: iterations {self.first_iteration} to {self.last_iteration}, seed{plural} {seeds}"


@dataclass(frozen=True)
class Difference:
    """How two runs, A and B, differ, and what of that could explain the rest."""

    a: Side
    b: Side
    compared: int
    """Rows that both have: an iteration of a seed each."""
    first: RowDifference | None
    """The first that differs; None: all agree bit for bit."""
    beyond_rounding: RowDifference | None
    """The first in which rounding is not enough to explain what differs."""
    fingerprint: RowDifference | None
    """The first in which the fingerprints of the policy's parameters differ."""
    alone: tuple[str, ...]
    """Sentences on what only one of them has: iterations, seeds, quantities."""
    configuration: tuple[ValueDifference, ...]
    """Fields that differ."""
    shaping: tuple[str, ...]
    """Those of them that shape learning."""
    provenance: tuple[ValueDifference, ...]
    """Versions, code, devices and flags that differ; of a resumed run, all values it had, one after another."""
    notes: tuple[str, ...]
    """Sentences on what could not be compared."""

    @property
    def differ(self) -> bool:
        """Whether a quantity differs, one has what the other lacks, or there is nothing in common to compare."""
        return self.first is not None or bool(self.alone) or not self.compared

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        return {"differ": self.differ, **dataclasses.asdict(self)}

    def report(self) -> list[str]:
        """Return lines for a terminal."""
        lines = [f"A  {self.a}", f"B  {self.b}", *self._verdict(), *self.alone]
        fields = [f"{one}{', shapes learning' if one.name in self.shaping else ''}" for one in self.configuration]
        if causes := [*fields, *map(str, self.provenance)]:
            lines.append("What could explain it:" if self.differ else "And yet these differ:")
            lines += [f"  {cause}" for cause in causes]
        elif not self.notes:
            lines.append("Configuration, code, versions, devices and flags are the same, as far as they are recorded.")
        lines += self.notes
        # Names and values come from files that may be anyone's: none of their control characters reach the terminal.
        return [line if line.isprintable() else line.encode("unicode_escape").decode() for line in lines]

    def _verdict(self) -> list[str]:
        if not self.compared:
            return ["Nothing can be compared: there is no iteration that both have."]
        if self.first is None:
            return [f"No difference: every quantity agrees bit for bit in the {self.compared} rows that both have."]
        first = self.first.values[0]
        relative = "" if first.relative is None else f" (relative difference {first.relative:.1e})"
        rounding = f"rounding explains ({ROUNDING:g}, relative; absolute in {' and '.join(LEFT_OF_ONE)})"
        beyond, parameters = self.beyond_rounding, self.fingerprint
        return [
            f"First difference, {self._where(self.first)}: {first}{relative}",
            f"{len(self.first.values)} of {self.first.compared} quantities differ there.",
            f"No difference is larger than {rounding}."
            if beyond is None
            else f"From {self._where(beyond)}, differences are larger than {rounding}.",
            "The policy's parameters agree wherever both tell their fingerprint."
            if parameters is None
            else f"The policy's parameters differ from {self._where(parameters)}.",
        ]

    def _where(self, row: RowDifference) -> str:
        if len(self.a.seeds) == len(self.b.seeds) == 1:
            return f"iteration {row.iteration}"
        in_a, in_b = row.seeds
        return f"iteration {row.iteration}, seed {f'{in_a}' if in_a == in_b else f'{in_a} of A and {in_b} of B'}"


def compare(run_a: HasFolder, run_b: HasFolder) -> Difference:
    """Compare two runs: their metrics but for the clock's, their configuration and their provenance.

    Rows are matched by iteration and seed, or, where the runs have no seed in common, by iteration and the order of
    their seeds. A quantity that one of the runs never records is named, and the others are compared.

    Raises:
        RunFolderError: one of them is no run folder, or its configuration or metrics cannot be read.
    """
    folders = RunFolder(run_a.path), RunFolder(run_b.path)
    settings = [origins.settings(folder) for folder in folders]
    rows_a, rows_b = (_rows(folder, one.get("seed")) for folder, one in zip(folders, settings, strict=True))
    side_a, side_b = _side(folders[0], rows_a), _side(folders[1], rows_b)
    pairs = _seed_pairs(side_a.seeds, side_b.seeds)
    found: dict[str, RowDifference] = {}
    for row in _different_rows(rows_a, rows_b, pairs):
        found.setdefault("first", row)
        if not row.rounding:
            found.setdefault("beyond_rounding", row)
        if any(one.name == _FINGERPRINT for one in row.values):
            found.setdefault("fingerprint", row)
        if len(found) == 3:
            break
    common = sum((iteration, pairs.get(seed)) in rows_b for iteration, seed in rows_a)
    configuration, shaping = origins.configuration(*settings)
    provenance, notes = origins.provenance(*folders)
    return Difference(
        a=side_a,
        b=side_b,
        compared=common,
        first=found.get("first"),
        beyond_rounding=found.get("beyond_rounding"),
        fingerprint=found.get("fingerprint"),
        alone=tuple(_alone(rows_a, rows_b, pairs)) if common else (),
        configuration=configuration,
        shaping=shaping,
        provenance=provenance,
        notes=notes,
    )


def _rows(folder: RunFolder, seed: Any) -> Rows:
    """Return a run's metrics; those of a record without a seed are of the configuration's."""
    rows = {}
    for record in read_metrics(folder.metrics_file):
        quantities = {name: value for name, value in flat(record) if name not in _KEY | _CLOCK}
        rows[record["iteration"], record.get("seed", seed if isinstance(seed, int) else 0)] = quantities
    return rows


def _side(folder: RunFolder, rows: Rows) -> Side:
    iterations = [iteration for iteration, _ in rows]
    seeds = tuple(sorted({seed for _, seed in rows}))
    return Side(str(folder.path), min(iterations, default=None), max(iterations, default=0), seeds)


def _seed_pairs(a: Sequence[int], b: Sequence[int]) -> dict[int, int]:
    """Return seed of A -> seed of B whose rows are compared with its."""
    shared = set(a) & set(b)
    return {seed: seed for seed in shared} if shared else dict(zip(a, b, strict=False))


def _quantities(rows: Rows) -> set[str]:
    return {name for row in rows.values() for name in row}


def _place(name: str) -> tuple[int, str]:
    """Return where a quantity stands in `ORDER`; behind all of it, if that does not know it."""
    group = name.partition("/")[0]
    return ORDER.index(group) if group in ORDER else len(ORDER), name


def _different_rows(a: Rows, b: Rows, pairs: Mapping[int, int]) -> Iterator[RowDifference]:
    """Yield the common rows that differ, from the first."""
    names = sorted(_quantities(a) & _quantities(b), key=_place)
    for iteration, seed in sorted(a):
        row_a, row_b = a[iteration, seed], b.get((iteration, pairs.get(seed, -1)))
        if row_b is not None and (values := tuple(differences(row_a, row_b, names))):
            rounding = all(value.rounding for value in values)
            yield RowDifference(iteration, (seed, pairs[seed]), values, len(names), rounding)


def _alone(a: Rows, b: Rows, pairs: Mapping[int, int]) -> Iterator[str]:
    """Yield sentences on iterations, seeds and quantities that only one of two runs has."""
    last = {"A": max(a)[0], "B": max(b)[0]}
    if last["A"] != last["B"]:
        shorter, longer = sorted(last, key=lambda name: last[name])
        yield f"{longer} is longer: it ends at iteration {last[longer]}, {shorter} at {last[shorter]}."
    back = {seed_b: seed_a for seed_a, seed_b in pairs.items()}
    for name, ours, theirs, partner in (("A", a, b, pairs), ("B", b, a, back)):
        if seeds := sorted({seed for _, seed in ours} - partner.keys()):
            yield f"Only {name} has seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
        within = [(iteration, seed) for iteration, seed in ours if seed in partner and iteration <= min(last.values())]
        missing = [iteration for iteration, seed in within if (iteration, partner[seed]) not in theirs]
        if missing:
            yield f"Only {name} has rows of {len(missing)} iterations in between, the first of {min(missing)}."
        if names := sorted(_quantities(ours) - _quantities(theirs), key=_place):
            yield f"Only {name} records {', '.join(names)}."
