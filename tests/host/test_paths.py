"""A leading ~ means a home, wherever a path is given."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from trpo_brax.errors import UserError
from trpo_brax.host.paths import user_path
from trpo_brax.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~", "/homes/mine"),
        ("~/runs/a", "/homes/mine/runs/a"),
        (Path("~/runs/a"), "/homes/mine/runs/a"),
        ("~root", pwd.getpwnam("root").pw_dir),
        ("runs/a", "runs/a"),
        ("runs/~/a~", "runs/~/a~"),
        ("", "."),
        ("./~/a", "HERE/~/a"),
    ],
)
def test_what_is_meant(written: str | Path, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/homes/mine")
    found = user_path(written)
    assert str(found) == meant.replace("HERE", str(tmp_path))
    assert user_path(found) == RunFolder(written).path == found


@pytest.mark.parametrize("written", ["~nobody-of-that-name/run", "~/run"])
def test_a_home_that_nobody_knows(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, under a user id that is nobody's."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    with pytest.raises(UserError, match=f"^{written} names a home that is not known.$"):
        user_path(written)
