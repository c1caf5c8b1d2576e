"""What an export leaves, and that nothing is called one that is not the policy."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.deployment.conftest import by_hand, compiled_once
from tests.tiny_environments import History, RewardByAction
from tests.tiny_runs import TINY, contents, train_tiny
from trpo_brax.config import override
from trpo_brax.deployment import Artifact, ArtifactError, export, exporting
from trpo_brax.deployment.formats import actor
from trpo_brax.errors import CheckpointError, RunFolderError, TaskError
from trpo_brax.policy import Policy
from trpo_brax.runs.run import Run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile each checkpoint's episodes once for all exports."""
    monkeypatch.setattr(exporting, "Evaluator", compiled_once)


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Run:
    """Return a copy of the run that a test may change."""
    shutil.copytree(run.path, tmp_path / "run")
    return Run.load(tmp_path / "run")


class TestOnnx:
    """The folder, file by file."""

    def test_holds_the_model_its_description_and_the_stand_alone_check(self, onnx: Artifact) -> None:
        assert sorted(path.name for path in onnx.folder.iterdir()) == ["policy.json", "policy.onnx", "verify.py"]
        source = Path(exporting.__file__).parent / "standalone_verify.py"
        assert (onnx.folder / "verify.py").read_bytes() == source.read_bytes()

    def test_says_what_it_was_made_of(self, onnx: Artifact, run: Run, policy: Policy) -> None:
        data = json.loads((onnx.folder / "policy.json").read_text())
        assert data["artifact_sha256"] == hashlib.sha256(onnx.file.read_bytes()).hexdigest()
        assert data["policy_sha256"] == policy.fingerprint()
        manifest = run.path / "checkpoints/4/manifest.json"
        assert data["checkpoint_iteration"] == 4
        assert data["checkpoint_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
        assert data["environment"] == data["task"] == "tests.tiny_environments:History"
        assert (data["backend"], data["action_repeat"], data["control_period_seconds"]) == ("none", 2, None)
        assert data["versions"]["onnxruntime"] and data["versions"]["jax"] and data["certificate"] is None
        assert data["input"] == {"name": "observation", "dtype": "float32", "shape": ["batch", 2]}
        assert data["output"] == {"name": "action", "dtype": "float32", "shape": ["batch", 1]}

    def test_names_bounds_and_units(self, onnx: Artifact, policy: Policy) -> None:
        description = onnx.description
        assert list(description.action) == [{"name": "action[0]", "low": -0.25, "high": 0.5}]
        assert description.action_range == (0.75,)
        assert [one["name"] for one in description.observation] == ["observation[0]", "observation[1]"]
        statistics = policy.statistics
        reach = 10.0 * np.sqrt(np.asarray(statistics.squares) / np.asarray(statistics.count))
        for component, mean, distance in zip(description.observation, np.asarray(statistics.mean), reach, strict=True):
            assert (component["low"], component["high"]) == pytest.approx((mean - distance, mean + distance), rel=1e-5)

    def test_golden_pairs_are_the_policys_on_the_way_and_at_the_corners(self, onnx: Artifact, policy: Policy) -> None:
        observations, actions = onnx.description.golden_observations, onnx.description.golden_actions
        assert len(observations) == len(actions) >= 32
        np.testing.assert_allclose(actions, by_hand(policy, observations), atol=1e-5)
        assert ((actions > -0.25) & (actions < 0.5)).all() and actions.max() - actions.min() > 0.1
        assert (observations == 0).all(axis=1).any() and (np.abs(observations) > 1e30).any()
        # Of a History that is under way: its second component counts steps in eighths.
        assert np.isin(observations[:32, 1], [0.0, 0.25, 0.5, 0.75]).all() and len(np.unique(observations[:32, 1])) > 1

    def test_the_model_is_the_policy(self, onnx: Artifact, policy: Policy) -> None:
        observations = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
        found = actor(onnx.model(), "onnx")(observations)
        np.testing.assert_allclose(found, by_hand(policy, observations), atol=1e-5)


def test_stablehlo_says_how_to_run_it(stablehlo: Artifact, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(path.name for path in stablehlo.folder.iterdir()) == ["policy.json", "policy.stablehlo"]
    how = json.loads((stablehlo.folder / "policy.json").read_text())["how_to_run"]
    observation = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    scope: dict[str, Any] = {"observation": observation}
    monkeypatch.chdir(stablehlo.folder)
    exec(how, scope)
    np.testing.assert_allclose(scope["action"], by_hand(policy, observation), atol=1e-5)


def test_onnx_says_how_to_run_it(onnx: Artifact, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    observation = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    scope: dict[str, Any] = {"observation": observation}
    monkeypatch.chdir(onnx.folder)
    exec(json.loads((onnx.folder / "policy.json").read_text())["how_to_run"], scope)
    np.testing.assert_allclose(scope["action"], by_hand(policy, observation), atol=1e-5)


@pytest.mark.slow
def test_a_policy_of_one_observation_and_one_action(tmp_path: Path) -> None:
    config = override(TINY, environment="tests.tiny_environments:RewardByAction", total_steps=64)
    run = train_tiny(tmp_path / "run", environment=RewardByAction(), config=config)
    act = actor(export(run.path, environment=RewardByAction()).model(), "onnx")
    observations = np.random.default_rng(0).normal(size=(140, 1)).astype(np.float32)
    for batch in (1, 2, 7, 140):
        found = np.concatenate([act(observations[i : i + batch]) for i in range(0, 140, batch)])
        np.testing.assert_allclose(found, by_hand(run.policy(), observations), atol=1e-5)


def test_an_earlier_checkpoint_is_another_policy_in_the_run_folder_by_default(copied: Run, onnx: Artifact) -> None:
    found = export(copied, checkpoint=2, environment=History())
    assert found.folder == copied.path / "export" and found.description.checkpoint_iteration == 2
    assert found.description.policy_sha256 == copied.policy(2).fingerprint() != onnx.description.policy_sha256
    assert Run.load(copied.path).policy().fingerprint() == onnx.description.policy_sha256


@pytest.mark.usefixtures("quick")
class TestCertificate:
    """It travels with the policy it is about, and with no other."""

    def certificate(self, run: Run, **changes: Any) -> dict[str, Any]:
        """Write a certificate into a run folder and return it."""
        data = {"policy_sha256": run.policy().fingerprint(), "statements": [], "text": "as it is", **changes}
        (run.path / "certificate.json").write_text(json.dumps(data))
        return data

    def test_the_policys_own_is_carried_whole(self, copied: Run, tmp_path: Path) -> None:
        wanted = self.certificate(copied)
        found = export(copied, tmp_path / "out", environment=History())
        assert found.description.certificate == wanted and found.notes == ()
        assert json.loads((tmp_path / "out/policy.json").read_text())["certificate"] == wanted

    def test_anothers_is_left_out_and_told(self, copied: Run, tmp_path: Path) -> None:
        self.certificate(copied, policy_sha256=None)
        assert exporting.read_certificate(copied, copied.policy().fingerprint())[0] is None
        self.certificate(copied, policy_sha256="0" * 64)
        found = export(copied, tmp_path / "out", environment=History())
        assert found.description.certificate is None
        (note,) = found.notes
        assert "another policy" in note and "certificate.json" in note

    def test_one_that_is_only_declared_is_left_out_and_told(self, copied: Run) -> None:
        data = self.certificate(copied)
        del data["statements"]
        (copied.path / "certificate.json").write_text(json.dumps(data))
        certificate, notes = exporting.read_certificate(copied, data["policy_sha256"])
        assert certificate is None and "not finished" in notes[0]

    def test_a_link_is_not_followed(self, copied: Run, tmp_path: Path) -> None:
        self.certificate(copied)
        (copied.path / "certificate.json").rename(tmp_path / "elsewhere.json")
        (copied.path / "certificate.json").symlink_to(tmp_path / "elsewhere.json")
        with pytest.raises(RunFolderError, match="it is a link"):
            export(copied, tmp_path / "out", environment=History())
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
class TestRefused:
    """One sentence, before anything slow, and nothing left behind."""

    def test_a_model_that_is_not_the_policy(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        earlier = run.policy(2)
        convert = exporting.convert
        monkeypatch.setattr(exporting, "convert", lambda policy, format: convert(earlier, format))
        with pytest.raises(ArtifactError, match="the exported model is not the policy: over"):
            export(run, tmp_path / "out", environment=History())
        assert not list(tmp_path.iterdir())

    def test_a_place_in_use(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/notes.txt").write_text("mine")
        before = contents(tmp_path)
        with pytest.raises(ArtifactError, match="already used"):
            export(run, tmp_path / "out", environment=History())
        assert contents(tmp_path) == before

    def test_the_run_folders_own_place_when_it_is_a_link(self, copied: Run, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (copied.path / "export").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArtifactError, match="already used"):
            export(copied, environment=History())
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_a_checkpoint_that_is_not_there(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="3"):
            export(run, tmp_path / "out", checkpoint=3, environment=History())

    def test_an_environment_that_was_not_given(self, run: Run, tmp_path: Path) -> None:
        with pytest.raises(TaskError, match="History"):
            export(run, tmp_path / "out")

    def test_a_missing_package(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "jax2onnx", None)
        with pytest.raises(ArtifactError, match=r'pip install "\.\[export\]"'):
            export(run, tmp_path / "out", environment=History())
        assert not list(tmp_path.iterdir())
