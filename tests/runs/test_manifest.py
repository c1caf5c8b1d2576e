"""Manifests: the digests are those of other tools, and whatever differs from them is found and named in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_runs import contents
from trpo_brax.errors import CheckpointError
from trpo_brax.runs.manifest import MANIFEST, read_manifest, verify, write_manifest

MOST = 1 << 20
FACTS = {"iteration": 7, "training_returns": {"0": 1.5}}
FILES = {
    "empty": b"",
    "small": b"hello\n",
    "sub/data": np.random.default_rng(0).bytes(5000),
    "sub/deeper/zeros": bytes(300),
    "with a space and é": b"x",
    "with\na line \x1b[31m in it": b"red",
}
LINE = "with\\na line \\x1b[31m in it"
"""How a name that is several lines stands in a sentence."""

Change = Callable[[Path], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of files with a manifest."""
    folder = tmp_path / "folder"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    write_manifest(folder, FACTS)
    return folder


def refusal(folder: Path, most_of: dict[str, int] | None = None) -> str:
    """Return what the folder is refused with, once it is found to be one bounded line, and to have changed nothing."""
    before = contents_of_plain(folder)
    with pytest.raises(CheckpointError) as caught:
        verify(folder, MOST, most_of)
    sentence = str(caught.value)
    assert sentence.isprintable() and 0 < len(sentence) < 600
    assert contents_of_plain(folder) == before
    return sentence


def contents_of_plain(folder: Path) -> dict[str, str]:
    """Return `contents` of a folder that may hold pipes, which nobody could read to the end."""
    strange = [path for path in folder.rglob("*") if path.is_fifo() or path.is_socket()]
    return {str(path): "strange" for path in strange} if strange else contents(folder)


class TestWriting:
    """What a manifest says."""

    def test_sizes_and_digests_are_those_that_hashlib_and_the_system_find(self, folder: Path) -> None:
        told = json.loads((folder / MANIFEST).read_text())
        assert {name: told[name] for name in FACTS} == FACTS
        assert told["files"] == {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()
        }

    @pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
    def test_sha256sum_agrees(self, folder: Path) -> None:
        told = json.loads((folder / MANIFEST).read_text())["files"]
        for name in FILES:
            with (folder / name).open("rb") as file:
                done = subprocess.run(["sha256sum"], stdin=file, capture_output=True, text=True, check=True)
            assert done.stdout.split()[0] == told[name]["sha256"], name

    def test_it_is_found_sound_and_read_back(self, folder: Path) -> None:
        before = contents(folder)
        for manifest in (verify(folder, MOST), read_manifest(folder)):
            assert {name: manifest[name] for name in FACTS} == FACTS
        assert contents(folder) == before

    def test_written_again_it_does_not_list_itself(self, folder: Path) -> None:
        write_manifest(folder, FACTS)
        assert MANIFEST not in verify(folder, MOST)["files"]

    def test_another_format_is_not_guessed_at(self, folder: Path) -> None:
        edit(lambda told: told.update(format=2))(folder)
        assert "manifest.json is none that this version can read" in refusal(folder)


def write(name: str, change: Callable[[bytes], bytes]) -> Change:
    """Return what changes a file's bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def flip(at: int) -> Callable[[bytes], bytes]:
    """Return what changes one bit."""
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def edit(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Return what changes the manifest's data."""

    def edit(folder: Path) -> None:
        told = json.loads((folder / MANIFEST).read_text())
        change(told)
        (folder / MANIFEST).write_text(json.dumps(told))

    return edit


