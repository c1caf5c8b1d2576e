"""Where a run came from: versions, code, devices and flags."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from trpo_brax.host.devices import usable_cores

_PACKAGES = ("trpo-brax", "jax", "jaxlib", "brax", "mujoco", "mujoco-mjx", "flax", "optax", "orbax-checkpoint", "numpy")
_MAX_DIFF_CHARACTERS = 200_000
_SEGMENTS_WITH_DIFF = 20
"""Of a run that is resumed again and again, earlier ones keep their commit only."""


def provenance(
    devices: Sequence[jax.Device], iteration: int = 0, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return what `provenance.json` holds.

    Args:
        devices: trained on.
        iteration: after which this segment begins.
        before: what it held so far, in a run that is resumed.
    """
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "after_iteration": iteration,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "usable_cores": usable_cores(),
        "versions": {name: package_version(name) for name in _PACKAGES},
        "git": checkout(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in devices],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax_settings": {
            name: getattr(jax.config, name)
            for name in ("jax_default_matmul_precision", "jax_enable_x64", "jax_threefry_partitionable")
        },
        "earlier": _segments(before),
    }


def _segments(before: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the segments described so far, each without those before it."""
    if before is None:
        return []
    earlier = before.get("earlier")
    segments = [
        *(earlier if isinstance(earlier, list) else []),
        {name: value for name, value in before.items() if name != "earlier"},
    ]
    for segment in segments[:-_SEGMENTS_WITH_DIFF]:
        if isinstance(segment, dict) and isinstance(segment.get("git"), dict):
            segment["git"]["diff"] = None
    return segments


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def checkout() -> dict[str, Any] | None:
    """Return commit and uncommitted diff of the checkout this package runs from, None if it is not one.

    GIT_COMMIT in the environment stands in for the commit where the code was installed without its history.
    """
    folder = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True, timeout=20)
        return done.stdout.decode(errors="replace")

    try:
        # A package installed inside somebody else's checkout is not that checkout's code.
        if not git("ls-files", "trpo_brax/config.py").strip():
            raise FileNotFoundError
        diff = git("diff", "HEAD")
        return {"commit": git("rev-parse", "HEAD").strip(), "diff": diff[:_MAX_DIFF_CHARACTERS]}
    except (OSError, subprocess.SubprocessError):
        commit = os.environ.get("GIT_COMMIT")
        return {"commit": commit, "diff": None} if commit else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
