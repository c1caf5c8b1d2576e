"""Double precision on request: most references here are compared to rounding of float64."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def float64() -> Iterator[None]:
    """Compute in float64 while the test runs."""
    with jax.enable_x64(True):
        yield
