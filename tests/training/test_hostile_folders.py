"""Run folders made to do harm: resumed, opened, evaluated and drawn, they are refused in a sentence, or harmless."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorstore
from tensorboardX.crc32c import crc32c

from tests.tiny_runs import HISTORY, TINY, contents, tiny_program, train_tiny
from tests.training.conftest import assert_bit_identical
from trpo_brax.cli import main
from trpo_brax.config import Config, override
from trpo_brax.diagnosis.difference import compare
from trpo_brax.errors import UserError
from trpo_brax.evaluation import RecordedRun, group_runs, plot_groups
from trpo_brax.training import Run
from trpo_brax.training.dumps import Dump, write_dump
from trpo_brax.training.folder import RunFolder
from trpo_brax.training.manifest import write_manifest
from trpo_brax.training.run import write_task

Attack = Callable[[Path], None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with checkpoints 2 and 4."""
    return train_tiny(tmp_path_factory.mktemp("trained") / "run").path


class Payload:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(Path(sys.prefix) / "owned"),)


def replaced(name: str, content: bytes | str) -> Attack:
    """Return what writes another content into a file, with a manifest to match where there is one."""

    def attack(run: Path) -> None:
        file = run / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        reseal(run)

    return attack


def edited(name: str, edit: Callable[[Any], Any]) -> Attack:
    """Return what changes a JSON file's data, with a manifest to match where there is one."""

    def attack(run: Path) -> None:
        data = json.loads((run / name).read_text())
        edit(data)
        (run / name).write_text(json.dumps(data))
        reseal(run)

    return attack


def reseal(run: Path) -> None:
    """Make the manifests right again, as whoever changes a file can."""
    for manifest in run.glob("checkpoints/*/manifest.json"):
        told = json.loads(manifest.read_text())
        write_manifest(manifest.parent, {name: told[name] for name in ("iteration", "training_returns")})


def linked(name: str, kind: Callable[[Path, Path], None] | None = None) -> Attack:
    """Return what puts a link out of the run folder in the place of a file or folder."""

    def attack(run: Path) -> None:
        outside = run.parent / "outside"
        if (run / name).exists():
            shutil.move(run / name, outside / "taken")
        else:
            (outside / "taken").write_text("precious\n")
        (kind or (lambda link, target: link.symlink_to(target)))(run / name, outside / "taken")

    return attack


def setting(section: str | None, field: str, value: Any) -> Attack:
    """Return what sets a field of the configuration."""
    return edited("config.json", lambda data: (data[section] if section else data).__setitem__(field, value))


