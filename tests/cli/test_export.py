"""trpo-brax export: the model's path on standard output, or one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from tests.deployment import conftest
from tests.tiny_environments import History
from tests.tiny_runs import HISTORY, contents
from trpo_brax.cli.export import export
from trpo_brax.errors import UserError
from trpo_brax.runs.run import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a tiny run of four iterations; tests that touch it copy it."""
    return conftest.trained(tmp_path_factory)


@pytest.fixture
def here(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a copy of the run in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.path, tmp_path / "run")
    return tmp_path


OWN = ["--environment", HISTORY]


def test_a_model_that_acts_as_the_policy(here: Path, trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(["run", *OWN]) == 0
    told = capsys.readouterr()
    assert told.out == "run/export/policy.onnx\n"
    session = onnxruntime.InferenceSession(here / "run/export/policy.onnx")
    observation = np.asarray(History().reset(jnp.array([5, 9], jnp.uint32)).obs)[None]
    (action,) = session.run(["action"], {"observation": observation})
    np.testing.assert_allclose(action, trained.policy()(jnp.asarray(observation)), atol=1e-6)


def test_where_and_which(here: Path, trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", *OWN, "--output", "out", "--format", "stablehlo", "--checkpoint", "2"]
    assert export(words) == 0
    assert capsys.readouterr().out == "out/policy.stablehlo\n"
    data = json.loads((here / "out/policy.json").read_text())
    assert (data["format"], data["checkpoint_iteration"]) == ("stablehlo", 2)
    assert data["policy_sha256"] == trained.policy(2).fingerprint()


def test_a_certificate_of_another_policy_is_told_on_standard_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "run/certificate.json").write_text(json.dumps({"policy_sha256": "0" * 64}))
    assert export(["run", *OWN]) == 0
    told = capsys.readouterr()
    assert "certificate" not in told.out and "certificate.json is left out" in told.err


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["run"], ["environment", HISTORY]),
        (["nowhere"], ["nowhere"]),
        (["run", *OWN, "--format", "pickle"], ["format", "onnx", "pickle"]),
        (["run", *OWN, "--checkpoint", "7"], ["7", "4"]),
        (["run", *OWN, "--policy-seed", "9"], ["policy_seed"]),
        (["run", *OWN, "--output", "run"], ["output run", "already used"]),
        (
            ["run", *OWN, "--output", "run/task.json/new"],
            ["output run/task.json/new cannot be written: Not a directory"],
        ),
    ],
)
def test_what_cannot_work_is_one_sentence_and_nothing_is_touched(
    words: list[str], fragments: list[str], here: Path
) -> None:
    before = contents(here)
    with pytest.raises(UserError) as refusal:
        export(words)
    sentence = str(refusal.value)
    assert refusal.value.exit_status == 2 and "\n" not in sentence and sentence.endswith(".")
    assert all(fragment in sentence for fragment in fragments), sentence
    assert contents(here) == before


def test_a_missing_package_is_named_with_what_installs_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'^onnxruntime is not installed: pip install "\.\[export\]" in a checkout\.$'):
        export(["run", *OWN])


@pytest.mark.parametrize("command", ["export", "verify"])
def test_help_comes_without_the_heavy_packages(command: str) -> None:
    code = f"""
import sys
from trpo_brax.cli.{command} import {command}
try:
    {command}(["--help"])
except SystemExit as stop:
    heavy = sorted(set(sys.modules) & {{"jax", "onnx", "onnxruntime", "jax2onnx", "scipy", "brax"}})
    sys.exit(f"{{heavy}}" if heavy else stop.code)
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"trpo-brax {command}" in done.stdout and time.monotonic() - started < 20
