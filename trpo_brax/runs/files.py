"""Reading and writing small files that may be broken, absurd, or somebody else's."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trpo_brax.errors import RunFolderError, UserError

MOST_JSON_BYTES = 1 << 20
_MOST_DIGITS = 20
_MOST_LEVELS = 50


def read_json(file: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Return a JSON file's content.

    Raises:
        RunFolderError: it is missing, a link or no plain file, absurdly large, or not JSON.
    """
    with open_plain(file, most_bytes) as opened:
        return parse_json(opened.read(most_bytes).decode("utf-8"), f"{file}")


def parse_json(text: str, what: str) -> Any:
    """Return what strict JSON says.

    Raises:
        RunFolderError: it is none, holds NaN, infinity or a whole number that 64 bits cannot hold, or is too deep; the
            sentence names `what`.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
        # Python reads a thousand levels, and then whoever goes through them by recursion fails.
        if text.count("[") + text.count("{") > _MOST_LEVELS and _levels(data) > _MOST_LEVELS:
            raise ValueError("too many levels")
        return data
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{what} is not valid JSON.") from error


@contextlib.contextmanager
def open_plain(file: Path, most_bytes: int) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes.

    Raises:
        RunFolderError: it is missing, a link or no plain file, larger than `most_bytes`, or cannot be read; or what the
            block reads of it is not UTF-8.
    """
    try:
        # Without following a link, and without waiting for whoever writes to a pipe.
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise RunFolderError(f"{file} is no plain file: it is not read.")
            if status.st_size > most_bytes:
                raise RunFolderError(f"{file} is larger than {most_bytes} bytes: it is not read.")
            yield opened
    except OSError as error:
        link = ": it is a link" if file.is_symlink() else f": {error.strerror}"
        raise RunFolderError(f"{file} cannot be read{link}.") from error
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{file} is not UTF-8 text.") from error


def walk(folder: Path, forgiven: tuple[type[BaseException], ...] = ()) -> Iterator[tuple[Path, int, int]]:
    """Yield (path, mode, depth from 0) of whatever is in a folder, however deep; links are not followed.

    Args:
        folder: to go through, as far as it is asked for.
        forgiven: what is raised of entries that cannot be seen, or are taken away meanwhile, and leaves them out.
    """
    open_folders = [(folder, 0)]
    while open_folders:
        current, depth = open_folders.pop()
        with contextlib.suppress(*forgiven), os.scandir(current) as entries:
            for entry in entries:
                with contextlib.suppress(*forgiven):
                    mode = entry.stat(follow_symlinks=False).st_mode
                    yield Path(entry.path), mode, depth
                    if stat.S_ISDIR(mode):
                        open_folders.append((Path(entry.path), depth + 1))


@contextlib.contextmanager
def written(path: object, done: str = "written") -> Iterator[None]:
    """Say in one sentence that a file cannot be written, or a folder be made, where the block fails to.

    Raises:
        UserError: it does.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be {done}: {error.strerror}.") from error


def check_writable(file: Path, *, makes_folders: bool = False) -> None:
    """Refuse a file that cannot be written, before anything slow is done for it; the attempt leaves nothing.

    Args:
        file: to make, or to put another in the place of, as `write_bytes` does.
        makes_folders: the folders that it lacks will be made.

    Raises:
        UserError: it cannot be written.
    """
    with written(file):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is no plain file: it is not replaced.")  # /dev/null is everybody's
        try_folder(file.absolute().parent, makes_folders=makes_folders)


def try_folder(folder: Path, *, makes_folders: bool = False) -> None:
    """Make a nameless file in a folder, or in the nearest above it that there is, and forget it.

    Raises:
        OSError: that cannot be.
    """
    while makes_folders and not os.path.lexists(folder):
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_json(file: Path, data: Any) -> None:
    """Write a JSON file whole or not at all, on disk when this returns."""
    write_text(file, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all, on disk when this returns."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file whole or not at all, on disk when this returns."""
    temporary = file.with_suffix(".tmp")
    try:
        # Not through a link that somebody left at the temporary name.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def one_line(text: object, most: int = 120) -> str:
    """Return what may be anybody's text without control characters, and without screens full of it."""
    line = str(text)[:most]
    return line if line.isprintable() else line.encode("unicode_escape").decode()[:most]


def _levels(data: Any) -> int:
    """Return how deep JSON is nested."""
    level, levels = [data], 0
    while level := [item for item in level if isinstance(item, (list, dict))]:
        levels += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return levels


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number that is more than a float can hold")
    return number


def _whole(digits: str) -> int:
    # Python reads hundreds of digits, and then whoever makes a float or an array of them fails.
    if len(digits) > _MOST_DIGITS or abs(number := int(digits)) >= 2**63:
        raise ValueError("a whole number that 64 bits cannot hold")
    return number
