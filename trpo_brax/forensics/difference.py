"""Two runs compared: the first record in which they differ, and what could explain it."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from trpo_brax.config import MAY_CHANGE, Config, walk
from trpo_brax.errors import RunFolderError
from trpo_brax.runs.files import one_line, read_json
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.records import read_metrics

ORDER = (
    *("env_steps", "episodes", "episode_return_mean", "episode_return_std", "episode_return_min"),
    *("episode_length_mean", "reward_max_abs", "environment", "nonfinite_envs", "nonfinite_share"),
    "action_saturation",
    *("observation_constant_share", "observation_max_abs", "observation_spread_min"),
    *("discount", "explained_variance", "explained_variance_of_returns", "advantage_max_abs", "penalty_coefficient"),
    *("max_kl", "damping", "cg_iterations", "cg_relative_residual"),
    *("line_search_trials", "step_fraction", "step_outcome"),
    *("surrogate_improvement_predicted", "surrogate_improvement", "kl_mean", "kl_max", "improvement_lower_bound"),
    *("entropy", "critic_loss", "parameter_fingerprint", "normalisation_kl"),
)
"""Quantities in the order in which an iteration computes them: rollout, advantages, policy step, critic, statistics.

What differs makes all that is computed from it differ too: the first in this order is the nearest to the cause.
"""

_NOT_COMPARED = {"iteration", "seed", "wall_time_s", "steps_per_second"}
_OF_EACH_START = {"created", "command", "after_iteration", "earlier"}
_MOST_CHARACTERS = 100
"""Of a text; of a longer one, such as uncommitted changes, the first line and a checksum are told."""
_LONGEST_LINE = 4000

Rows = Mapping[tuple[int, int], Mapping[str, Any]]
"""(iteration, seed) -> quantity -> value; nested quantities as group/name."""


@dataclass(frozen=True)
class ValueDifference:
    """A name under which A and B hold different values; None: no value, or not recorded."""

    name: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.name}: {json.dumps(self.a)} in A, {json.dumps(self.b)} in B"


@dataclass(frozen=True)
class RowDifference:
    """An iteration of a seed in which quantities differ."""

    iteration: int
    seed: int
    values: tuple[ValueDifference, ...]
    """Those that differ, as computed."""


@dataclass(frozen=True)
class Difference:
    """How two runs, A and B, differ, and what of that could explain the rest."""

    a: str
    """Its folder."""
    b: str
    compared: int
    """Rows that both have: an iteration of a seed each."""
    first: RowDifference | None
    """The first that differs; None: all agree bit for bit."""
    alone: tuple[str, ...]
    """Sentences on what only one of them has: rows, quantities."""
    configuration: tuple[ValueDifference, ...]
    """Fields that differ."""
    shaping: tuple[str, ...]
    """Those of them that shape learning."""
    provenance: tuple[ValueDifference, ...]
    """Versions, code, devices and flags that differ; of a resumed run, a list of the values that it had."""
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
        lines = [f"A  {self.a}", f"B  {self.b}"]
        if self.first is not None:
            place = f"iteration {self.first.iteration}, seed {self.first.seed}"
            others = [value.name for value in self.first.values[1:]]
            lines.append(f"First difference, {place}: {self.first.values[0]}")
            lines += [f"{len(others)} more quantities differ there: {', '.join(others)}."] if others else []
        elif self.compared:
            lines.append(f"No difference: every quantity agrees bit for bit in the {self.compared} rows of both.")
        else:
            lines.append("Nothing can be compared: there is no iteration of a seed that both have.")
        lines += self.alone
        fields = [f"{one}{', shapes learning' if one.name in self.shaping else ''}" for one in self.configuration]
        if causes := [*fields, *map(str, self.provenance)]:
            lines.append("What could explain it:" if self.differ else "And yet these differ:")
            lines += [f"  {cause}" for cause in causes]
        elif not self.notes:
            lines.append("Configuration, code, versions, devices and flags are the same, as far as they are recorded.")
        # Names and values come from files that may be anyone's: none of their control characters reach the terminal.
        return [one_line(line, _LONGEST_LINE) for line in (*lines, *self.notes)]


def compare(run_a: Path, run_b: Path) -> Difference:
    """Compare two run folders: their metrics but for the clock's, their configuration and their provenance.

    Rows are matched by iteration and seed. A quantity that one of the runs never records is named, and the others are
    compared.

    Raises:
        RunFolderError: one of them is no run folder, or its configuration or metrics cannot be read.
    """
    folders = RunFolder(run_a), RunFolder(run_b)
    settings_a, settings_b = map(_settings, folders)
    configuration = tuple(_differences(settings_a, settings_b))
    may_change = {name for name, _, hint in walk(Config()) if MAY_CHANGE in get_args(hint)}
    a, b = map(_rows, folders)
    names_a, names_b = ({name for row in rows.values() for name in row} for rows in (a, b))
    common = sorted(a.keys() & b.keys())
    shared = sorted(names_a & names_b, key=_place)

    def in_row(key: tuple[int, int]) -> tuple[ValueDifference, ...]:
        return tuple(_differences(*({name: rows[key].get(name) for name in shared} for rows in (a, b))))

    notes: list[str] = []
    origin_a, origin_b = (_origin(folder, notes) for folder in folders)
    return Difference(
        a=str(run_a),
        b=str(run_b),
        compared=len(common),
        first=next((RowDifference(*key, values) for key in common if (values := in_row(key))), None),
        alone=(*_alone(a, b, names_a, names_b),) if common else (),
        configuration=configuration,
        shaping=tuple(one.name for one in configuration if one.name not in may_change),
        provenance=() if notes else tuple(_differences(origin_a, origin_b)),
        notes=tuple(notes),
    )


def _rows(folder: RunFolder) -> Rows:
    return {
        (record["iteration"], record["seed"]): {
            name: value for name, value in _flat(record) if name not in _NOT_COMPARED
        }
        for record in read_metrics(folder.metrics_file)
    }


def _place(name: str) -> tuple[int, str]:
    """Return where a quantity stands in `ORDER`; behind all of it, if that does not know it."""
    group = name.partition("/")[0]
    return ORDER.index(group) if group in ORDER else len(ORDER), name


def _alone(a: Rows, b: Rows, names_a: set[str], names_b: set[str]) -> Iterator[str]:
    """Yield sentences on rows and quantities that only one of two runs has."""
    for run, ours, theirs, names in (("A", a, b, names_a - names_b), ("B", b, a, names_b - names_a)):
        if rows := sorted(ours.keys() - theirs.keys()):
            yield f"Only {run} has {len(rows)} rows, the first of iteration {rows[0][0]}, seed {rows[0][1]}."
        if names:
            yield f"Only {run} records {', '.join(sorted(names, key=_place))}."


def _settings(folder: RunFolder) -> dict[str, Any]:
    """Return the configuration's fields by name, whatever version of this package wrote it."""
    if not folder.config_file.is_file():
        folder.read_config()  # It says what is missing.
    data = read_json(folder.config_file)
    if not isinstance(data, dict):
        raise RunFolderError(f"{folder.config_file} is not a JSON object.")
    return {name.rpartition("/")[2]: value for name, value in _flat(data)}


