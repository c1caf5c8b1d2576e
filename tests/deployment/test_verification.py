"""An export that is the policy passes; each way of not being it fails, and is called by its name."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx as onnx_package
import pytest
from onnx import numpy_helper

from tests.deployment.conftest import compiled_once
from tests.tiny_environments import History
from trpo_brax.deployment import Artifact, ArtifactError, Verification, verification, verify
from trpo_brax.deployment.formats import convert, policy_act
from trpo_brax.deployment.observations import compare_actions
from trpo_brax.deployment.statements import Certified
from trpo_brax.deployment.verification import compare_episodes
from trpo_brax.errors import CheckpointError, ConfigError, UserError
from trpo_brax.evaluation import DEFAULT_FAILURE, Episodes
from trpo_brax.policy import ObservationStatistics, Policy
from trpo_brax.randomness import Stream
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.run import Run

EPISODES = 400
"""As few as leave no doubt of a failure rate within 0.01."""


def verified(artifact: Artifact, run: Run, **options: Any) -> Verification:
    """Verify over few observations and episodes."""
    return verify(
        artifact.folder, run.path, environment=History(), **{"observations": 2000, "episodes": EPISODES, **options}
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the episodes once for all tests; those of the command line do without."""
    monkeypatch.setattr(verification, "Evaluator", compiled_once)


@pytest.fixture(scope="module")
def sound(onnx: Artifact, run: Run) -> Verification:
    """Return what is found of an export that is the policy."""
    return verified(onnx, run)


def failed(found: Verification) -> list[str]:
    """Return the names of what failed."""
    assert found.passed == (not found.to_dict()["failed"])
    return [finding.name for finding in found.findings if not finding.passed]


def evaluator(run: Run) -> Evaluator:
    """Return what runs the policy's own episodes."""
    return compiled_once(run, episodes=EPISODES, environment=History())


def altered(model: bytes, change: Callable[[onnx_package.ModelProto], None]) -> bytes:
    """Return the model changed."""
    proto = onnx_package.load(io.BytesIO(model))
    change(proto)
    return proto.SerializeToString()


def scale_last_weights(model: onnx_package.ModelProto, factor: float = 1.01) -> None:
    """Multiply the last layer's weights."""
    layer = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    for initializer in model.graph.initializer:
        if initializer.name == layer.input[1]:
            weights = numpy_helper.to_array(initializer) * np.float32(factor)
            initializer.CopyFrom(numpy_helper.from_array(weights, initializer.name))
            return
    raise AssertionError("no weights found")


