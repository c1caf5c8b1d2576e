"""provenance.json: enough to find code, machine and flags again."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from trpo_brax.runs.provenance import provenance

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """Return the provenance of a run on two devices, as it is read from JSON."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
        data: dict[str, Any] = json.loads(json.dumps(provenance(jax.devices()[:2]), allow_nan=False))
        return data


def test_versions_are_those_installed(told: dict[str, Any]) -> None:
    for package in ("jax", "jaxlib", "brax", "flax", "optax", "orbax-checkpoint", "numpy"):
        assert told["versions"][package] == importlib.metadata.version(package)


def test_devices_and_flags(told: dict[str, Any]) -> None:
    assert len(told["devices"]) == 2 and all(name.startswith("cpu:") for name in told["devices"])
    assert told["xla_flags"] == "--xla_dump_to=somewhere"
    assert told["usable_cores"] >= 1 and told["processes"] == 1
    assert re.fullmatch(r"3\.\d+\.\d+\S*", told["python"])


def test_the_time_has_its_zone(told: dict[str, Any]) -> None:
    then = time.mktime(time.strptime(told["created"][:19], "%Y-%m-%dT%H:%M:%S"))
    assert abs(time.time() - then) < 3600
    assert re.search(r"[+-]\d{4}$", told["created"])


@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="not a git checkout")
def test_commit_and_uncommitted_changes(told: dict[str, Any]) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", CHECKOUT, *words], capture_output=True, text=True, check=True).stdout

    assert re.fullmatch(r"[0-9a-f]{40}", told["git"]["commit"])
    assert git("cat-file", "-t", told["git"]["commit"]) == "commit\n"
    changed = git("diff", "HEAD", "--name-only").split()
    assert bool(told["git"]["diff"]) == bool(changed)
    assert len(told["git"]["diff"]) <= 1_000_000


class TestWithoutGit:
    """A container has no history: the commit comes from outside, or is not known."""

    @pytest.fixture(autouse=True)
    def no_git(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.delenv("GIT_COMMIT", raising=False)

    def test_it_is_null(self) -> None:
        assert provenance(jax.devices()[:1])["git"] is None

    def test_the_environment_tells(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GIT_COMMIT", "a" * 40)
        assert provenance(jax.devices()[:1])["git"] == {"commit": "a" * 40, "diff": None}
