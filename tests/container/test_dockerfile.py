"""What the Dockerfile runs and what its build context holds, tried without Docker: the image itself is not built."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())


def choose(accelerator: str) -> subprocess.CompletedProcess[str]:
    """Run what installs the dependencies, with an echo for the Python of the image."""
    (command,) = re.findall(r"^RUN (case .*)$", DOCKERFILE, re.MULTILINE)
    command, count = re.subn(r"\S+/python\b", "echo", command)
    assert count == 1
    environment = {"PATH": "/nowhere", "ACCELERATOR": accelerator}
    return subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("accelerator", "file"), [("cpu", "base"), ("cuda12", "cuda12"), ("cuda13", "cuda13")])
def test_the_accelerator_chooses_what_is_installed_by_hash(accelerator: str, file: str) -> None:
    done = choose(accelerator)
    assert done.returncode == 0 and done.stderr == ""
    words = done.stdout.split()
    assert words[-2:] == ["--requirement", f"requirements/{file}.txt"] and (ROOT / words[-1]).is_file()
    assert {"--require-hashes", "--only-binary"} <= set(words)


@pytest.mark.parametrize("accelerator", ["rocm", "cuda", "cuda 12", "cuda12|cpu", "CPU", ""])
def test_any_other_accelerator_is_refused_in_one_sentence(accelerator: str) -> None:
    done = choose(accelerator)
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr == f"ACCELERATOR is '{accelerator}', and can be cpu, cuda12 or cuda13.\n"


def let_in(path: str) -> bool:
    """Tell whether .dockerignore lets a file in: the last pattern that matches it, or a folder of it, decides."""
    parts = PurePosixPath(path).parts
    prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    verdict = True
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        wanted = pattern.removeprefix("!")
        anywhere = wanted.startswith("**/")
        names = parts if anywhere else [one for one in prefixes if one.count("/") == wanted.count("/")]
        if wanted and not wanted.startswith("#"):
            verdict = pattern.startswith("!") if fnmatch.filter(names, wanted.removeprefix("**/")) else verdict
    return verdict


def test_what_is_copied_into_the_image_builds_the_whole_package(tmp_path: Path) -> None:
    """From nothing but the COPY instructions' sources, as far as .dockerignore lets them in."""
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [ROOT / word for line in copies for word in line.split()]
    assert all(source.exists() for source in sources)
    context, wheels = tmp_path / "context", tmp_path / "wheels"
    for file in (file for source in sources for file in (source.rglob("*") if source.is_dir() else [source])):
        name = file.relative_to(ROOT)
        if file.is_file() and let_in(name.as_posix()):
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, context / name)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
    subprocess.run(build, cwd=context, check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("/LICENSE") for name in names)
    packed = {name for name in names if name.startswith("trpo_brax/")}
    package = {file for file in (ROOT / "trpo_brax").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert packed == {file.relative_to(ROOT).as_posix() for file in package}
    assert {file.name for file in (context / "requirements").iterdir()} == {"base.txt", "cuda12.txt", "cuda13.txt"}


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "runs/hopper/config.json",
        "tests/conftest.py",
        "experiments/learning.py",
        "requirements/dev.txt",
        "trpo_brax/__pycache__/config.cpython-311.pyc",
        "trpo_brax/training/__pycache__/loop.cpython-311.pyc.140024",
        "trpo_brax/stray.pyc",
        "id_rsa",
    ],
)
def test_what_is_not_needed_stays_out_of_the_build(path: str) -> None:
    assert not let_in(path)
