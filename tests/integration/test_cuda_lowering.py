"""The whole program lowered for CUDA on a machine without it: single precision, nothing of the host, nothing of a CPU.

What XLA makes of it on a GPU this cannot tell. It does tell that everything XLA is handed can run there.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export
from jax.experimental import io_callback

from trpo_brax.config import override
from trpo_brax.environments import brax_task
from trpo_brax.learner.program import Program
from trpo_brax.presets import preset

NUM_ENVS = 4096
CUSOLVER = frozenset({"cusolver_geqrf_ffi", "cusolver_orgqr_ffi"})
"""The QR decomposition of orthogonal initialisation; JAX registers both on CUDA and keeps them stable for export."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A function lowered for CUDA."""

    text: str
    """StableHLO."""
    devices: int

    @property
    def custom_calls(self) -> set[str]:
        """Targets of every custom call."""
        targets = re.findall(r'stablehlo\.custom_call\s*@([\w.$]+)|call_target_name = "([^"]+)"', self.text)
        assert len(targets) == len(re.findall(r"\bstablehlo\.custom_call\b", self.text)), "a call without a target"
        return {short or generic for short, generic in targets}

    @property
    def arguments(self) -> list[str]:
        """The main function's arguments, with their attributes."""
        (signature,) = re.findall(r"func\.func public @main\((.*)\) -> ", self.text)
        return re.split(r", (?=%arg\d+: )", signature)

    @property
    def products(self) -> list[str]:
        """Matrix products, with their precision and shapes."""
        return re.findall(r"stablehlo\.dot_general (.*)", self.text)


def lowered(function: Any, *arguments: Any, trusted: tuple[str, ...] = ()) -> Module:
    """Return `function`, which is jitted, for CUDA; JAX exports no custom call that is not stable unless `trusted`."""
    found = callbacks(function, *arguments)
    assert not found, f"host callback: {found}"
    checks = [export.DisabledSafetyCheck.custom_call(target) for target in trusted]
    exported = export.export(function, platforms=["cuda"], disabled_checks=checks)(*arguments)
    assert exported.platforms == ("cuda",)
    return Module(exported.mlir_module(), exported.nr_devices)


def callbacks(function: Any, *arguments: Any) -> set[str]:
    """Return the callbacks to the host in what JAX traced: no platform but the one at hand can lower them at all."""
    return set(re.findall(r"\b(\w*callback|debug_print)\[", str(function.trace(*arguments).jaxpr)))


def assert_runs_on_cuda(module: Module, allowed: frozenset[str] = frozenset()) -> None:
    """No float64 anywhere, and no custom call but those known to be there."""
    assert not re.search(r"[<x]f64\b", module.text), "float64"
    assert module.custom_calls <= allowed


# The program


@pytest.fixture(
    scope="module",
    params=[
        ("inverted_pendulum", 1),
        pytest.param(("hopper", 4), marks=pytest.mark.slow),
        pytest.param(("ant", 1), marks=pytest.mark.slow),
        pytest.param(("humanoid", 1), marks=pytest.mark.slow),
    ],
    ids=lambda param: f"{param[0]} over {param[1]}",
)
def program(request: pytest.FixtureRequest) -> Program:
    """A preset at 4096 environments, over as many devices."""
    task, devices = request.param
    config = override(preset(task), num_envs=NUM_ENVS)
    return Program(config, brax_task(task, config.rollout.backend), jax.devices()[:devices])


@pytest.fixture(scope="module")
def chunk(program: Program) -> Module:
    """The chunk of iterations that training runs again and again."""
    return lowered(program._chunk, program.abstract_state, jax.ShapeDtypeStruct((), jnp.int32))


def test_a_chunk_of_iterations_runs_on_cuda(program: Program, chunk: Module) -> None:
    assert_runs_on_cuda(chunk)
    assert chunk.devices == len(program.shardings.key.device_set)


def test_a_chunk_holds_every_environment(program: Program, chunk: Module) -> None:
    environments = len(jax.tree.leaves(program.abstract_state.environments))
    leading = [argument for argument in chunk.arguments if re.search(rf"tensor<{NUM_ENVS}(x\w+)+>", argument)]
    assert len(leading) == environments > 0
    # The gradient reads all samples at once.
    samples = NUM_ENVS * program.config.rollout.unroll_length
    assert f"tensor<{samples}x{program.task.observation_size}xf32>" in chunk.text
    # Physics, policy and resets of one step are under one loop over time: [T, N] is what it leaves behind.
    assert f"tensor<{program.config.rollout.unroll_length}x{NUM_ENVS}x" in chunk.text


