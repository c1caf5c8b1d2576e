"""Which cores and devices a run takes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import pytest

from trpo_brax.config import RuntimeConfig
from trpo_brax.errors import UserError
from trpo_brax.host import devices as module
from trpo_brax.host.devices import largest_divisor, prepare, usable_cores

QUOTA_FILE = "/sys/fs/cgroup/cpu.max"


def limit(monkeypatch: pytest.MonkeyPatch, cores: int, files: dict[str, str]) -> None:
    """Pretend to have an affinity of `cores` and control groups of these files alone."""
    read_text = Path.read_text

    def read(path: Path, *arguments: Any, **options: Any) -> str:
        if str(path).startswith("/sys/fs/cgroup"):
            if str(path) not in files:
                raise FileNotFoundError(2, "No such file or directory", str(path))
            return files[str(path)]
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(Path, "read_text", read)


class TestCores:
    """Affinity and quota, whichever is less."""

    @pytest.mark.parametrize(
        ("quota", "affinity", "usable"),
        [(400_000, 16, 4), (250_000, 16, 2), (50_000, 16, 1), (800_000, 3, 3), (100_000, 1, 1)],
    )
    def test_the_lesser_counts(self, quota: int, affinity: int, usable: int, monkeypatch: pytest.MonkeyPatch) -> None:
        limit(monkeypatch, affinity, {QUOTA_FILE: f"{quota} 100000\n"})
        assert usable_cores() == usable

    def test_no_quota_is_no_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limit(monkeypatch, 6, {QUOTA_FILE: "max 100000\n"})
        assert usable_cores() == 6

    def test_no_control_groups_are_no_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        limit(monkeypatch, 6, {})
        assert usable_cores() == 6

    def test_the_affinity_is_the_processs_own(self) -> None:
        one = min(os.sched_getaffinity(0))
        code = (
            f"import os; os.sched_setaffinity(0, {{{one}}})\n"
            "from trpo_brax.host.devices import usable_cores\nprint(usable_cores())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout == "1\n"


@pytest.mark.parametrize("limit_to", [1, 2, 3, 4, 7, 16, 1000])
def test_largest_divisor(limit_to: int) -> None:
    for number in (1, 2, 4, 5, 6, 8, 97, 128, 360, 512, 1000):
        divisors = [d for d in range(1, number + 1) if number % d == 0 and d <= limit_to]
        assert largest_divisor(number, limit_to) == max(divisors)


class TestChoice:
    """The devices that environments are sharded over."""

    def test_four_are_there(self) -> None:
        assert len(jax.devices()) == 4, "tests/conftest.py asks for four CPU devices"

    @pytest.mark.parametrize(("num_envs", "chosen"), [(4, 4), (8, 4), (6, 3), (10, 2), (7, 1), (512, 4)])
    def test_as_many_as_divide_the_environments(self, num_envs: int, chosen: int) -> None:
        assert prepare(RuntimeConfig(), num_envs, print).devices == jax.devices()[:chosen]

    @pytest.mark.parametrize("wanted", [1, 2, 4])
    def test_as_many_as_asked_for(self, wanted: int) -> None:
        assert len(prepare(RuntimeConfig(cpu_devices=wanted), 8, print).devices) == wanted

    def test_no_more_than_there_are(self) -> None:
        with pytest.raises(UserError, match="cpu_devices"):
            prepare(RuntimeConfig(cpu_devices=8), 8, print)

    def test_what_does_not_divide_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"cpu_devices.*3.*8"):
            prepare(RuntimeConfig(cpu_devices=3), 8, print)

    def test_no_gpu_is_an_error_where_one_was_asked_for(self) -> None:
        with pytest.raises(UserError, match="gpu"):
            prepare(RuntimeConfig(platform="gpu"), 8, print)

    @pytest.mark.parametrize(("visible", "plugin", "notes"), [(True, False, 1), (True, True, 0), (False, False, 0)])
    def test_a_gpu_that_cannot_be_used_is_told_in_one_line(
        self, visible: bool, plugin: bool, notes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_nvidia_visible", lambda: visible)
        monkeypatch.setattr(module, "_cuda_plugin", lambda: plugin)
        told: list[str] = []
        prepare(RuntimeConfig(), 8, told.append)
        assert len(told) == notes
        assert all("GPU" in note and "CPU-only" in note and "\n" not in note for note in told)

    @pytest.mark.parametrize("case", ["none", "below a file", "no home", "full", "own and full"])
    def test_a_cache_that_cannot_be_used_is_told_in_one_line(
        self, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = ("compilation_cache_dir", "enable_compilation_cache", "persistent_cache_min_compile_time_secs")
        names = tuple(f"jax_{name}" for name in (*names, "persistent_cache_enable_xla_caches"))
        before = {name: jax.config.values[name] for name in names}
        cache, file = tmp_path / "trpo_brax" / "xla", tmp_path / "file"
        file.touch()
        monkeypatch.setenv(
            "XDG_CACHE_HOME", {"below a file": str(file), "no home": "~nobody-here"}.get(case, str(tmp_path))
        )
        if "full" in case:

            def full(**_: Any) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(tempfile, "TemporaryFile", full)
        told: list[str] = []
        try:
            jax.config.update("jax_compilation_cache_dir", str(cache) if "own" in case else None)
            prepare(RuntimeConfig(), 8, told.append)
            found = {name: jax.config.values[name] for name in names}
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
        why = {
            "none": [],
            "below a file": [f"{file}/trpo_brax/xla cannot be created: Not a directory."],
            "no home": ["~nobody-here/trpo_brax/xla names a home that is not known."],
        }.get(case, [f"{cache} cannot be written: No space left on device."])
        assert told == [f"Compiled programs are not kept: {one}" for one in why]
        assert found["jax_enable_compilation_cache"] == (case not in ("below a file", "no home"))
        # What is there is read, and JAX tries to add nothing.
        assert (found["jax_persistent_cache_min_compile_time_secs"] == math.inf) == ("full" in case)
        assert found["jax_compilation_cache_dir"] == (str(cache) if cache.exists() else None)

    def test_a_cache_that_cannot_be_made_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        before = jax.config.jax_compilation_cache_dir
        with pytest.raises(UserError, match="compilation_cache"):
            prepare(RuntimeConfig(compilation_cache=str(tmp_path / "file" / "cache")), 8, print)
        assert jax.config.jax_compilation_cache_dir == before


def test_before_jax_starts_the_users_flags_win_and_the_wish_counts_otherwise() -> None:
    """One process with XLA_FLAGS of its own, one with JAX's setting, one without."""
    code = (
        "import jax\nfrom trpo_brax.config import RuntimeConfig\n"
        "from trpo_brax.host.devices import prepare\n"
        "runtime = RuntimeConfig(cpu_devices=CPU, compilation_cache='none')\nprepare(runtime, 12, print)\n"
        "print(len(jax.devices()), len(prepare(RuntimeConfig(), 12, print).devices))"
    )
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for cpu_devices, flags, printed in (
        ("None", {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, "5 4\n"),
        ("None", {"JAX_NUM_CPU_DEVICES": "6"}, "6 6\n"),
        ("3", {"JAX_NUM_CPU_DEVICES": "6"}, "3 3\n"),
    ):
        environment = clean | flags
        words = [sys.executable, "-c", code.replace("CPU", cpu_devices)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120, env=environment)
        assert done.stdout == printed


class TestDeterminism:
    """The flag that XLA needs on a GPU, set before XLA reads it and written down."""

    FLAG = "--xla_gpu_deterministic_ops=true"

    def configure_in_a_process(self, before: str | None, code: str = "") -> subprocess.CompletedProcess[str]:
        """Configure a fresh process whose XLA_FLAGS are `before`, then print what provenance says of them."""
        program = (
            f"{code}\n"
            "import jax\nfrom trpo_brax.config import RuntimeConfig\nfrom trpo_brax.host.devices import prepare\n"
            "from trpo_brax.runs.provenance import provenance\n"
            "runtime = RuntimeConfig(platform='cpu', deterministic=True, compilation_cache='none')\n"
            "prepare(runtime, 8, print); prepare(runtime, 8, print)\n"
            "print(provenance(jax.devices())['xla_flags'])"
        )
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        environment |= {} if before is None else {"XLA_FLAGS": before}
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
        )

    @pytest.mark.parametrize("before", [None, "--xla_cpu_use_thunk_runtime=true", FLAG])
    def test_the_flag_is_added_once_and_recorded(self, before: str | None) -> None:
        done = self.configure_in_a_process(before)
        wanted = before if before == self.FLAG else f"{before or ''} {self.FLAG}".strip()
        # XLA has started with it: one that it did not know would have ended the process.
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == wanted

    def test_the_contrary_in_the_environment_is_refused(self) -> None:
        done = self.configure_in_a_process("--xla_gpu_deterministic_ops=false")
        assert done.returncode == 1
        assert "UserError: deterministic was asked for, but XLA_FLAGS holds" in done.stderr

    @pytest.mark.parametrize("cores", [2, 3, 4])
    def test_too_late_on_a_gpu_is_refused(self, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether or not the number of CPU devices is the one that JAX has started with, four here."""
        jax.devices()
        monkeypatch.setattr(module, "usable_cores", lambda: cores)
        monkeypatch.setenv("XLA_FLAGS", "")
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        with pytest.raises(UserError, match="after JAX has started"):
            prepare(RuntimeConfig(deterministic=True), 8, print)
