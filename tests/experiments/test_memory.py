"""Bytes by hand, and the largest number of environments that fits."""

from __future__ import annotations

import jax
import pytest

from experiments.memory import Memory, largest_num_envs, measure_memory
from tests.tiny_environments import PointMass
from tests.tiny_programs import tiny_config
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.environments import own_task


@pytest.mark.parametrize(
    ("available", "fixed", "each", "devices"),
    [(1000.0, 100.0, 7.0, 1), (1000.0, 100.0, 7.0, 4), (2**40, 2**20, 84_373.765625, 8), (900.0, 0.0, 9.0, 1)],
)
def test_the_largest_number_fits_and_one_more_a_device_does_not(
    available: float, fixed: float, each: float, devices: int
) -> None:
    largest = largest_num_envs(available, fixed, each, devices)
    assert largest % devices == 0
    assert devices * fixed + largest * each <= available
    assert devices * fixed + (largest + devices) * each > available


def test_nothing_fits_where_the_fixed_part_does_not() -> None:
    assert largest_num_envs(100.0, 60.0, 1.0, 2) == 0


def measured(num_envs: int, memory_gib: float = 1.0) -> Memory:
    """Measure point masses for ten steps on two devices."""
    config = tiny_config(num_envs=num_envs)
    return measure_memory(Workbench.build(config, own_task(PointMass(), config.rollout), jax.devices()[:2]), memory_gib)


def test_bytes_of_an_environment_and_a_transition_by_hand() -> None:
    memory = measured(8)
    # Brax's State: position and velocity, observation, reward, done, one metric.
    state = 8 + 8 + 4 + 4 + 4
    # And: healthy, steps, counted, return, length, sum of the metric.
    assert memory.environment_state_bytes == state + 1 + 4 + 1 + 4 + 4 + 4
    assert memory.starting_pool_bytes == 4 * state
    # Observation, action, next observation, reward, four flags, return, length, mean of the metric.
    assert memory.transition_bytes == 8 + 4 + 8 + 4 + 4 + 4 + 4 + 4
    # The trajectory is among what the program keeps.
    assert memory.bytes_per_environment > memory.environment_state_bytes + 10 * memory.transition_bytes


def test_what_one_size_says_holds_for_a_larger_one() -> None:
    small, large = measured(128), measured(512)
    predicted = 2 * small.fixed_bytes_per_device + 512 * small.bytes_per_environment
    # Never less than is needed: the fewer environments share what does not grow with them, the more each bears of it.
    assert 0.9 * predicted < large.program_bytes <= predicted
    assert large.largest_num_envs == largest_num_envs(
        2**30, large.fixed_bytes_per_device, large.bytes_per_environment, 2
    )