def test_a_chunk_overwrites_the_state_it_is_given(program: Program, chunk: Module) -> None:
    donated = [
        argument for argument in chunk.arguments if re.search(r"tf\.aliasing_output|jax\.buffer_donor", argument)
    ]
    assert len(donated) == len(jax.tree.leaves(program.abstract_state))
    assert len(chunk.arguments) == len(donated) + 1  # and the number of iterations


def test_networks_and_conjugate_gradient_ask_for_full_precision(program: Program, chunk: Module) -> None:
    # A GPU's default for float32 is TF32, with 10 bits of mantissa. Physics multiplies small matrices batched over
    # environments, at Brax's own precision; whatever contracts without a batch is the learner's.
    learner = [product for product in chunk.products if "batching_dims" not in product]
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.abstract_state.policy))
    assert any(f"tensor<{parameters}xf32>" in product for product in learner)
    assert len(learner) > 30
    assert [product for product in learner if "precision = [HIGHEST, HIGHEST]" not in product] == []


def test_initial_state_runs_on_cuda(program: Program) -> None:
    module = lowered(program._initialize)
    assert_runs_on_cuda(module, CUSOLVER)
    assert module.custom_calls == CUSOLVER


def test_a_copy_of_the_state_runs_on_cuda(program: Program) -> None:
    assert_runs_on_cuda(lowered(program._copy, program.abstract_state))


# That the checks can fail


VECTOR = jax.ShapeDtypeStruct((64,), jnp.float32)


def double(values: jax.Array) -> jax.Array:
    with jax.enable_x64(True):
        return (values.astype(jnp.float64) * 2).astype(jnp.float32)


def double_scalar(values: jax.Array) -> jax.Array:
    with jax.enable_x64(True):
        return values * jnp.sum(values.astype(jnp.float64)).astype(jnp.float32)


def complex_double(values: jax.Array) -> jax.Array:
    with jax.enable_x64(True):
        return jnp.real(values.astype(jnp.complex128) * 1j).astype(jnp.float32)


def foreign(target: str) -> Callable[[jax.Array], jax.Array]:
    return jax.ffi.ffi_call(target, VECTOR)


def quiet_identity(values: jax.Array) -> jax.Array:
    return values


@pytest.mark.parametrize("function", [double, double_scalar, complex_double])
def test_double_precision_is_caught(function: Callable[[jax.Array], jax.Array]) -> None:
    looped = jax.jit(lambda values: jax.lax.fori_loop(0, 3, lambda _, carry: function(carry), values))
    with pytest.raises(AssertionError, match="float64"):
        assert_runs_on_cuda(lowered(looped, VECTOR))


@pytest.mark.parametrize(
    "target",
    ["lapack_sgeqrf_ffi", "cpu_threefry2x32_ffi", "ducc_fft", "xla_ffi_python_gpu_callback", "xla_python_cpu_callback"],
)
def test_a_custom_call_that_is_not_known_to_be_there_is_caught(target: str) -> None:
    module = lowered(jax.jit(foreign(target)), VECTOR, trusted=(target,))
    assert module.custom_calls == {target}
    with pytest.raises(AssertionError):
        assert_runs_on_cuda(module, CUSOLVER)


def test_a_decomposition_within_training_would_be_caught() -> None:
    module = lowered(jax.jit(lambda values: jnp.linalg.qr(values.reshape(8, 8))[0]), VECTOR)
    assert_runs_on_cuda(module, CUSOLVER)
    with pytest.raises(AssertionError):
        assert_runs_on_cuda(module)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda values: jax.pure_callback(quiet_identity, VECTOR, values), "pure_callback"),
        (lambda values: io_callback(quiet_identity, VECTOR, values), "io_callback"),
        (lambda values: jax.debug.callback(quiet_identity, values) or values, "debug_callback"),
        (lambda values: jax.debug.print("{}", values[0]) or values, "debug_print"),
    ],
    ids=["pure_callback", "io_callback", "debug_callback", "debug_print"],
)
def test_a_callback_to_the_host_is_caught(call: Callable[[jax.Array], jax.Array], name: str) -> None:
    looped = jax.jit(lambda values: jax.lax.fori_loop(0, 3, lambda _, carry: call(carry), values))
    with pytest.raises(AssertionError, match=f"host callback: {{'{name}'}}"):
        lowered(looped, VECTOR)


def test_what_is_not_donated_or_not_at_full_precision_shows() -> None:
    kept = lowered(jax.jit(lambda values: values @ values), VECTOR)
    assert len(kept.arguments) == 1 and "aliasing_output" not in kept.arguments[0]
    assert len(kept.products) == 1 and "HIGHEST" not in kept.products[0]
