"""An exported policy on disk: the model, `policy.json` that describes it, and for ONNX a `verify.py` beside them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trpo_brax.deployment.description import MODELS, ArtifactError, Description, Format
from trpo_brax.host.paths import user_path
from trpo_brax.runs.files import open_plain, read_json, try_folder, written

DESCRIPTION = "policy.json"
STANDALONE = "verify.py"
_MOST_DESCRIPTION_BYTES = 256 << 20
_MOST_MODEL_BYTES = 2 << 30
_OURS = {DESCRIPTION, STANDALONE, *MODELS.values()}


@dataclass(frozen=True)
class Artifact:
    """An exported policy."""

    folder: Path
    description: Description
    notes: tuple[str, ...] = ()
    """What whoever exported it should know, a sentence each."""

    @property
    def file(self) -> Path:
        """The model."""
        return self.folder / self.description.artifact

    @classmethod
    def load(cls, path: Artifact | str | os.PathLike[str]) -> Artifact:
        """Open an exported policy by its folder or by its model's file; one that is open is returned as it is.

        Raises:
            ArtifactError: this is none.
            RunFolderError: its description cannot be read.
        """
        if isinstance(path, Artifact):
            return path
        if not isinstance(path, (str, os.PathLike)):
            raise ArtifactError(f"artifact must be an Artifact or its path, not {path!r:.40}.")
        given = user_path(path)
        folder = given if given.is_dir() else given.parent
        if not os.path.lexists(given):
            raise ArtifactError(f"there is no exported policy {given}.")
        if not os.path.lexists(folder / DESCRIPTION):
            raise ArtifactError(f"{given} is no exported policy: there is no {DESCRIPTION} beside it.")
        data = read_json(folder / DESCRIPTION, _MOST_DESCRIPTION_BYTES)
        description = Description.from_dict(data, f"{folder / DESCRIPTION}")
        if not given.is_dir() and given.name != description.artifact:
            raise ArtifactError(f"{given} is not the model that {folder / DESCRIPTION} describes.")
        return cls(folder, description)

    def model(self) -> bytes:
        """Return the model.

        Raises:
            RunFolderError: it cannot be read.
        """
        with open_plain(self.file, _MOST_MODEL_BYTES) as opened:
            return opened.read(_MOST_MODEL_BYTES)


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check_output(folder: Path, format: Format) -> None:
    """Refuse a place that nothing can be written to, or that an export of this format would take something away from.

    Raises:
        ArtifactError: there is something else than an export of the same format.
        UserError: it cannot be written.
    """
    with written(f"output {folder}"):
        try_folder(folder.absolute().parent, makes_folders=True)
    if not os.path.lexists(folder):
        return
    try:
        modes = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(folder)}
        is_link = folder.is_symlink()
    except OSError as error:
        raise ArtifactError(f"output {folder} cannot be used: {error.strerror}.") from error
    others = {name for name in MODELS.values() if name != MODELS[format]}
    if is_link or not modes.keys() <= _OURS - others or not all(map(stat.S_ISREG, modes.values())):
        raise ArtifactError(f"output {folder} is already used; choose another.")


def write_artifact(folder: Path, description: Description, model: bytes, standalone: bytes | None) -> None:
    """Write an export whole or not at all, in the place of an earlier one of the same format.

    Raises:
        ArtifactError: the place is used otherwise.
        UserError: it cannot be written.
    """
    check_output(folder, description.format)
    files = {
        description.artifact: model,
        DESCRIPTION: _json(description.to_dict()).encode(),
        **({STANDALONE: standalone} if standalone is not None else {}),
    }
    with written(f"output {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Whatever is in it goes, whether it could be put in its place or not.
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as made:
            new, old = Path(made) / "new", Path(made) / "old"
            new.mkdir()
            for name, data in files.items():
                with (new / name).open("xb") as opened:
                    opened.write(data)
                    opened.flush()
                    os.fsync(opened.fileno())
            if os.path.lexists(folder):
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.is_dir():
                    old.rename(folder)
                raise


def _json(data: dict[str, Any]) -> str:
    """Return JSON to read, with each list of numbers on one line."""
    text = json.dumps(data, indent=2, allow_nan=False)
    # A line break inside a string is written \n, so this finds lists alone.
    return re.sub(r"\[\n\s*([-+.\deE,\s]*?)\n\s*\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"
