"""A model does what its policy does: against float64 NumPy, at every batch size and activation."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx as onnx_package
import pytest

from tests.deployment.conftest import by_hand
from trpo_brax.config import NetworkConfig
from trpo_brax.deployment.description import ArtifactError, Format
from trpo_brax.deployment.formats import actor, convert, policy_act, require
from trpo_brax.deployment.observations import corner_observations
from trpo_brax.policy import ActionBounds, ObservationStatistics, Policy, PolicySpecification

FORMATS: tuple[Format, ...] = ("onnx", "stablehlo")


def made(
    activation: Any = "tanh", bounds: ActionBounds | None = None, size: int = 5, hidden: tuple[int, ...] = (16, 16)
) -> Policy:
    """Return an untrained policy that often comes near its bounds."""
    network = NetworkConfig(
        activation=activation, policy_hidden_sizes=hidden, policy_output_scale=2.0, initial_log_std=-2.0
    )
    specification = PolicySpecification(network, size, bounds or ActionBounds((-1.0, -2.0), (1.0, 5.0)))
    generator = np.random.default_rng(1)
    moments = (np.asarray(40.0), generator.normal(size=size), 40 * generator.uniform(0.0, 9.0, size))
    statistics = ObservationStatistics(*(jnp.asarray(moment, jnp.float32) for moment in moments))
    return Policy(specification, specification.networks().initial_policy(jax.random.PRNGKey(2)), statistics)


@functools.cache
def model_of(format: Format, activation: str = "tanh") -> bytes:
    """Return such a policy's model."""
    return convert(made(activation), format)


OBSERVATIONS = (np.random.default_rng(3).standard_normal((100, 5)) * 3).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
class TestAModel:
    """Both formats."""

    def test_is_the_policy_worked_out_by_hand(self, format: Format) -> None:
        policy = made()
        act = actor(model_of(format), format)
        observations = np.concatenate([OBSERVATIONS, corner_observations(policy, 200)])
        wanted = by_hand(policy, observations)
        assert np.isclose(wanted, [1.0, 5.0], atol=0.2).any() and np.isclose(wanted, [-1.0, -2.0], atol=0.2).any()
        assert ((wanted > [-1.0, -2.0]) & (wanted < [1.0, 5.0])).all(), "a mean stays within bounds"
        for batch in (1, 2, 7, 300):
            found = np.concatenate([act(observations[i : i + batch]) for i in range(0, 300, batch)])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, atol=2e-5)

    @pytest.mark.parametrize("activation", ["tanh", "swish", "relu", "elu"])
    def test_has_every_activation(self, format: Format, activation: str) -> None:
        policy = made(activation)
        found = actor(model_of(format, activation), format)(OBSERVATIONS)
        np.testing.assert_allclose(found, policy_act(policy)(OBSERVATIONS), atol=1e-5)
        assert not np.allclose(
            found, policy_act(made("relu" if activation == "tanh" else "tanh"))(OBSERVATIONS), atol=0.1
        )

    def test_has_no_bounds_where_there_are_none(self, format: Format) -> None:
        policy = made(bounds=ActionBounds((-1.0, -np.inf), (1.0, np.inf)))
        found = actor(convert(policy, format), format)(OBSERVATIONS)
        np.testing.assert_allclose(found, policy_act(policy)(OBSERVATIONS), atol=1e-5)
        assert np.abs(found[:, 0]).max() <= 1.0 < np.abs(found[:, 1]).max()

    def test_what_is_none_is_refused(self, format: Format) -> None:
        with pytest.raises(ArtifactError, match="cannot load the model"):
            actor(b"nothing of the sort", format)


