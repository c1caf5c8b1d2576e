"""A folder's certificate.json, read back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trpo_brax.errors import RunFolderError
from trpo_brax.runs.files import read_json

CERTIFICATE = "certificate.json"
_MOST_BYTES = 4 << 20


def read_certificate(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's certificate.json holds, None where there is none.

    Raises:
        RunFolderError: it cannot be read, or is no JSON object.
    """
    file = folder / CERTIFICATE
    if not os.path.lexists(file):
        return None
    try:
        certificate = read_json(file, _MOST_BYTES)
    except RunFolderError as error:
        raise RunFolderError(f"{str(error).rstrip('.')}: certify again, or remove it.") from error
    if not isinstance(certificate, dict):
        raise RunFolderError(f"{file} is no certificate: certify again, or remove it.")
    return certificate


def is_finished(certificate: Mapping[str, Any]) -> bool:
    """Return whether a certificate has come to its statements: it is declared before its episodes are drawn."""
    return "statements" in certificate
