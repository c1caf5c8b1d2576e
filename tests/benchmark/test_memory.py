"""Bytes by hand, and the largest number of environments that fits."""

from __future__ import annotations

import jax
import pytest

from tests.tiny_environments import PointMass
from tests.tiny_programs import tiny_config
from trpo_brax.benchmark.memory import Memory, available_bytes, largest_num_envs, measure_memory
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


def test_bytes_of_an_environment_and_a_transition_by_hand(workbench: Workbench) -> None:
    memory = measure_memory(workbench, None)
    # Brax's State: position and velocity, observation, reward, done, one metric.
    state = 8 + 8 + 4 + 4 + 4
    # And: healthy, steps, counted, return, length, sum of the metric.
    assert memory.environment_state_bytes == state + 1 + 4 + 1 + 4 + 4 + 4
    assert memory.starting_pool_bytes == 4 * state
    # Observation, action, next observation, reward, four flags, return, length, mean of the metric.
    assert memory.transition_bytes == 8 + 4 + 8 + 4 + 4 + 4 + 4 + 4
    # The trajectory is among what the program keeps.
    assert memory.bytes_per_environment > memory.environment_state_bytes + 10 * memory.transition_bytes
    assert memory.process_peak_bytes > memory.program_bytes


def test_what_one_size_says_holds_for_a_larger_one() -> None:
    def measured(num_envs: int) -> Memory:
        config = tiny_config(num_envs=num_envs)
        return measure_memory(Workbench.build(config, own_task(PointMass(), config.rollout), jax.devices()[:2]), None)

    small, large = measured(128), measured(512)
    predicted = 2 * small.fixed_bytes_per_device + 512 * small.bytes_per_environment
    # Never less than is needed: the fewer environments share what does not grow with them, the more each bears of it.
    assert 0.9 * predicted < large.program_bytes <= predicted


def test_the_memory_to_fit_into_is_the_one_asked_for(workbench: Workbench) -> None:
    asked = measure_memory(workbench, 0.5)
    assert asked.memory_bytes == 2**29
    twice = measure_memory(workbench, 1.0)
    assert twice.largest_num_envs == pytest.approx(2 * asked.largest_num_envs, rel=0.01)


def test_what_is_available_is_at_most_the_machines_memory() -> None:
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < available_bytes(jax.devices()) <= total
