"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path

from trpo_brax.errors import UserError


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path; a leading ~ in it means a home folder, also where no shell has seen to it.

    Raises:
        UserError: nobody knows that home.
    """
    text = os.path.expanduser(path)
    if text.startswith("~"):
        raise UserError(f"{text} names a home that is not known.")
    found = Path(text)
    # pathlib leaves out the ./ that says so, and whoever is given the path asks again.
    return found.absolute() if str(found).startswith("~") else found
