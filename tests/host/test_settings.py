"""JAX's own settings, and a process that it cannot be used in: told in one sentence, by whatever uses JAX first."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import trpo_brax as tb
from tests.tiny_runs import TINY
from trpo_brax.config import RuntimeConfig
from trpo_brax.errors import CheckpointError, UserError
from trpo_brax.host.devices import prepare
from trpo_brax.host.settings import check_process, start_jax
from trpo_brax.runs.folder import RunFolder

# Setting, value, what is right instead, and whether it would break a policy too that acts by itself.
UNUSABLE = [
    ("jax_enable_x64", True, "False", True),
    ("jax_default_prng_impl", "rbg", "threefry2x32", True),
    ("jax_default_prng_impl", "unsafe_rbg", "threefry2x32", True),
    ("jax_legacy_prng_key", "error", "allow or warn", True),
    ("jax_enable_custom_prng", True, "False", False),
    ("jax_numpy_rank_promotion", "raise", "allow or warn", True),
    ("jax_transfer_guard", "disallow", "allow or log or log_explicit", True),
    ("jax_transfer_guard", "disallow_explicit", "allow or log or log_explicit", True),
    ("jax_transfer_guard_device_to_host", "disallow", "allow or log or log_explicit", True),
    ("jax_numpy_dtype_promotion", "strict", "standard", False),
    ("jax_debug_nans", True, "False", False),
    ("jax_debug_infs", True, "False", False),
    ("jax_disable_jit", True, "False", False),
]
USABLE = [
    ("jax_legacy_prng_key", "warn"),
    ("jax_numpy_rank_promotion", "warn"),
    ("jax_transfer_guard", "log"),
    ("jax_transfer_guard_device_to_device", "disallow"),
    ("jax_threefry_partitionable", False),
    ("jax_debug_key_reuse", True),
    ("jax_check_tracer_leaks", True),
    ("jax_default_matmul_precision", "bfloat16"),
]
GUARDS = [f"jax_transfer_guard{way}" for way in ("", "_host_to_device", "_device_to_host", "_device_to_device")]


@pytest.fixture
def set_to() -> Iterator[Callable[[str, Any], None]]:
    """Return what changes one of JAX's settings until the test ends."""
    before: dict[str, Any] = {}

    def change(name: str, value: Any) -> None:
        # The first of the guards sets all.
        before.update({one: jax.config.values[one] for one in (name, *GUARDS)})
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def run(tmp_path: Path) -> tb.Run:
    """Return a run that has no checkpoint yet."""
    RunFolder(tmp_path / "run").create(TINY)
    return tb.Run.load(tmp_path / "run")


@pytest.mark.parametrize(("name", "value", "right", "acting"), UNUSABLE, ids=str)
def test_a_setting_that_runs_cannot_work_with_is_named(
    name: str, value: Any, right: str, acting: bool, run: tb.Run, set_to: Callable[[str, Any], None]
) -> None:
    set_to(name, value)
    sentence = rf"^JAX's setting {name} \({name.upper()} in the environment\) must be {right}, not {value}: [^.]+\.$"
    for use in (lambda: prepare(RuntimeConfig(), 8, print), lambda: tb.evaluate(run, episodes=4)):
        with pytest.raises(UserError, match=sentence):
            use()
    with pytest.raises(UserError if acting else CheckpointError, match=sentence if acting else "checkpoints"):
        run.policy()


@pytest.mark.parametrize(("name", "value"), USABLE)
def test_others_are_left_alone(name: str, value: Any, set_to: Callable[[str, Any], None]) -> None:
    set_to(name, value)
    check_process()
    assert jax.config.values[name] == value


@pytest.mark.parametrize(
    ("raised", "why"),
    [
        (RuntimeError("Unknown backend cuda. (set JAX_PLATFORMS='' to choose)"), "Unknown backend cuda"),
        (RuntimeError("no device\nof this kind"), "no device"),
        # What JAX does where CUDA's library is not installed.
        (AssertionError(), "there is no library for it, or no device"),
    ],
)
def test_jax_that_cannot_start_names_the_platform(
    raised: Exception, why: str, monkeypatch: pytest.MonkeyPatch, set_to: Callable[[str, Any], None]
) -> None:
    def fail() -> None:
        raise raised

    set_to("jax_platforms", "cuda")
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match=rf"^JAX cannot start, JAX_PLATFORMS is cuda: {why}\.$"):
        start_jax()


def test_a_whole_process_with_settings_that_jax_does_not_take() -> None:
    told = {
        "JAX_PLATFORMS": "JAX cannot start, JAX_PLATFORMS is perhaps: Unable to initialize backend 'perhaps': .*",
        "JAX_ENABLE_X64": "JAX cannot be used: invalid truth value 'perhaps' for environment 'JAX_ENABLE_X64'",
    }
    words = [sys.executable, "-m", "trpo_brax", "check", "hopper"]
    processes = {
        name: subprocess.Popen(words, env=os.environ | {name: "perhaps"}, stderr=subprocess.PIPE, text=True)
        for name in told
    }
    for name, process in processes.items():
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2 and re.fullmatch(rf"trpo-brax: {told[name]}\.\n", error), error


def test_a_process_forked_after_jax_had_started_is_refused_and_does_not_wait_for_ever(run: tb.Run) -> None:
    jax.devices()
    uses = (lambda: prepare(RuntimeConfig(), 8, print), lambda: tb.evaluate(run, episodes=4), run.policy)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX, that this may hang
        child = os.fork()
    if child == 0:
        for use in uses:
            try:
                use()
            except BaseException as error:
                os.write(writer, f"{type(error).__name__}: {error}\n".encode())
        os._exit(0)
    os.close(writer)
    told = b""
    while select.select([reader], [], [], 30.0)[0] and (more := os.read(reader, 10_000)):
        told += more
    os.close(reader)
    os.kill(child, 9)
    os.waitpid(child, 0)
    sentence = (
        "UserError: this process was forked after JAX had started, and JAX would wait in it for ever: start it by "
    )
    assert told.decode().splitlines() == [f'{sentence}multiprocessing.get_context("spawn").'] * 3
