"""Settings every test shares: several CPU devices, quick compilation, and one compilation cache for all workers."""

import gc
import os
from pathlib import Path

import pytest

# Before JAX is imported: it reads these once. Four devices on fewer cores are slower, and just as correct.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["JAX_PLATFORMS"] = "cpu"
# Tiny programs take ten times longer to compile than to run, and without optimisations a fifth of that. Subprocesses
# inherit both settings. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what a user's run is compiled to.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

import jax

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# Tracing makes objects by the million, nearly all of which live on: looking for garbage among them as often as Python
# does by itself took a fifth of the time (62 and 50 s of test_tasks.py and test_replay.py, 43 and 41 s so).
gc.set_threshold(200_000, 50, 100)

from tests.tiny_programs import _blank_pictures, _shared_programs, pictures, point_mass, programs  # noqa: E402, F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first, so that no worker is left alone with them in the end."""
    items.sort(key=lambda item: not {"integration", "training"} & set(item.path.parts))