def _origin(folder: RunFolder, notes: list[str]) -> dict[str, Any]:
    """Return each entry of a run's provenance, of a resumed run a list where it changed; or add to `notes` why not."""
    try:
        if (provenance := folder.read_provenance()) is None:
            raise RunFolderError(f"there is no {folder.provenance_file}.")
    except RunFolderError as error:
        notes.append(f"Code, versions, devices and flags are not compared: {error}")
        return {}
    earlier = provenance.get("earlier")
    held: dict[str, list[Any]] = {}
    for start in (*(earlier if isinstance(earlier, list) else ()), provenance):
        for name, value in _flat(start) if isinstance(start, dict) else ():
            # What is null is not known, which is no difference from where it is.
            if name.partition("/")[0] not in _OF_EACH_START and value is not None:
                held.setdefault(name, []).append(value)
    changes = {name: [value for value, _ in itertools.groupby(values)] for name, values in held.items()}
    return {name: values[0] if len(values) == 1 else values for name, values in changes.items()}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[ValueDifference]:
    """Yield the names under which two mappings do not hold the same."""
    for name in dict.fromkeys([*a, *b]):
        left, right = a.get(name), b.get(name)
        # As text: the sign of a zero counts.
        if json.dumps(left) != json.dumps(right):
            yield ValueDifference(name, _short(left), _short(right))


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(item) for item in value]
    if not isinstance(value, str) or len(value) <= _MOST_CHARACTERS:
        return value
    lines, checksum = value.splitlines() or [""], hashlib.sha256(value.encode(errors="replace")).hexdigest()
    return f"{lines[0][:_MOST_CHARACTERS]}... ({len(lines):,} lines, SHA-256 {checksum[:16]})"


def _flat(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of a tree's leaves, names as group/name."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", leaf) for inner, leaf in _flat(value))
        else:
            yield name, value
