"""Run folders made to do harm: resumed, opened, evaluated and drawn, they are refused in a sentence, or harmless."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_programs import assert_bit_identical
from tests.tiny_runs import TINY, contents, train_tiny
from trpo_brax.errors import UserError
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.manifest import write_manifest
from trpo_brax.runs.records import read_metrics
from trpo_brax.runs.run import Run
from trpo_brax.views.curves import RecordedRun, group_runs

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
        group_runs([RecordedRun("name", folder.read_config(), read_metrics(folder.metrics_file))])

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