def in_place(name: str, make: Callable[[Path], Any]) -> Change:
    """Return what takes a file away and puts something else there."""

    def replace(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return replace


def bind(path: Path) -> None:
    """Put a socket at a path."""
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def nest(levels: int) -> Change:
    """Return what adds folders in folders."""
    return lambda folder: folder.joinpath(*["n"] * levels).mkdir(parents=True)


DAMAGE: dict[str, tuple[Change, list[str]]] = {
    # Files
    "first bit": (write("sub/data", flip(0)), ["sub/data", "not what was written"]),
    "last bit": (write("sub/data", flip(4999)), ["sub/data", "not what was written"]),
    "a bit of zeros": (write("sub/deeper/zeros", flip(150)), ["sub/deeper/zeros", "not what was written"]),
    "cut": (write("small", lambda data: data[:-1]), ["small", "5 bytes", "6"]),
    "emptied": (write("sub/data", lambda data: b""), ["sub/data", "0 bytes", "5000"]),
    "grown": (write("small", lambda data: data + b"\0"), ["small", "7 bytes", "6"]),
    "an empty one grown": (write("empty", lambda data: b"\0"), ["empty", "1 bytes", "0"]),
    "missing": (lambda folder: (folder / "small").unlink(), ["small is missing"]),
    "an empty one missing": (lambda folder: (folder / "empty").unlink(), ["empty is missing"]),
    "all missing": (lambda folder: [(folder / name).unlink() for name in FILES], ["is missing"]),
    "extra": (lambda folder: (folder / "extra").write_bytes(b""), ["extra", "not in its manifest"]),
    "extra, deep": (lambda folder: (folder / "sub/deeper/x").write_bytes(b"x"), ["sub/deeper/x", "not in its"]),
    "two exchanged": (
        lambda folder: (folder / "small").rename(folder / "sub/small"),
        ["small is missing"],
    ),
    "a folder for a file": (in_place("small", Path.mkdir), ["small is missing"]),
    # What is no file
    "link to a file in it": (in_place("small", lambda path: path.symlink_to("empty")), ["small is a link"]),
    "link to nothing": (in_place("new", lambda path: path.symlink_to("nothing")), ["new is a link"]),
    "link to a folder": (in_place("new", lambda path: path.symlink_to("sub")), ["new is a link"]),
    "pipe": (in_place("small", os.mkfifo), ["small is no plain file"]),
    "socket": (in_place("small", bind), ["small is no plain file"]),
    "nested": (nest(20), ["8 deep"]),
    "very many": (
        lambda folder: [(folder / f"f{number}").touch() for number in range(10_001)],
        ["10,000 files"],
    ),
    # Names
    "a name of several lines": (write("with\na line \x1b[31m in it", flip(0)), [LINE]),
    "a new name of several lines": (lambda folder: (folder / "a\r\nb\x07").touch(), ["a\\r\\nb\\x07"]),
    "a link with a name of several lines": (lambda folder: (folder / "a\nb").symlink_to("small"), ["a\\nb is a link"]),
    "a name of several lines missing": (
        lambda folder: (folder / "with\na line \x1b[31m in it").unlink(),
        [f"{LINE} is missing"],
    ),
    "a name that is not UTF-8": (
        lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe")).touch(),
        ["\\udcff\\udcfe", "not in its manifest"],
    ),
    "a name of 255 characters": (lambda folder: (folder / ("n" * 255)).touch(), ["n" * 100]),
    # The manifest
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), ["incomplete", MANIFEST]),
    "empty manifest": (write(MANIFEST, lambda data: b""), [MANIFEST, "not valid JSON"]),
    "half a manifest": (write(MANIFEST, lambda data: data[: len(data) // 2]), [MANIFEST, "not valid JSON"]),
    "no text": (write(MANIFEST, lambda data: b"\xff\xfe" + data), [MANIFEST, "not UTF-8"]),
    "pickle": (write(MANIFEST, lambda data: b"\x80\x04N."), [MANIFEST]),
    "list": (write(MANIFEST, lambda data: b"[]"), [MANIFEST, "none that this version can read"]),
    "null": (write(MANIFEST, lambda data: b"null"), [MANIFEST, "none that this version can read"]),
    "deep": (write(MANIFEST, lambda data: b"[" * 100_000), [MANIFEST, "not valid JSON"]),
    "deep, closed": (write(MANIFEST, lambda data: b"[" * 500 + b"]" * 500), [MANIFEST, "not valid JSON"]),
    "NaN": (write(MANIFEST, lambda data: data.replace(b"1.5", b"NaN")), [MANIFEST, "not valid JSON"]),
    "infinite": (write(MANIFEST, lambda data: data.replace(b"1.5", b"1e999")), [MANIFEST, "not valid JSON"]),
    "many digits": (write(MANIFEST, lambda data: data.replace(b"5000", b"9" * 5000)), [MANIFEST, "not valid JSON"]),
    "huge": (lambda folder: os.truncate(folder / MANIFEST, 9 << 20), [MANIFEST, "larger than"]),
    "a link for a manifest": (in_place(MANIFEST, lambda path: path.symlink_to("small")), [MANIFEST, "link"]),
    "a pipe for a manifest": (in_place(MANIFEST, os.mkfifo), [MANIFEST, "no plain file"]),
    "a folder for a manifest": (in_place(MANIFEST, Path.mkdir), [MANIFEST]),
    "no files": (edit(lambda told: told.pop("files")), ["none that this version can read"]),
    "files in a list": (edit(lambda told: told.update(files=list(told["files"]))), ["none that this version can read"]),
    "a file not listed": (edit(lambda told: told["files"].pop("small")), ["small", "not in its manifest"]),
    "a file listed as text": (edit(lambda told: told["files"].update(small="x")), ["small", "not in its manifest"]),
    "a file listed as nothing": (edit(lambda told: told["files"].update(small={})), ["small", "6 bytes, not None"]),
    "another size": (edit(lambda told: told["files"]["small"].update(size=5)), ["small", "6 bytes, not 5"]),
    "size as text": (edit(lambda told: told["files"]["small"].update(size="6" * 999)), ["small", "6 bytes, not 666"]),
    "digest as text": (edit(lambda told: told["files"]["small"].update(sha256="x")), ["small", "not what was"]),
    "no digest": (edit(lambda told: told["files"]["small"].pop("sha256")), ["small", "not what was written"]),
    "digest in capitals": (
        edit(lambda told: told["files"]["small"].update(sha256=told["files"]["small"]["sha256"].upper())),
        ["small", "not what was written"],
    ),
    "a file above": (edit(lambda told: told["files"].update({"../above": told["files"]["small"]})), ["../above is"]),
    "a file elsewhere": (edit(lambda told: told["files"].update({"/etc/passwd": {}})), ["/etc/passwd is missing"]),
}


@pytest.mark.parametrize(("damage", "fragments"), DAMAGE.values(), ids=DAMAGE.keys())
def test_it_is_found_and_named_in_one_line(damage: Change, fragments: list[str], folder: Path) -> None:
    (folder.parent / "above").write_bytes(FILES["small"])
    damage(folder)
    sentence = refusal(folder)
    for fragment in fragments:
        assert fragment in sentence


def test_every_byte_counts(folder: Path) -> None:
    for at in range(0, 5000, 97):
        write("sub/data", flip(at))(folder)
        assert "sub/data is not what was written" in refusal(folder)
        write("sub/data", flip(at))(folder)
    verify(folder, MOST)


def test_all_files_together_have_a_largest_size_and_so_have_parts(folder: Path) -> None:
    total = sum(map(len, FILES.values())) + (folder / MANIFEST).stat().st_size
    verify(folder, total)
    with pytest.raises(CheckpointError, match=f"it holds {total:,} bytes, and at most {total - 1:,} are expected"):
        verify(folder, total - 1)
    verify(folder, MOST, {"sub": 5300, "sub/deeper": 300, "absent": 0})
    assert "sub holds 5,300 bytes, and at most 5,299" in refusal(folder, {"sub": 5299})


def test_what_has_another_size_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file grown by gigabytes of nothing is refused as soon as it is seen."""
    (folder / "a").touch()  # the first of all names
    write_manifest(folder, FACTS)
    os.truncate(folder / "with a space and é", 1000)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("a file was read"))
    assert "1000 bytes" in refusal(folder)
