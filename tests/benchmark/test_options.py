"""What may be asked of a benchmark."""

from __future__ import annotations

import pytest

from trpo_brax.benchmark import BenchOptions
from trpo_brax.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "sizes"), [("", ()), (" ", ()), ("64", (64,)), ("64,256,1024", (64, 256, 1024)), ("256, 8", (256, 8))]
)
def test_sweep_sizes_are_read_in_the_order_given(words: str, sizes: tuple[int, ...]) -> None:
    assert BenchOptions(sweep_envs=words).sweep_sizes == sizes


@pytest.mark.parametrize("words", ["64;256", "64,", "3", "-64", "64.0", "many", "²"])
def test_a_sweep_that_cannot_work_is_refused_by_name(words: str) -> None:
    with pytest.raises(ConfigError, match="sweep_envs"):
        BenchOptions(sweep_envs=words)


@pytest.mark.parametrize(("field", "value"), [("repeats", 0), ("memory_gib", 0.0), ("memory_gib", -1.0)])
def test_numbers_that_cannot_work_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        BenchOptions(**{field: value})  # type: ignore[arg-type]
