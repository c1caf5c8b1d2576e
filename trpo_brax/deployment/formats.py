"""The two formats a policy leaves in: ONNX by jax2onnx, and StableHLO by jax.export."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trpo_brax.deployment.description import INPUT, OUTPUT, ArtifactError, Format
from trpo_brax.policy import Policy
from trpo_brax.runs.storage import first_line

Act = Callable[[np.ndarray], np.ndarray]
"""Observations float32 [batch, observation] -> actions float32 [batch, A]."""
_OPSET = 17
_IR_VERSION = 8
"""Both of ONNX 1.12: what a robot's computer runs is seldom the newest."""
_PLATFORMS = ("cpu", "cuda")
_NEEDED: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime", "jax2onnx"),
    "stablehlo": ("flatbuffers",),  # jax.export imports it once it writes or reads
}
"""Of the extra `export`."""


def require(format: Format) -> None:
    """Import what a format needs.

    Raises:
        ArtifactError: it is not installed.
    """
    for module in _NEEDED[format]:
        _imported(module)


def convert(policy: Policy, format: Format) -> bytes:
    """Return a policy's mean action, from raw observation to the environment's action, as one model of any batch.

    Raises:
        ArtifactError: the converter is not installed, or cannot convert this policy.
    """
    return _to_onnx(policy) if format == "onnx" else _to_stablehlo(policy)


def actor(model: bytes, format: Format) -> Act:
    """Return what a model does.

    Raises:
        ArtifactError: a package is missing, it cannot be loaded, or its input and output are not those of a policy.
    """
    return _onnx_actor(model) if format == "onnx" else _stablehlo_actor(model)


def policy_act(policy: Policy) -> Act:
    """Return what the policy itself does, by its mean action: the reference of an exported one."""
    compiled = jax.jit(policy.__call__)
    return lambda observations: np.asarray(compiled(observations))


def _to_onnx(policy: Policy) -> bytes:
    jax2onnx, onnx = _imported("jax2onnx"), _imported("onnx")
    refusals = (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        onnx.defs.SchemaError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    )

    def observation_to_action(observation: jax.Array) -> jax.Array:
        # The standard deviation becomes a constant [observation]. Worked out inside the model, the converter makes
        # one of a single component a scalar, and the model contradicts itself.
        with jax.ensure_compile_time_eval():
            return policy(observation)

    with _silent():
        try:
            model = jax2onnx.to_onnx(
                observation_to_action,
                [("batch", policy.specification.observation_size)],
                model_name="policy",
                opset=_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
            model.ir_version = _IR_VERSION
            onnx.checker.check_model(model, full_check=True)
        except refusals as error:
            raise ArtifactError(f"the policy cannot be written as ONNX: {first_line(error).rstrip('.')}.") from error
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _onnx_actor(model: bytes) -> Act:
    runtime = _imported("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised as well
    try:
        session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ArtifactError(f"onnxruntime cannot load the model: {first_line(error).rstrip('.')}.") from error
    names = [[value.name for value in values] for values in (session.get_inputs(), session.get_outputs()[:1])]
    if names != [[INPUT], [OUTPUT]]:
        raise ArtifactError(f"the model maps {names[0]} to {names[1]}, not ['{INPUT}'] to ['{OUTPUT}'].")

    def act(observations: np.ndarray) -> np.ndarray:
        actions: np.ndarray = session.run([OUTPUT], {INPUT: np.ascontiguousarray(observations, np.float32)})[0]
        return actions

    return act


def _to_stablehlo(policy: Policy) -> bytes:
    (batch,) = jax.export.symbolic_shape("batch")
    observation = jax.ShapeDtypeStruct((batch, policy.specification.observation_size), jnp.float32)
    exported = jax.export.export(jax.jit(policy.__call__), platforms=_PLATFORMS)(observation)
    return bytes(exported.serialize())


def _stablehlo_actor(model: bytes) -> Act:
    require("stablehlo")
    try:
        exported = jax.export.deserialize(bytearray(model))
        call: Any = jax.jit(exported.call)
    except Exception as error:  # the reader of the format raises whatever its parts do
        raise ArtifactError(f"JAX cannot load the model: {first_line(error).rstrip('.')}.") from error
    shapes = [[len(value.shape) for value in values] for values in (exported.in_avals, exported.out_avals)]
    if shapes != [[2], [2]]:
        raise ArtifactError("the model does not map one array [batch, observation] to one array [batch, action].")

    def act(observations: np.ndarray) -> np.ndarray:
        return np.asarray(call(np.asarray(observations, np.float32)))

    return act


def _imported(module: str) -> Any:
    try:
        with _silent():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ArtifactError(f'{module} is not installed: pip install ".[export]" in a checkout.') from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep quiet what a converter logs of operations that no policy has."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