@pytest.mark.parametrize(
    ("format", "size", "actions", "hidden"),
    [("onnx", 1, 1, (16, 16)), ("onnx", 1, 2, (1,)), ("onnx", 5, 1, (1, 16)), ("stablehlo", 1, 1, (16, 16))],
)
def test_a_model_of_single_numbers_is_the_policy_worked_out_by_hand(
    format: Format, size: int, actions: int, hidden: tuple[int, ...]
) -> None:
    policy = made(bounds=ActionBounds((-1.0,) * actions, (2.0,) * actions), size=size, hidden=hidden)
    act = actor(convert(policy, format), format)
    observations = np.concatenate([OBSERVATIONS[:, :size], corner_observations(policy, 100)])
    wanted = by_hand(policy, observations)
    assert wanted.shape == (200, actions) and np.ptp(wanted) > 0.5
    for batch in (1, 2, 7, 200):
        found = np.concatenate([act(observations[i : i + batch]) for i in range(0, 200, batch)])
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_onnx_is_named_free_in_its_batch_and_old_enough_for_a_robot() -> None:
    model = onnx_package.load(io.BytesIO(model_of("onnx")))
    onnx_package.checker.check_model(model, full_check=True)
    (given,), (result,) = model.graph.input, model.graph.output
    shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (given, result)]
    assert (given.name, result.name) == ("observation", "action")
    assert shapes == [["batch", 5], ["batch", 2]]
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 17} and model.ir_version == 8
    assert {value.type.tensor_type.elem_type for value in (given, result)} == {onnx_package.TensorProto.FLOAT}


def test_the_same_policy_is_the_same_file() -> None:
    assert convert(made(), "onnx") == model_of("onnx")


def test_stablehlo_is_lowered_for_cpu_and_cuda() -> None:
    exported = jax.export.deserialize(bytearray(model_of("stablehlo")))
    assert exported.platforms == ("cpu", "cuda")
    assert [str(value.shape) for value in (*exported.in_avals, *exported.out_avals)] == ["(batch, 5)", "(batch, 2)"]


def test_a_model_with_other_names_is_refused() -> None:
    model = onnx_package.load(io.BytesIO(model_of("onnx")))
    for node in model.graph.node:
        node.input[:] = ["state" if name == "observation" else name for name in node.input]
    model.graph.input[0].name = "state"
    with pytest.raises(ArtifactError, match="state"):
        actor(model.SerializeToString(), "onnx")


@pytest.mark.parametrize(
    ("operation", "rank", "error"), [("Sqrt", 2, "InferenceError"), ("Guess", 1, "ValidationError")]
)
def test_a_model_that_onnx_refuses_is_one_sentence(
    operation: str, rank: int, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that declares another rank than it has, and one of an operation that there is not."""
    helper, number = onnx_package.helper, onnx_package.TensorProto.FLOAT
    given = helper.make_tensor_value_info("observation", number, [1])
    result = helper.make_tensor_value_info("action", number, [1] * rank)
    graph = helper.make_graph([helper.make_node(operation, ["observation"], ["action"])], "policy", [given], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    monkeypatch.setattr("jax2onnx.to_onnx", lambda *arguments, **options: model)
    with pytest.raises(ArtifactError, match=r"^the policy cannot be written as ONNX: .*[^.]\.$") as refusal:
        convert(made(), "onnx")
    assert type(refusal.value.__cause__).__name__ == error and "\n" not in str(refusal.value)


NEEDED: dict[str, Format] = {"jax2onnx": "onnx", "onnxruntime": "onnx", "onnx": "onnx", "flatbuffers": "stablehlo"}


@pytest.mark.parametrize("module", NEEDED)
def test_a_missing_package_is_one_sentence(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    sentence = rf'^{module} is not installed: pip install "\.\[export\]" in a checkout\.$'
    for format in FORMATS:
        with pytest.raises(ArtifactError, match=sentence) if format == NEEDED[module] else contextlib.nullcontext():
            require(format)
    if module in ("onnxruntime", "flatbuffers"):
        with pytest.raises(ArtifactError, match=sentence):
            actor(b"", NEEDED[module])


def test_the_converter_says_nothing_and_leaves_nothing_beside(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    convert(made("elu"), "onnx")
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert not list(tmp_path.iterdir())