def fix_batch(model: onnx_package.ModelProto) -> None:
    """Allow a batch of 1 only."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


class TestAnExportThatIsThePolicy:
    """Nothing to find."""

    @pytest.mark.parametrize("format", ["onnx", "stablehlo"])
    def test_passes(self, format: str, run: Run, sound: Verification, request: pytest.FixtureRequest) -> None:
        found = sound if format == "onnx" else verified(request.getfixturevalue(format), run)
        assert found.passed and failed(found) == []
        assert 0 <= found.max_action_difference < 1e-6
        kinds = {f"{kind}, batch {batch}" for kind in ("visited", "corner") for batch in (1, 2, 7)}
        assert found.open_loop.differences.keys() == kinds and found.open_loop.observations == 2000
        names = ["artifact_sha256", "max_action_difference", "return_mean", "failure_rate", "return_cvar"]
        assert [finding.name for finding in found.findings] == names

    def test_runs_the_same_episodes_as_the_policy(self, sound: Verification, run: Run) -> None:
        loop = sound.closed_loop
        assert loop is not None and len(loop.reference.returns) == EPISODES
        wanted = evaluator(run).run(EPISODES, stream=Stream.VERIFICATION)
        for episodes in (loop.reference, loop.exported):
            np.testing.assert_array_equal(episodes.lengths, wanted.lengths)
            np.testing.assert_allclose(episodes.returns, wanted.returns, atol=1e-4)

    def test_its_json_holds_everything(self, sound: Verification) -> None:
        data = sound.to_dict()
        assert json.loads(json.dumps(data, allow_nan=False)) == data
        assert data["passed"] is True and 0 <= data["max_action_difference"] < 1e-6
        assert data["differences"].keys() == {"return_mean", "failure_rate", "return_cvar"}
        assert data["differences"]["failure_rate"]["margin"] == 0.01 and data["episodes"] == EPISODES
        assert data["statements"] == {} and data["statements_note"] is None


class TestACorruptedExport:
    """Its SHA-256 is made to fit, so that what it does has to tell."""

    def test_altered_weights(self, onnx: Artifact, run: Run, changed: Callable[..., Artifact]) -> None:
        found = verified(changed(altered(onnx.model(), scale_last_weights)), run)
        assert "max_action_difference" in failed(found) and "artifact_sha256" not in failed(found)
        assert 1e-4 < found.max_action_difference < 0.2

    def test_very_altered_weights_fail_in_the_environment_as_well(
        self, onnx: Artifact, run: Run, changed: Callable[..., Artifact]
    ) -> None:
        model = altered(onnx.model(), lambda proto: scale_last_weights(proto, -1.0))
        assert {"max_action_difference", "return_mean", "return_cvar"} <= set(failed(verified(changed(model), run)))

    def test_normalisation_left_out(self, policy: Policy, run: Run, changed: Callable[..., Artifact]) -> None:
        statistics = ObservationStatistics(jnp.ones(()), jnp.zeros(2), jnp.ones(2))
        plain = dataclasses.replace(policy, statistics=statistics)
        assert "max_action_difference" in failed(verified(changed(convert(plain, "onnx")), run))

    def test_bounds_left_out(self, policy: Policy, run: Run, changed: Callable[..., Artifact]) -> None:
        """The last tanh, which holds the mean within the range, and the clipping after it."""

        def unbound(model: onnx_package.ModelProto) -> None:
            last = model.graph.node[-1]
            assert last.op_type == "Min" and model.graph.node[-2].op_type == "Max"
            del model.graph.node[-2:]
            model.graph.node[-1].output[0] = "action"
            *_, bend = (node for node in model.graph.node if node.op_type == "Tanh")
            for node in model.graph.node:
                for place, name in enumerate(node.input):
                    if name == bend.output[0]:
                        node.input[place] = bend.input[0]
            model.graph.node.remove(bend)

        model = altered(convert(policy, "onnx"), unbound)
        found = verified(changed(model), run)
        assert "max_action_difference" in failed(found) and found.max_action_difference > 0.01

    def test_batch_fixed_to_one(self, onnx: Artifact, run: Run, changed: Callable[..., Artifact]) -> None:
        found = verified(changed(altered(onnx.model(), fix_batch)), run)
        assert failed(found) == ["max_action_difference", "closed_loop"]
        assert found.open_loop.refused.keys() == {2, 7} and "batch of 2" in found.findings[1].sentence
        assert found.to_dict()["max_action_difference"] is None and found.to_dict()["passed"] is False

    def test_an_action_that_is_not_finite(self, onnx: Artifact, run: Run, changed: Callable[..., Artifact]) -> None:
        model = altered(onnx.model(), lambda proto: scale_last_weights(proto, float("nan")))
        found = verified(changed(model), run)
        assert "max_action_difference" in failed(found) and found.to_dict()["max_action_difference"] is None

    def test_another_file_of_the_same_policy(self, onnx: Artifact, run: Run, changed: Callable[..., Artifact]) -> None:
        """What it does is right, but it is not the file that was exported."""
        artifact = changed(artifact_sha256="0" * 64)
        assert failed(verified(artifact, run)) == ["artifact_sha256"]


class TestCertificate:
    """Its episodes, and its statements."""

    def certified(self, run: Run, folder: Path, episodes: int = EPISODES, **bounds: Any) -> Run:
        """Return a copy of the run with a certificate of its policy."""
        shutil.copytree(run.path, folder)
        declared = {
            "episodes": episodes,
            "confidence": 0.95,
            "alpha": 0.1,
            "seed": 7,
            "failure": "return < 0.3 or non-finite",
            "return_floor": -100.0,
            "return_floor_source": "assumed",
            "return_cap": 100.0,
            "return_cap_source": "observed",
        }
        kept = {
            "failure_probability_upper": 1.0,
            "return_quantile_05_lower": -50.0,
            "return_mean_lower": -50.0,
            "return_cvar_lower": None,
        }
        data = {"policy_sha256": run.policy().fingerprint(), "declared": declared, "statements": [], **kept, **bounds}
        (folder / "certificate.json").write_text(json.dumps(data))
        return Run.load(folder)

    def test_the_episodes_are_the_certificates(self, onnx: Artifact, run: Run, tmp_path: Path) -> None:
        found = verified(onnx, self.certified(run, tmp_path / "run"), episodes=None)
        assert found.passed and found.closed_loop is not None
        wanted = evaluator(run).run(EPISODES, seed=7, stream=Stream.CERTIFICATION)
        assert len(wanted.returns) == found.to_dict()["episodes"] == EPISODES
        np.testing.assert_allclose(found.closed_loop.exported.returns, wanted.returns, atol=1e-4)
        names = ["failure_probability_upper", "return_quantile_05_lower", "return_mean_lower"]
        assert [check.name for check in found.closed_loop.statements] == names
        assert found.closed_loop.statements[0].figures["measured"] == pytest.approx((wanted.returns < 0.3).mean())
        assert found.closed_loop.statements_note is None and found.to_dict()["certified"] is True

    def test_statements_that_do_not_hold_fail_by_name_and_never_of_more_episodes(
        self, onnx: Artifact, run: Run, tmp_path: Path
    ) -> None:
        """One bound that holds among them; that each fails by itself is shown where statements are tested."""
        with_certificate = self.certified(
            run, tmp_path / "run", failure_probability_upper=0.01, return_mean_lower=50.0, return_cvar_lower=0.5
        )
        found = verified(onnx, with_certificate, episodes=EPISODES + 100)
        assert failed(found) == ["failure_probability_upper", "return_mean_lower", "return_cvar_lower"]
        assert found.to_dict()["episodes"] == EPISODES

    def test_of_fewer_episodes_its_statements_are_not_checked_and_that_is_said(
        self, onnx: Artifact, run: Run, tmp_path: Path
    ) -> None:
        """A bound that no policy could keep fails nothing; the episodes are the certificate's first ones."""
        with_certificate = self.certified(run, tmp_path / "run", episodes=500, return_mean_lower=50.0)
        found = verified(onnx, with_certificate)
        data = found.to_dict()
        assert found.passed and data["statements"] == {} and data["certified"] is False
        assert data["statements_note"] == (
            "not checked: the certificate's statements come of 500 episodes, and 400 were run"
        )
        wanted = evaluator(run).run(EPISODES, seed=7, stream=Stream.CERTIFICATION)
        assert found.closed_loop is not None
        np.testing.assert_allclose(found.closed_loop.exported.returns, wanted.returns, atol=1e-4)

    def test_one_of_too_few_episodes_needs_a_wider_margin(self, onnx: Artifact, run: Run, tmp_path: Path) -> None:
        """z^2 / (20 + z^2) = 0.16112, rounded up; no more episodes can be had."""
        with_certificate = self.certified(run, tmp_path / "run", episodes=20)
        with pytest.raises(
            ConfigError, match=r"a doubt of 0\.162 about the failure rate: give --failure-margin at least 0\.162\.$"
        ):
            verified(onnx, with_certificate, episodes=None)
        found = verified(onnx, with_certificate, episodes=None, failure_margin=0.162)
        assert found.passed and len(found.to_dict()["statements"]) == 3

    def test_one_that_was_exported_with_the_policy_counts(
        self, run: Run, changed: Callable[..., Artifact], tmp_path: Path
    ) -> None:
        path = self.certified(run, tmp_path / "run", return_mean_lower=50.0).path / "certificate.json"
        certificate = json.loads(path.read_text())
        assert failed(verified(changed(certificate=certificate), run)) == ["return_mean_lower"]
        assert Certified.read(certificate) is not None
        certificate["policy_sha256"] = "0" * 64
        artifact = changed(certificate=certificate)
        assert verification._certified(artifact, run, run.policy().fingerprint()) is None


