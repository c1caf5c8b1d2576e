"""Where two runs came from: their configuration and their provenance, compared."""

from __future__ import annotations

import itertools
from typing import Any, get_args

from trpo_brax.config import MAY_CHANGE, Config, walk
from trpo_brax.errors import RunFolderError
from trpo_brax.forensics.values import Stretches, ValueDifference, differences, flat, names
from trpo_brax.runs.files import read_json
from trpo_brax.runs.folder import RunFolder

_OF_EACH_START = {"created", "command", "after_iteration", "earlier"}


def settings(folder: RunFolder) -> dict[str, Any]:
    """Return the configuration's fields by name, whatever version of this package wrote it."""
    if not folder.config_file.is_file():
        folder.read_config()  # It says what is missing.
    data = read_json(folder.config_file)
    if not isinstance(data, dict):
        raise RunFolderError(f"{folder.config_file} is not a JSON object.")
    return {name.rpartition("/")[2]: value for name, value in flat(data)}


def configuration(a: dict[str, Any], b: dict[str, Any]) -> tuple[tuple[ValueDifference, ...], tuple[str, ...]]:
    """Return the fields that differ, and the names of those that shape learning."""
    found = tuple(differences(a, b, names(a, b)))
    may_change = {name for name, _, hint in walk(Config()) if MAY_CHANGE in get_args(hint)}
    return found, tuple(one.name for one in found if one.name not in may_change)


def provenance(a: RunFolder, b: RunFolder) -> tuple[tuple[ValueDifference, ...], tuple[str, ...]]:
    """Return what differs in any stretch of two runs, or sentences on what cannot be read."""
    histories, notes = [], []
    for folder in (a, b):
        try:
            if (provenance := folder.read_provenance()) is None:
                raise RunFolderError(f"there is no {folder.provenance_file}.")
            histories.append(_history(provenance))
        except RunFolderError as error:
            notes.append(f"Code, versions, devices and flags are not compared: {error}")
    if notes:
        return (), tuple(notes)
    return tuple(differences(histories[0], histories[1], names(*histories))), ()


def _history(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return what each entry was in all stretches of a run: its value, or `Stretches` of them."""
    earlier = provenance.get("earlier")
    stretches = [
        dict(flat({name: value for name, value in stretch.items() if name not in _OF_EACH_START}))
        for stretch in (*(earlier if isinstance(earlier, list) else ()), provenance)
        if isinstance(stretch, dict)
    ]
    history = {}
    for name in names(*stretches):
        # What is null is not known, which is no difference from the stretches where it is.
        known = [value for stretch in stretches if (value := stretch.get(name)) is not None]
        values = [value for value, _ in itertools.groupby(known)] or [None]
        history[name] = values[0] if len(values) == 1 else Stretches(values)
    return history
