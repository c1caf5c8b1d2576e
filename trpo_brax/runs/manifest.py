"""What belongs to a folder of arrays, file by file, and whether it is still there unchanged.

A manifest finds damage, not malice: whoever can change the files can change it too. What guards against a folder made
to do harm is that nothing in it is ever executed, followed out of it, or read beyond the sizes expected of it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trpo_brax.errors import CheckpointError, RunFolderError
from trpo_brax.runs.files import one_line, open_plain, read_json, walk, write_json

MANIFEST = "manifest.json"
_FORMAT = 1
_MOST_BYTES = 8 << 20
"""Of a manifest: of as many files as there may be."""
_MOST_FILES = 10_000
_MOST_DEPTH = 8


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down every file in `folder` with size and SHA-256, and `facts` beside them."""
    files = {
        name: {"size": path.stat().st_size, "sha256": _digest(path)}
        for name, path in _files(folder)
        if name != MANIFEST
    }
    write_json(folder / MANIFEST, {"format": _FORMAT, **facts, "files": files})


def manifest_hash(folder: Path) -> str:
    """Return the SHA-256 of a folder's manifest, in hexadecimal; it holds that of every other file.

    Raises:
        CheckpointError: there is none.
    """
    try:
        with open_plain(folder / MANIFEST, _MOST_BYTES) as opened:
            return hashlib.sha256(opened.read(_MOST_BYTES)).hexdigest()
    except RunFolderError as error:
        raise CheckpointError(str(error)) from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest, without comparing the files with it.

    Raises:
        CheckpointError: there is none, or it is not one; the sentence is about `folder`'s content, without its name.
    """
    if not os.path.lexists(folder / MANIFEST):
        raise CheckpointError(f"it is incomplete, without {MANIFEST}")
    try:
        manifest = read_json(folder / MANIFEST, _MOST_BYTES)
    except RunFolderError as error:
        raise CheckpointError(str(error).rstrip(".")) from error
    sound = isinstance(manifest, dict) and manifest.get("format") == _FORMAT and isinstance(manifest.get("files"), dict)
    if not sound:
        raise CheckpointError(f"{MANIFEST} is none that this version can read")
    found: dict[str, Any] = manifest
    return found


def verify(folder: Path, most_bytes: int, most_of: Mapping[str, int] | None = None, only: str = "") -> dict[str, Any]:
    """Compare a folder with its manifest, and return that.

    Args:
        folder: with `manifest.json` in it.
        most_bytes: all files together may hold.
        most_of: folder in it -> most bytes that the files in that may hold.
        only: folder in it whose files alone are compared; all by default. Links are refused everywhere.

    Raises:
        CheckpointError: a file is missing, superfluous, a link, or not the one written; the sentence says which.
    """
    manifest = read_manifest(folder)
    wanted = manifest["files"]
    there = dict(_files(folder))
    sizes = {name: path.stat().st_size for name, path in there.items()}
    for part, most in {"": most_bytes, **(most_of or {})}.items():
        total = sum(size for name, size in sizes.items() if not part or name.startswith(f"{part}/"))
        if total > most:
            raise CheckpointError(f"{part or 'it'} holds {total:,} bytes, and at most {most:,} are expected")
    names = sorted(name for name in (wanted.keys() | there.keys()) - {MANIFEST} if name.startswith(only))
    for name in names:
        told = wanted.get(name)
        if name not in there:
            raise CheckpointError(f"{one_line(name)} is missing")
        if not isinstance(told, dict):
            raise CheckpointError(f"{one_line(name)} is not in its manifest")
        if sizes[name] != told.get("size"):
            raise CheckpointError(f"{one_line(name)} has {sizes[name]} bytes, not {one_line(told.get('size'))}")
    # Afterwards: what has another size, or should not be there, is never read.
    for name in names:
        if _digest(there[name]) != wanted[name].get("sha256"):
            raise CheckpointError(f"{one_line(name)} is not what was written")
    return manifest


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path inside the folder, path) of every file; refuse what is no file, and absurdly many."""
    for count, (path, mode, depth) in enumerate(walk(folder)):
        name = str(path.relative_to(folder))
        if count >= _MOST_FILES or depth > _MOST_DEPTH:
            raise CheckpointError(f"it holds more than {_MOST_FILES:,} files or folders {_MOST_DEPTH} deep")
        if stat.S_ISREG(mode):
            yield name, path
        elif not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "no plain file"
            raise CheckpointError(f"{one_line(name)} is {what}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