def pipe(name: str) -> Attack:
    """Return what puts a pipe in a file's place: whoever reads it waits for ever."""

    def attack(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return attack


def renamed(name: str) -> Attack:
    """Return what gives the latest checkpoint another name."""
    return lambda run: (run / "checkpoints" / "4").rename(run / "checkpoints" / name) and None


def manifest_pointing_out(run: Path) -> None:
    """List a file outside the folder, with its right digest."""
    manifest = run / "checkpoints" / "4" / "manifest.json"
    told = json.loads(manifest.read_text())
    told["files"]["../../../outside/canary"] = {"size": 8, "sha256": "0" * 64}
    manifest.write_text(json.dumps(told))


def sparse(run: Path) -> None:
    """Add a file of 200 GB to a checkpoint, which takes no space."""
    with (run / "checkpoints" / "4" / "policy" / "d" / "huge").open("wb") as file:
        file.truncate(200 << 30)


PICKLE = pickle.dumps(Payload())
LAYERS = "policy_hidden_sizes"
POLICY = "checkpoints/4/policy"

REFUSED: dict[str, Attack] = {
    "pickle as config.json": replaced("config.json", PICKLE),
    "pickle as task.json": replaced("task.json", PICKLE),
    "pickle as metadata of the policy": replaced(f"{POLICY}/_METADATA", PICKLE),
    "pickle as arrays of the policy": replaced(f"{POLICY}/manifest.ocdbt", PICKLE),
    "link as config.json": linked("config.json"),
    "link as task.json": linked("task.json"),
    "link as metrics.jsonl": linked("metrics.jsonl"),
    "link as checkpoints": linked("checkpoints"),
    "link as the latest checkpoint": linked("checkpoints/4"),
    "link in the latest checkpoint": linked(f"{POLICY}/manifest.ocdbt"),
    "link as tensorboard": linked("tensorboard"),
    "link as quarantine": linked("quarantine"),
    "link as .lock": linked(".lock"),
    "link as the next config.json": linked("config.tmp"),
    "hard link as .lock": linked(".lock", lambda link, target: os.link(target, link)),
    "pipe as config.json": pipe("config.json"),
    "pipe as metrics.jsonl": pipe("metrics.jsonl"),
    "pipe in the latest checkpoint": pipe(f"{POLICY}/_METADATA"),
    "a million layers": setting("network", LAYERS, [1] * 300_000),
    "a layer of a trillion units": setting("network", LAYERS, [10**12]),
    "wide layers": setting("network", LAYERS, [65536] * 64),
    "observations without number": edited("task.json", lambda data: data.__setitem__("observation_size", 10**13)),
    "a negative observation size": edited("task.json", lambda data: data.__setitem__("observation_size", -1)),
    "no actions": edited("task.json", lambda data: data.update(action_low=[], action_high=[])),
    "NaN in the configuration": replaced("config.json", json.dumps({"seed": float("nan")})),
    "infinity as a number": replaced("config.json", '{"seed": 1e999}'),
    "a number of a million digits": replaced("config.json", '{"seed": ' + "9" * 900_000 + "}"),
    "deep configuration": replaced("config.json", "[" * 400_000),
    "deep task": replaced("task.json", '{"a":' * 150_000),
    "deep metadata": replaced(f"{POLICY}/_METADATA", '{"a":' * 150_000),
    "deep manifest": lambda run: (run / "checkpoints/4/manifest.json").write_text("[" * 400_000) and None,
    "deep metrics": replaced("metrics.jsonl", "[" * 400_000 + "\n"),
    "a configuration of gigabytes": lambda run: os.truncate(run / "config.json", 4 << 30),
    "an unknown field": edited("config.json", lambda data: data.update({"__class__": "os.system"})),
    "a wrong type": setting("rollout", "num_envs", {"$ref": "file:///etc/passwd"}),
    "text for a number in the metrics": replaced("metrics.jsonl", '{"seed": 0, "iteration": 1, "kl_mean": "x"}\n'),
    "a manifest that points out": manifest_pointing_out,
    "a sparse file of 200 GB": sparse,
    "another checkpoint's name": renamed("9"),
    "another tree in the metadata": edited(
        f"{POLICY}/_METADATA", lambda data: data["tree_metadata"].pop(next(iter(data["tree_metadata"])))
    ),
}
"""Folders that something of `touch` must refuse."""

HARMLESS: dict[str, Attack] = {
    "a name outside": lambda run: (run / "checkpoints" / "..4").mkdir(),
    "a name with a zero": lambda run: shutil.copytree(run / "checkpoints/4", run / "checkpoints/04") and None,
    "a name in other digits": lambda run: shutil.copytree(run / "checkpoints/4", run / "checkpoints/４") and None,
    "a very long number": lambda run: (run / "checkpoints" / ("9" * 200)).mkdir(),
    "another shape in what Orbax notes of the writing": edited(
        f"{POLICY}/array_metadatas/process_0",
        lambda data: data["array_metadatas"][0]["array_metadata"].__setitem__("write_shape", [2**40]),
    ),
    "a pickle beside the rest": lambda run: (run / "checkpoints" / "4.pkl").write_bytes(PICKLE) and None,
}
"""Folders in which what is wrong has no meaning."""


def touch(run: Path) -> list[UserError]:
    """Do with a folder all that is done with folders, and return what was refused."""
    refusals: list[UserError] = []

    def attempt(action: Callable[[], Any]) -> None:
        try:
            action()
        except UserError as error:
            refusals.append(error)

    def draw() -> None:
        folder = RunFolder(run)
        group_runs([RecordedRun("name", folder.read_config(), folder.read_metrics())])

    attempt(lambda: Run.load(run).policy("latest"))
    attempt(lambda: Run.load(run).policy("best"))
    attempt(draw)
    # Killed after its last checkpoint, as it seems: a resume reads everything.
    (run / "summary.json").unlink()
    attempt(lambda: train_tiny(run, config=TINY, resume=True))
    return refusals


@pytest.fixture
def hostile(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "canary").write_text("precious")
    return tmp_path / "run"


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_nothing_outside_is_touched(name: str, hostile: Path) -> None:
    REFUSED[name](hostile)
    outside = contents(hostile.parent / "outside")
    refusals = touch(hostile)
    assert refusals or (hostile / "quarantine").is_dir(), "nobody minded"
    for refusal in refusals:
        sentence = str(refusal)
        assert len(sentence) < 1000 and sentence.isprintable(), sentence[:2000]
    assert contents(hostile.parent / "outside") == outside
    assert sorted(path.name for path in hostile.parent.iterdir()) == ["outside", "run"]
    assert not (Path(sys.prefix) / "owned").exists()


@pytest.mark.parametrize("name", HARMLESS)
def test_it_means_nothing(name: str, hostile: Path, trained: Path) -> None:
    HARMLESS[name](hostile)
    assert touch(hostile) == []
    ours, theirs = Run.load(hostile), Run.load(trained)
    assert ours.metrics() == theirs.metrics()
    assert_bit_identical(ours.policy().parameters, theirs.policy().parameters)
    assert not (Path(sys.prefix) / "owned").exists()


def test_a_reader_follows_no_link_either(hostile: Path) -> None:
    linked("checkpoints")(hostile)
    with pytest.raises(UserError, match="is a link"):
        Run.load(hostile).policy("latest")


def test_an_environment_named_in_a_folder_is_never_imported(hostile: Path) -> None:
    """Not by opening it, and not by resuming it without giving the environment again."""
    module = "tests_never_imported_by_a_run_folder"
    edited("config.json", lambda data: data.__setitem__("environment", f"{module}:Environment"))(hostile)
    with pytest.raises(UserError, match="environment"):
        Run.load(hostile).task()
    touch(hostile)
    assert module not in sys.modules


def test_what_a_folder_says_of_machines_and_programs_is_not_followed(hostile: Path) -> None:
    """The compilation cache holds executable code, and a coordinator is another machine: the command line's to name."""
    setting("runtime", "compilation_cache", str(hostile / "cache"))(hostile)
    setting("runtime", "coordinator", "192.0.2.1:80")(hostile)
    runtime = RunFolder(hostile).read_config().runtime
    assert (runtime.compilation_cache, runtime.coordinator) == ("auto", None)


class Opened:
    """Sees whatever opens the files of folders, Python or not (inotify).

    Args:
        folders: to watch.
    """

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self.files: list[str] = []
        """Names of those opened, once the block is left."""

    def __enter__(self) -> Opened:
        system = ctypes.CDLL(None, use_errno=True)
        self._descriptor = system.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0
        for folder in self._folders:
            assert system.inotify_add_watch(self._descriptor, os.fsencode(folder), _OPENED) >= 0
        return self

    def __exit__(self, *_: object) -> None:
        events = b""
        with contextlib.suppress(BlockingIOError):
            while read := os.read(self._descriptor, 1 << 16):
                events += read
        os.close(self._descriptor)
        while events:
            _, _, _, length = struct.unpack("iIII", events[:16])
            self.files.append(events[16 : 16 + length].rstrip(b"\0").decode())
            events = events[16 + length :]


_OPENED = 0x20


STORED = "statistics.mean"
GIB = 1 << 30
CONTEXT = tensorstore.Context()


def zeros(count: int) -> bytes:
    """Return a Zstandard frame that unpacks to so many zeros: 4 bytes for every 128 KiB (RFC 8878, 3.1.1.2)."""
    frame, block = bytearray(b"\x28\xb5\x2f\xfd\x00\x38"), 1 << 17
    for left in range(count, 0, -block):
        frame += (min(left, block) << 3 | 1 << 1 | (left <= block)).to_bytes(3, "little") + b"\0"
    return bytes(frame)


def store_of(folder: Path, **options: Any) -> tensorstore.KvStore:
    """Return TensorStore's index of a folder."""
    return tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}, **options}, context=CONTEXT
    ).result()