class TestRefused:
    """One sentence."""

    def test_an_export_of_another_policy(self, onnx: Artifact, run: Run) -> None:
        with pytest.raises(ArtifactError, match=r"was exported from another policy than that of checkpoint 2"):
            verified(onnx, run, checkpoint=2)

    def test_an_export_of_a_checkpoint_that_is_gone(self, run: Run, changed: Callable[..., Artifact]) -> None:
        with pytest.raises(CheckpointError, match="3"):
            verified(changed(checkpoint_iteration=3), run)

    def test_an_export_of_a_seed_that_the_run_has_not(self, run: Run, changed: Callable[..., Artifact]) -> None:
        with pytest.raises(ConfigError, match="policy_seed"):
            verified(changed(policy_seed=5), run)

    def test_a_model_that_is_none(self, run: Run, changed: Callable[..., Artifact]) -> None:
        with pytest.raises(ArtifactError, match="onnxruntime cannot load the model"):
            verified(changed(b"nothing of the sort"), run)

    @pytest.mark.parametrize(
        ("options", "remedy"),
        [
            ({"episodes": 380}, r"give --episodes at least 381 or --failure-margin at least 0\.0101"),
            ({"episodes": 30}, r"give --episodes at least 381 or --failure-margin at least 0\.114"),
            ({"failure_margin": 1e-3}, r"give --episodes at least 3,838 or --failure-margin at least 0\.00952"),
            ({"failure_margin": 1e-9}, r"give --failure-margin at least 0\.00952"),
            ({"episodes": 1, "failure_margin": 0.99}, "episodes must be at least 2"),
        ],
        ids=str,
    )
    def test_episodes_that_not_even_the_policy_itself_could_pass_with(
        self, options: dict[str, Any], remedy: str, onnx: Artifact, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By z^2 / (E + z^2) <= margin, and before anything is run."""

        def begun(*arguments: Any, **options: Any) -> Any:
            raise AssertionError("something was run")

        monkeypatch.setattr(verification, "Evaluator", begun)
        with pytest.raises(ConfigError, match=remedy) as refusal:
            verified(onnx, run, **options)
        assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")

    @pytest.mark.parametrize(
        "options", [{"margin": 0.0}, {"tolerance": float("nan")}, {"failure_margin": -1.0}, {"episodes": 0}]
    )
    def test_numbers_that_cannot_work(self, options: dict[str, float], onnx: Artifact, run: Run) -> None:
        with pytest.raises(UserError, match=next(iter(options))):
            verified(onnx, run, **options)


class TestEpisodesCompared:
    """The margins, on episodes made by hand."""

    returns = np.random.default_rng(2).normal(1000.0, 100.0, 2000)

    def compared(self, returns: np.ndarray, failures: int = 0) -> dict[str, bool]:
        """Return which comparisons pass."""
        count = len(self.returns)

        def episodes(values: np.ndarray, failures: int) -> Episodes:
            ended = np.arange(count) < failures
            return Episodes(values.astype(np.float32), np.full(count, 9, np.int32), ended, np.zeros(count, bool))

        found = compare_episodes(
            episodes(self.returns, 0),
            episodes(returns, failures),
            DEFAULT_FAILURE,
            0.05,
            margin=0.05,
            failure_margin=0.01,
        )
        return {comparison.name: comparison.passed for comparison in found}

    def test_identical(self) -> None:
        assert self.compared(self.returns) == {"return_mean": True, "failure_rate": True, "return_cvar": True}

    @pytest.mark.parametrize(
        ("count", "margin", "passes"),
        [(380, 0.01, False), (381, 0.01, True), (380, 0.0101, True), (30, 0.113, False), (30, 0.114, True)],
    )
    def test_few_identical_ones_pass_with_what_a_refusal_asks_for(
        self, count: int, margin: float, passes: bool
    ) -> None:
        none = np.zeros(count, bool)
        same = Episodes(self.returns[:count].astype(np.float32), np.full(count, 9, np.int32), none, none)
        found = compare_episodes(same, same, DEFAULT_FAILURE, 0.05, margin=0.05, failure_margin=margin)
        assert [comparison.passed for comparison in found] == [True, passes, True]

    @pytest.mark.parametrize(("shift", "passes"), [(-45.0, True), (-55.0, False), (45.0, True), (55.0, False)])
    def test_shifted(self, shift: float, passes: bool) -> None:
        found = self.compared(self.returns + shift)
        assert found == {"return_mean": passes, "failure_rate": True, "return_cvar": passes}

    @pytest.mark.parametrize(("failures", "passes"), [(8, True), (40, False)])
    def test_more_failures(self, failures: int, passes: bool) -> None:
        assert self.compared(self.returns, failures)["failure_rate"] == passes

    def test_one_catastrophe_in_a_thousand(self) -> None:
        returns = self.returns.copy()
        returns[[10, 1010]] = -5000.0
        assert self.compared(returns) == {"return_mean": True, "failure_rate": True, "return_cvar": False}


def test_the_largest_difference_of_all_is_told_in_units_of_the_range(policy: Policy) -> None:
    """One action of one observation, off by a hundredth of its range of 0.75, at one batch size alone."""
    reference = policy_act(policy)
    observations = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)

    def act(given: np.ndarray) -> np.ndarray:
        actions = reference(given).copy()
        if len(given) == 2 and (given[0] == observations[20]).all():
            actions[0] += 0.0075
        return actions

    found = compare_actions(act, reference, policy, {"visited": observations})
    assert found.largest == pytest.approx(0.01, rel=1e-3)
    assert max(found.differences, key=lambda kind: found.differences[kind]) == "visited, batch 2"
    assert found.finding(0.011).passed and not found.finding(0.009).passed
    assert not found.refused
