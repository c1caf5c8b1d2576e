"""The compiled chunk: determinism, chunk lengths, device counts, and what it lowers to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_programs import assert_bit_identical, leaves, tiny_config
from trpo_brax.environments import Task
from trpo_brax.learner.program import CHUNK_CAPACITY, Program


def advance(program: Program, chunks: tuple[int, ...]) -> tuple[Any, dict[str, np.ndarray]]:
    """Run chunks one after another and return the last state and all metrics rows."""
    state, rows = program.initial_state(), []
    for length in chunks:
        state, metrics = program.run(state, length)
        rows.append(jax.tree.map(lambda buffer, n=length: np.asarray(buffer)[:n], metrics))
    return jax.device_get(state), jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


@pytest.fixture(scope="module")
def six(programs: dict[int, Program]) -> tuple[Any, dict[str, np.ndarray]]:
    return advance(programs[2], (6,))


def test_the_same_seed_gives_the_same_bits(programs: dict[int, Program], six: Any) -> None:
    assert_bit_identical(advance(programs[2], (6,)), six)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1, 1), (2, 4), (5, 1)])
def test_chunk_lengths_agree_bit_for_bit(programs: dict[int, Program], six: Any, chunks: tuple[int, ...]) -> None:
    assert_bit_identical(advance(programs[2], chunks), six)


def test_one_executable_serves_every_chunk_length(programs: dict[int, Program]) -> None:
    program = programs[2]
    advance(program, (1, 3))
    assert program._chunk._cache_size() == 0, "run() uses the executable compiled ahead of time and jits nothing more"


@pytest.mark.parametrize("count", [1, 4])
def test_device_counts_agree_to_rounding(programs: dict[int, Program], six: Any, count: int) -> None:
    state, metrics = advance(programs[count], (6,))
    for name, leaf in leaves(state).items():
        other = leaves(six[0])[name]
        np.testing.assert_allclose(leaf, other, rtol=2e-3, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(metrics["kl_mean"], six[1]["kl_mean"], rtol=1e-2, atol=1e-5)
    assert metrics["step_outcome"].tolist() == six[1]["step_outcome"].tolist()


def test_environment_draws_do_not_depend_on_the_device_count(programs: dict[int, Program]) -> None:
    one, four = (jax.device_get(programs[count].initial_state()) for count in (1, 4))
    assert_bit_identical(one, four)


def test_different_seeds_give_different_runs(six: Any, point_mass: Task) -> None:
    other, _ = advance(Program(tiny_config(seed=1), point_mass, jax.devices()[:2]), (1,))
    for name, leaf in leaves(other.policy).items():
        if "kernel" in name:
            assert not np.array_equal(leaf, leaves(six[0].policy)[name])


def test_environment_state_is_sharded_and_all_else_replicated(programs: dict[int, Program]) -> None:
    state, _ = programs[4].run(programs[4].initial_state(), 1)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        shard = leaf.addressable_shards[0].data.shape
        wanted = (leaf.shape[0] // 4, *leaf.shape[1:]) if name.startswith(".environments") else leaf.shape
        assert shard == wanted, name


def test_the_program_holds_no_float64_and_no_host_callback(programs: dict[int, Program]) -> None:
    program = programs[2]
    text = program._chunk.lower(program.abstract_state, jax.ShapeDtypeStruct((), jnp.int32)).as_text()
    assert "while" in text
    assert "f64" not in text
    assert "callback" not in text


def test_only_reductions_cross_devices(programs: dict[int, Program]) -> None:
    """No shard is torn apart: nothing is gathered, sliced across or exchanged, only sums and maxima are reduced."""
    programs[4].compile()
    text = programs[4]._compiled.as_text()
    assert "all-reduce" in text
    for operation in ("all-to-all", "collective-permute", "all-gather"):
        assert f" {operation}(" not in text, operation


def test_states_are_donated_and_copies_are_not(programs: dict[int, Program]) -> None:
    program = programs[2]
    state = program.initial_state()
    copy = program.copy(state)
    before = jax.device_get(copy)
    program.run(state, 2)[0].iteration.block_until_ready()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.policy))
    assert_bit_identical(jax.device_get(copy), before)


def test_metrics_rows_beyond_the_chunk_are_untouched(programs: dict[int, Program]) -> None:
    _, metrics = programs[2].run(programs[2].initial_state(), 3)
    assert metrics["kl_mean"].shape == (CHUNK_CAPACITY,)
    assert np.all(np.asarray(metrics["kl_mean"])[3:] == 0)