def stored(change: Callable[[Any], Any]) -> Attack:
    """Return what changes the stored bytes of arrays."""

    def attack(run: Path) -> None:
        change(store_of(run / POLICY))
        reseal(run)

    return attack


def described(text: str | None = None, data: bytes | None = None, /, **fields: Any) -> Attack:
    """Return what changes the description of an array, and perhaps its only chunk.

    Args:
        text: put before the description's last brace.
        data: of the chunk.
        fields: of the description.
    """

    def change(store: Any) -> None:
        told = json.dumps({**json.loads(store[f"{STORED}/.zarray"]), **fields})
        store[f"{STORED}/.zarray"] = (f"{told[:-1]}, {text}}}" if text else told).encode()
        if data is not None:
            store[f"{STORED}/0"] = data

    return stored(change)


def without(key: str) -> Attack:
    """Return what removes a part of an array."""
    return stored(lambda store: store.write(f"{STORED}/{key}", None).result())


def put(key: str, data: bytes) -> Attack:
    """Return what replaces a part of an array."""
    return stored(lambda store: store.write(f"{STORED}/{key}", data).result())


def entry(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Attack:
    """Return what changes Orbax's entry of an array, given the metadata and the entry."""
    return edited(f"{POLICY}/_METADATA", lambda told: change(told, told["tree_metadata"][f"('{STORED}',)"]) and None)


def called(name: str, **flags: bool) -> Attack:
    """Return what calls an array something else."""
    return entry(lambda told, entry: (entry["key_metadata"][0].update(key=name), told.update(flags)))


def of_kind(kind: str, skip: bool = False) -> Attack:
    """Return what says that an array is something else."""
    return entry(lambda told, entry: entry["value_metadata"].update(value_type=kind, skip_deserialize=skip))


def added(name: str, content: bytes | str) -> Attack:
    """Return what adds a file to the policy."""
    return replaced(f"{POLICY}/{name}", content)


def in_each_array(change: Callable[[dict[str, Any]], Any]) -> Attack:
    """Return what changes all of Orbax's notes of the writing."""

    def edit(told: Any) -> None:
        for one in told["array_metadatas"]:
            change(one["array_metadata"])

    return edited(f"{POLICY}/array_metadatas/process_0", edit)


def index_of_gigabytes(run: Path) -> None:
    """Make an index whose root holds 300 values of a megabyte, all zeros: 10 KB on the disk."""
    shutil.rmtree(run / POLICY / "d")
    (run / POLICY / "manifest.ocdbt").unlink()
    config = {"compression": {"id": "zstd"}, "max_inline_value_bytes": 1 << 20, "max_decoded_node_bytes": 1 << 31}
    transaction = tensorstore.Transaction(atomic=True)
    store = store_of(run / POLICY, config=config).with_transaction(transaction)
    for number in range(300):
        store[f"{number}"] = bytes(1 << 20)
    transaction.commit_sync()
    assert sum(path.stat().st_size for path in (run / POLICY / "d").iterdir()) < 50_000
    reseal(run)


def index_pointing_out(run: Path) -> None:
    """Move the arrays out of the folder, and make the index point to where they are, with its right checksum."""
    out = "../../../../outside/"
    policy, inside = run / POLICY, "a" * (len(out) - 1)
    arrays = {key: store_of(policy)[key] for key in store_of(policy).list().result()}
    shutil.rmtree(policy / "d")
    (policy / "manifest.ocdbt").unlink()
    (policy / inside).mkdir()
    plain = {"compression": None, "max_inline_value_bytes": 0}
    moved, index = store_of(policy / inside, config=plain), store_of(policy, config=plain)
    for key, value in arrays.items():
        moved[key] = value
    transaction = tensorstore.Transaction(atomic=True)
    moved.experimental_copy_range_to(index.with_transaction(transaction)).result()
    transaction.commit_sync()
    (node,) = (policy / "d").iterdir()
    told = node.read_bytes()[:-4].replace(f"{inside}/".encode(), out.encode())
    assert out.encode() in told
    node.write_bytes(told + crc32c(told).to_bytes(4, "little"))
    for path in (policy / inside).iterdir():
        shutil.move(path, run.parent / "outside" / path.name)
    (policy / inside).rmdir()
    reseal(run)


DEEP = "[" * 100_000 + "]" * 100_000
ARRAYS: dict[str, tuple[Attack, str | None]] = {
    # The description of an array
    "another dtype": (described(dtype="<f8"), "statistics.mean is float64[2], not float32[2]"),
    "dtype of objects": (described(dtype="|O"), "not stored as our arrays are"),
    "dtype of records": (described(dtype=[["a", "<f4"], ["b", "<f4"]]), "not stored as our arrays are"),
    "dtype of gigabytes": (described(dtype="|V2000000000"), "not stored as our arrays are"),
    "another shape": (described(shape=[3], chunks=[3]), "statistics.mean is float32[3], not float32[2]"),
    "a shape of 2^62": (described(shape=[2**62]), "statistics.mean is float32[4611686018427387904]"),
    "a shape below zero": (described(shape=[-2]), "not stored as our arrays are"),
    "a shape of forty axes": (described(shape=[1] * 40, chunks=[1] * 40), "statistics.mean is float32[1, 1,"),
    "a shape in words": (described(shape="2"), "cannot be read"),
    "a shape that is infinite": (described('"shape": [1e999]'), "not valid JSON"),
    "a shape of 5,000 digits": (described(f'"shape": [{"9" * 5000}]'), "not valid JSON"),
    "chunks of 40 GB": (described(None, zeros(40 * GIB), chunks=[10 * GIB]), "not stored as our arrays are"),
    "chunks of nothing": (described(chunks=[0]), "not stored as our arrays are"),
    "chunks below zero": (described(chunks=[-1]), "not stored as our arrays are"),
    "a chunk that unpacks to 40 GB": (put("0", zeros(40 * GIB)), "cannot be read"),
    "a chunk that is no chunk": (put("0", b"garbage"), "cannot be read"),
    "a chunk that is a pickle": (put("0", PICKLE), "cannot be read"),
    "a chunk missing": (without("0"), "cannot be read"),
    "the description missing": (without(".zarray"), "statistics.mean is missing"),
    "a description that is a pickle": (put(".zarray", PICKLE), "cannot be read"),
    "a description of megabytes": (put(".zarray", b" " * (8 << 20)), "absurdly long"),
    "a deep description": (put(".zarray", DEEP.encode()), "absurdly long"),
    "a deep dtype": (described(f'"dtype": {DEEP[75_000:125_000]}'), "not valid JSON"),
    "a deep filling": (described(f'"fill_value": {DEEP[75_000:125_000]}'), "not valid JSON"),
    "a deep field more": (described(f'"more": {DEEP[75_000:125_000]}'), "not valid JSON"),
    "a filling that is not a number": (described(fill_value="NaN"), "not stored as our arrays are"),
    "filters": (described(filters=[{"id": "pickle"}]), "not stored as our arrays are"),
    "a compressor that is a pickle": (described(compressor={"id": "pickle"}), "cannot be read"),
    # The index
    "an index of gigabytes": (index_of_gigabytes, "index of arrays unpacks to more"),
    "an index pointing out": (index_pointing_out, "cannot be read"),
    "an index that is empty": (added("manifest.ocdbt", b""), "cannot be read"),
    # Orbax's metadata
    "a name outside": (called("../../../../outside/canary"), "../../../../outside/canary differs"),
    "a name outside as files": (called("../../../../outside", use_ocdbt=False), "another kind of checkpoint"),
    "a name from the root": (called("/etc/passwd"), "/etc/passwd differs"),
    "a name of several lines": (called("a\nb\x1b[2J"), "a\\nb\\x1b[2J differs"),
    "arrays as files": (entry(lambda told, entry: told.update(use_ocdbt=False)), "another kind of checkpoint"),
    "arrays of another version": (entry(lambda told, entry: told.update(use_zarr3=True)), "another kind"),
    "zeros for what is missing": (
        entry(lambda told, entry: told.update(store_array_data_equal_to_fill_value=False)),
        "another kind of checkpoint",
    ),
    "an array more": (
        entry(
            lambda told, entry: told["tree_metadata"].update(
                more=entry | {"key_metadata": [{"key": "more", "key_type": 2}]}
            )
        ),
        "more differs",
    ),
    "a key in two parts": (
        entry(lambda told, entry: entry["key_metadata"].append({"key": "x", "key_type": 2})),
        "cannot be read",
    ),
    "a billionth place in a list": (
        entry(lambda told, entry: entry["key_metadata"][0].update(key="1000000000", key_type=1)),
        "another kind of checkpoint",
    ),
    "an array that is text": (of_kind("string"), "another kind of checkpoint"),
    "an array that is nothing": (of_kind("None", skip=True), "another kind of checkpoint"),
    "an array of a module": (of_kind("os.system"), "another kind of checkpoint"),
    "keys of a module": (in_each_array(lambda one: one.update(ext_metadata={"random_key_impl": "os"})), "cannot be"),
    "keys for numbers": (in_each_array(lambda one: one.update(ext_metadata={"random_key_impl": "rbg"})), "cannot be"),
    "deep notes": (replaced(f"{POLICY}/array_metadatas/process_0", DEEP), "not valid JSON"),
    "an older kind of checkpoint": (added("checkpoint", b"\x80"), "another kind of checkpoint"),
    "a pickle as that": (added("checkpoint", PICKLE), "another kind of checkpoint"),
    # What nobody reads
    "notes of another process": (added("array_metadatas/evil", "{}"), None),
    "deep sharding": (replaced(f"{POLICY}/_sharding", DEEP), None),
    "a sharding of a trillion devices": (replaced(f"{POLICY}/_sharding", '{"a": [1000000000000]}'), None),
    "a module in the metadata": (
        entry(
            lambda told, entry: told.update(
                value_metadata_tree='{"category": "namedtuple", "module": "os", "clazz": "system", "entries": []}'
            )
        ),
        None,
    ),
    "pickles by every name": (
        lambda run: (
            [added(name, PICKLE)(run) for name in ("checkpoint.pkl", "state.pickle", "a.npy", "x.msgpack")] and None
        ),
        None,
    ),
    "a handler of a module": (added("_CHECKPOINT_METADATA", '{"item_handlers": {"policy": "os.system"}}'), None),
    "a pickle for a handler": (added("_CHECKPOINT_METADATA", PICKLE), None),
}
"""Checkpoints whose manifests are right, and whose arrays are made to do harm; and what the refusal says."""


def read_each(folders: list[str]) -> None:
    """Open the policies of runs and print a line each; in a process of its own, with 8 GB of addresses."""
    resource.setrlimit(resource.RLIMIT_AS, (8 * GIB, 8 * GIB))
    for folder in folders:
        peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        told: dict[str, Any] = {}
        try:
            told["mean"] = np.asarray(Run.load(folder).policy("latest").statistics.mean).tolist()
        except UserError as error:
            told["refusal"] = str(error)
        told["seconds"] = time.monotonic() - start
        told["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10
        print(json.dumps(told), flush=True)


@pytest.fixture(scope="module")
def read(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what came of opening each of `ARRAYS`: a process that dies takes only one of them with it."""
    place, left, came = tmp_path_factory.mktemp("arrays"), list(ARRAYS), {}
    for number, (attack, _) in enumerate(ARRAYS.values()):
        (place / f"{number}" / "outside").mkdir(parents=True)
        shutil.copytree(trained, place / f"{number}" / "run")
        attack(place / f"{number}" / "run")
    before = contents(place)
    with Opened(*place.glob("*/outside")) as opened:
        while left:
            folders = [str(place / f"{list(ARRAYS).index(name)}" / "run") for name in left]
            code = f"import tests.conftest; from {__name__} import read_each; read_each({folders!r})"
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
                cwd=Path(__file__).parents[2],
            )
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            came |= dict(zip(left, lines, strict=False))
            if len(lines) < len(left):
                came[left[len(lines)]] = {"refusal": f"the process died: {done.returncode} {done.stderr[-2000:]}"}
            left = left[len(lines) + 1 :]
    assert opened.files == []
    assert contents(place) == before
    return came


@pytest.mark.parametrize("name", ARRAYS)
def test_a_checkpoint_made_to_do_harm(name: str, read: dict[str, dict[str, Any]], trained: Path) -> None:
    came, wanted = read[name], ARRAYS[name][1]
    if wanted is None:
        assert came.get("mean") == np.asarray(Run.load(trained).policy().statistics.mean).tolist(), came
    else:
        sentence = came.get("refusal", f"nothing was refused: {came}")
        assert wanted in sentence and "checkpoint" in sentence
        assert sentence.isprintable() and len(sentence) < 1000
    assert came["seconds"] < 10.0
    assert came["megabytes"] < 150


def test_what_is_opened_is_seen(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with Opened(tmp_path) as opened:
        (tmp_path / "file").read_text()
    assert opened.files == ["file"]


def record(**values: Any) -> Attack:
    """Return what adds a line to the metrics: the last one with other values."""

    def attack(run: Path) -> None:
        file = run / "metrics.jsonl"
        text = file.read_text()
        file.write_text(f"{text}{json.dumps({**json.loads(text.splitlines()[-1]), **values})}\n")

    return attack


def lacking(name: str) -> Attack:
    """Return what takes a quantity away from every line."""

    def attack(run: Path) -> None:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [json.dumps({key: row[key] for key in row if key != name}) for row in rows]
        (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))

    return attack


def line(text: str) -> Attack:
    """Return what adds a line to the metrics."""
    return lambda run: (run / "metrics.jsonl").open("a").write(f"{text}\n") and None


NUMBERS = ("env_steps", "wall_time_s", "episodes", "episode_return_mean")
METRICS: dict[str, Attack] = {
    **{f"no {name}": lacking(name) for name in NUMBERS},
    **{f"text for {name}": record(**{name: "1"}) for name in NUMBERS},
    **{f"a list for {name}": record(**{name: [1]}) for name in NUMBERS},
    **{f"names for {name}": record(**{name: {"a": 1}}) for name in NUMBERS},
    "an iteration below zero": record(iteration=-1),
    "an iteration beyond 64 bits": record(iteration=2**63),
    "an iteration of 5,000 digits": line('{"seed": 0, "iteration": ' + "9" * 5000 + "}"),
    "half an iteration": record(iteration=1.5),
    "an iteration that is true": record(iteration=True),
    "a seed below zero": record(seed=-1),
    "a time without end": line('{"seed": 0, "iteration": 4, "wall_time_s": 1e999}'),
    "a return beyond a float32": record(episode_return_mean=1e308),
    "names in names": record(environment={"a": {"b": 1}}),
    "deep names": line('{"seed": 0, "iteration": 4, "environment": ' + '{"a":' * 50_000 + "1" + "}" * 50_001),
    "a name of 100,000 characters": record(**{"n" * 100_000: 1.0}),
    "very many names": record(**{f"n{number}": 1.0 for number in range(2000)}),
    "very many names of an environment": record(environment={f"n{number}": 1.0 for number in range(2000)}),
    "a word of 100,000 characters": record(step_outcome="w" * 100_000),
    "a line of megabytes": line('{"seed": 0, "iteration": 4, "a": 1' + " " * (2 << 20) + "}"),
    "a line of 900 MB of nothing": lambda run: os.truncate(run / "metrics.jsonl", 900 << 20),
    "no text": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n") and None,
    "a pickle": lambda run: (run / "metrics.jsonl").write_bytes(PICKLE + b"\n") and None,
}
"""Metrics that nobody can draw. What is wrong in them may be nothing that a comparison reads."""


def draw(run: Path) -> None:
    """Draw a run's curve, and write its table, beside it."""
    folder = RunFolder(run)
    groups = group_runs([RecordedRun(str(run), folder.read_config(), folder.read_metrics())])
    plot_groups(groups, run.parent / "curve.png", table=run.parent / "curve.csv")


def compare_with(other: Path, run: Path) -> None:
    """Compare two runs, in lines that a terminal can bear."""
    assert all(told.isprintable() for told in compare(RunFolder(other), RunFolder(run)).report())


def bounded(action: Callable[[], Any]) -> bool:
    """Return whether an action was refused; how must be one line, and soon."""
    start = time.monotonic()
    try:
        action()
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return True
    finally:
        assert time.monotonic() - start < 20.0
    return False


@pytest.mark.parametrize("name", METRICS)
def test_metrics_that_nobody_can_draw(name: str, hostile: Path, trained: Path) -> None:
    """A plot refuses them, a comparison may, and a resume leaves out what it cannot use, and says so."""
    METRICS[name](hostile)
    assert bounded(lambda: draw(hostile))
    bounded(lambda: compare_with(trained, hostile))
    (hostile / "summary.json").unlink()
    if not bounded(lambda: train_tiny(hostile, config=override(TINY, total_steps=5 * 64), resume=True)):
        draw(hostile)
        assert Run.load(hostile).summary["iterations"] == 5


def spoiled(field: str, value: Any) -> Attack:
    """Return what sets a field, wherever it is, in the configurations of the run and of its checkpoints."""

    def edit(told: dict[str, Any]) -> None:
        for part in (told, *(inner for inner in told.values() if isinstance(inner, dict))):
            part.update({field: value} if field in part else {})

    def attack(run: Path) -> None:
        edited("config.json", edit)(run)
        for checkpoint in ("2", "4"):
            edited(f"checkpoints/{checkpoint}/config/metadata", edit)(run)

    return attack


CONFIGURATIONS: dict[str, Attack] = {
    "two billion seeds": spoiled("num_seeds", 2**31 - 1),
    "a million devices": spoiled("cpu_devices", 10**6),
    "a layer in a billion": spoiled("critic_hidden_sizes", [2**16] * 3),
    "two billion environments": spoiled("num_envs", 2**31 - 1),
    "two billion episodes in the end": spoiled("final_evaluation_episodes", 2**31 - 1),
    "steps beyond all counting": spoiled("total_steps", 10**19),
    "a rate that is infinite": replaced("config.json", '{"max_kl": 1e400}'),
    "a task of a million characters": spoiled("task", "t" * 1_000_000),
    "a task of several lines": spoiled("task", "hopper\n\x1b[2Jtrpo-brax: all is well"),
    "an environment with a formula": spoiled("environment", "$\\frac{$:World"),
    "an environment of several lines": spoiled("environment", "a:B\nc"),
    "a backend of lists": spoiled("backend", json.loads("[" * 40 + "]" * 40)),
    "a name of several lines": edited("config.json", lambda told: told.update({"a\n\x1b[2J" * 1000: 1})),
    "a directory for a text": spoiled("compilation_cache", ["/tmp"]),
    "a million layers": spoiled("policy_hidden_sizes", [8] * 100_000),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_made_to_do_harm(name: str, hostile: Path, trained: Path) -> None:
    """Whoever resumes takes the configuration from the folder, as the command line does."""
    CONFIGURATIONS[name](hostile)
    (hostile / "summary.json").unlink()
    before = contents(hostile)

    def resume() -> None:
        train_tiny(hostile, config=RunFolder(hostile).read_config(), resume=True)

    assert bounded(resume)
    bounded(lambda: draw(hostile))
    bounded(lambda: compare_with(trained, hostile))
    bounded(lambda: Run.load(hostile).policy())
    assert {key: what for key, what in contents(hostile).items() if key in before} == before


@pytest.mark.parametrize(
    "attack",
    [
        *(setting("runtime", "compilation_cache", name) for name in ("cache", "/tmp/cache", "~/.ssh")),
        *(setting("runtime", "coordinator", name) for name in ("192.0.2.1:80", "127.0.0.1:1")),
        setting("runtime", "num_processes", 2),
        setting("runtime", "process_id", 1),
    ],
)
def test_a_resume_joins_nobody_and_executes_nothing_by_what_a_folder_says(
    attack: Attack, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of compiled programs is code, and its directory would be made; a coordinator is another machine."""
    monkeypatch.chdir(hostile.parent)
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: pytest.fail("joined"))
    attack(hostile)
    before, cache = sorted(hostile.parent.iterdir()), jax.config.jax_compilation_cache_dir
    asked: list[Config] = []
    monkeypatch.setattr("trpo_brax.training.train", lambda config, **_: asked.append(config) or Run.load(hostile))
    assert main(["train", "--resume", "--run-dir", str(hostile), "--environment", HISTORY]) == 0
    assert asked == [TINY]
    train_tiny(hostile, config=RunFolder(hostile).read_config(), resume=True)
    assert sorted(hostile.parent.iterdir()) == before and jax.config.jax_compilation_cache_dir == cache


def deep_folders(run: Path) -> None:
    """Nest a thousand folders, each of which can be entered only from the one above."""
    here = os.getcwd()
    os.chdir(run)
    for _ in range(1000):
        os.mkdir("n")
        os.chdir("n")
    os.chdir(here)


PLACES: dict[str, tuple[Attack, str]] = {
    "a name of several lines": (
        lambda run: (run / "evil\nWarning: all is well\x1b[2J").symlink_to("/etc"),
        "evil\\nWarning: all is well\\x1b[2J in it is a link",
    ),
    "a very long name": (lambda run: (run / ("n" * 255)).symlink_to("/etc"), "is a link"),
    "a thousand folders in each other": (deep_folders, "levels"),
    "a file for checkpoints": (lambda run: in_place_of_a_folder(run / "checkpoints"), "checkpoints in it is no folder"),
    "a file for tensorboard": (lambda run: in_place_of_a_folder(run / "tensorboard"), "tensorboard in it is no folder"),
    "a link as dumps": (linked("dumps"), "dumps in it is a link"),
    "a pipe as .lock": (lambda run: os.mkfifo(run / ".lock"), ".lock in it is no plain file"),
    "a link as what summary.json is written through": (linked("summary.tmp"), "summary.tmp in it is a link"),
    "a hard link as the picture": (
        linked("learning_curve.png", lambda link, target: os.link(target, link)),
        "learning_curve.png in it is a link",
    ),
}
"""What a resume refuses before it writes anything."""


def in_place_of_a_folder(path: Path) -> None:
    """Put a file where a folder was."""
    shutil.rmtree(path)
    path.write_text("file")


@pytest.mark.parametrize("name", PLACES)
def test_a_resume_writes_nowhere_else(name: str, hostile: Path) -> None:
    attack, wanted = PLACES[name]
    attack(hostile)
    (hostile / "summary.json").unlink()
    outside = contents(hostile.parent / "outside")
    with pytest.raises(UserError) as caught:
        train_tiny(hostile, config=override(TINY, total_steps=5 * 64), resume=True)
    sentence = str(caught.value)
    assert wanted in sentence and sentence.isprintable() and len(sentence) < 1000
    assert contents(hostile.parent / "outside") == outside


@pytest.mark.parametrize("file", ["provenance.json", "summary.json", "task.json"])
@pytest.mark.parametrize(
    "content",
    ["[]", "5", '"x"', "null", "{}", '{"a": 1e999}', "9" * 5000, "[" * 400 + "]" * 400, '{"earlier": 5, "git": [1]}'],
    ids=range(9),
)
def test_files_of_other_types_cost_a_resume_nothing(file: str, content: str, hostile: Path, trained: Path) -> None:
    """They are written anew, by a run that goes on; whoever only reads refuses them."""
    (hostile / file).write_text(content)
    bounded(lambda: compare_with(trained, hostile))
    bounded(lambda: Run.load(hostile).policy())
    if not bounded(lambda: train_tiny(hostile, resume=True)):
        Run.load(hostile).policy()
        compare_with(trained, hostile)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dump of a state, with a batch of one number."""
    program = tiny_program()
    folder = RunFolder(tmp_path_factory.mktemp("dumped") / "run")
    folder.create(TINY)
    write_task(folder, program.task)
    batch: Any = {"number": np.zeros(1, np.float32)}
    return write_dump(folder, program.initial_state(), batch, iteration=3, seed=0, seen="something")


def of_dump(change: Callable[[Path], Any]) -> Attack:
    """Return what changes a dump, with a manifest to match."""

    def attack(dump: Path) -> None:
        change(dump)
        write_manifest(dump, {})

    return attack


def of_dump_json(**values: Any) -> Attack:
    """Return what changes what a dump says of itself."""

    def change(dump: Path) -> None:
        told = json.loads((dump / "dump.json").read_text())
        (dump / "dump.json").write_text(json.dumps({**told, **values}))

    return of_dump(change)


DUMPS: dict[str, tuple[Attack, str | None]] = {
    "sound": (lambda dump: None, None),
    "words of several lines": (of_dump_json(seen="a\n\x1b[2J" * 10_000), None),
    "another seed": (of_dump_json(seed=1), "the run has no seed 1"),
    "a seed in words": (of_dump_json(seed="one"), "not the description of a dump"),
    "an iteration in lists": (of_dump_json(iteration=[1]), "not the description of a dump"),
    "an infinite iteration": (of_dump(lambda dump: (dump / "dump.json").write_text('{"iteration": 1e999}')), "JSON"),
    "a deep description": (of_dump(lambda dump: (dump / "dump.json").write_text("[" * 100_000)), "not valid JSON"),
    "a pickle for a description": (of_dump(lambda dump: (dump / "dump.json").write_bytes(PICKLE)), "dump.json"),
    "a pickle for a configuration": (of_dump(lambda dump: (dump / "config.json").write_bytes(PICKLE)), "config.json"),
    "no configuration": (of_dump(lambda dump: (dump / "config.json").unlink()), "no config.json"),
    "no state": (of_dump(lambda dump: shutil.rmtree(dump / "state")), "cannot be read"),
    "the batch for the state": (
        of_dump(lambda dump: (shutil.rmtree(dump / "state"), (dump / "batch").rename(dump / "state"))),
        "does not belong to this configuration",
    ),
    "a link in it": (lambda dump: (dump / "state" / "more").symlink_to("/etc"), "state/more is a link"),
    "a pipe in it": (lambda dump: os.mkfifo(dump / "state" / "more"), "state/more is no plain file"),
    "a byte of the state": (
        lambda dump: (dump / "state" / "manifest.ocdbt").write_bytes(b"x"),
        "state/manifest.ocdbt has 1 bytes",
    ),
    "no manifest": (lambda dump: (dump / "manifest.json").unlink(), "without manifest.json"),
    "nothing": (lambda dump: shutil.rmtree(dump), "is not a dump"),
}


@pytest.mark.parametrize("name", DUMPS)
def test_a_dump_made_to_do_harm(name: str, dumped: Path, tmp_path: Path) -> None:
    """What `trpo-brax replay` reads before it runs anything."""
    attack, wanted = DUMPS[name]
    shutil.copytree(dumped, tmp_path / "dump")
    attack(tmp_path / "dump")
    before = sorted(tmp_path.rglob("*"))
    try:
        dump = Dump.load(tmp_path / "dump")
        state = dump.state(tiny_program())
    except UserError as error:
        sentence = str(error)
        assert wanted is not None and wanted in sentence
        assert sentence.isprintable() and len(sentence) < 1000
    else:
        assert wanted is None
        assert dump.seen.isprintable() and len(dump.seen) <= 500
        assert int(state.iteration) == 0
    assert sorted(tmp_path.rglob("*")) == before
