"""A tiny configuration on the workbench, compiled once for the tests of this folder."""

from __future__ import annotations

import jax
import pytest

from tests.algorithm.conftest import float64
from tests.tiny_environments import PointMass
from tests.tiny_programs import tiny_config
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.environments import own_task

__all__ = ["float64", "workbench"]


@pytest.fixture(scope="session")
def workbench() -> Workbench:
    """Eight point masses for ten steps on two devices."""
    config = tiny_config()
    return Workbench.build(config, own_task(PointMass(), config.rollout), jax.devices()[:2])
