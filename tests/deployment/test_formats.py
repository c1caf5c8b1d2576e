"""A model does what its policy does: against float64 NumPy, at every batch size and activation."""

from __future__ import annotations

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


def made(activation: Any = "tanh", bounds: ActionBounds | None = None, size: int = 5) -> Policy:
    """Return an untrained policy that often meets its bounds."""
    network = NetworkConfig(activation=activation, policy_hidden_sizes=(16, 16), policy_output_scale=2.0)
    specification = PolicySpecification(network, size, bounds or ActionBounds((-1.0, -2.0), (1.0, 5.0)))
    generator = np.random.default_rng(1)
    moments = (np.asarray(40.0), generator.normal(size=size), 40 * generator.uniform(0.0, 9.0, size))
    statistics = ObservationStatistics(*(jnp.asarray(moment, jnp.float32) for moment in moments))
    return Policy(specification, specification.networks().initial_policy(jax.random.PRNGKey(2)), statistics)


OBSERVATIONS = (np.random.default_rng(3).standard_normal((100, 5)) * 3).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
class TestAModel:
    """Both formats."""

    def test_is_the_policy_worked_out_by_hand(self, format: Format) -> None:
        policy = made()
        act = actor(convert(policy, format), format)
        observations = np.concatenate([OBSERVATIONS, corner_observations(policy, 200)])
        wanted = by_hand(policy, observations)
        assert np.isclose(wanted, [1.0, 5.0]).any() and np.isclose(wanted, [-1.0, -2.0]).any()
        assert ((wanted > [-1.0, -2.0]) & (wanted < [1.0, 5.0])).any()
        for batch in (1, 2, 7, 300):
            found = np.concatenate([act(observations[i : i + batch]) for i in range(0, 300, batch)])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, atol=2e-5)

    @pytest.mark.parametrize("activation", ["tanh", "swish", "relu", "elu"])
    def test_has_every_activation(self, format: Format, activation: str) -> None:
        policy = made(activation)
        found = actor(convert(policy, format), format)(OBSERVATIONS)
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


def test_onnx_is_named_free_in_its_batch_and_old_enough_for_a_robot() -> None:
    model = onnx_package.load(io.BytesIO(convert(made(), "onnx")))
    onnx_package.checker.check_model(model, full_check=True)
    (given,), (result,) = model.graph.input, model.graph.output
    shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (given, result)]
    assert (given.name, result.name) == ("observation", "action")
    assert shapes == [["batch", 5], ["batch", 2]]
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 17} and model.ir_version == 8
    assert {value.type.tensor_type.elem_type for value in (given, result)} == {onnx_package.TensorProto.FLOAT}


def test_the_same_policy_is_the_same_file() -> None:
    assert convert(made(), "onnx") == convert(made(), "onnx")


def test_stablehlo_is_lowered_for_cpu_and_cuda() -> None:
    exported = jax.export.deserialize(bytearray(convert(made(), "stablehlo")))
    assert exported.platforms == ("cpu", "cuda")
    assert [str(value.shape) for value in (*exported.in_avals, *exported.out_avals)] == ["(batch, 5)", "(batch, 2)"]


def test_a_model_with_other_names_is_refused() -> None:
    model = onnx_package.load(io.BytesIO(convert(made(), "onnx")))
    for node in model.graph.node:
        node.input[:] = ["state" if name == "observation" else name for name in node.input]
    model.graph.input[0].name = "state"
    with pytest.raises(ArtifactError, match="state"):
        actor(model.SerializeToString(), "onnx")


@pytest.mark.parametrize("module", ["jax2onnx", "onnxruntime", "onnx"])
def test_a_missing_package_is_one_sentence(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ArtifactError, match=rf'^{module} is not installed: pip install "trpo-brax\[export\]"\.$'):
        require("onnx")
    require("stablehlo")


def test_the_converter_says_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    convert(made("elu"), "onnx")
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_nothing_is_left_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert(made(), "onnx")
    assert not list(tmp_path.iterdir())
