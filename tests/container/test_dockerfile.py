"""Dockerfile and .dockerignore, read as text and held to what the README promises of the image; nothing is built."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest

from trpo_brax.presets import preset
from trpo_brax.runs.folder import default_run_dir

ROOT = Path(__file__).parents[2]
REQUIREMENTS = {
    "cpu": "requirements/base.txt",
    "cuda12": "requirements/cuda12.txt",
    "cuda13": "requirements/cuda13.txt",
}


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, and its arguments with line continuations resolved."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The exec form's list, or the words of any other form."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)

    @property
    def pairs(self) -> dict[str, str]:
        """NAME=VALUE, as ARG and ENV have it; a name without a value has an empty one."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words)}

    @property
    def paths(self) -> list[str]:
        """A COPY's sources and its destination, without options."""
        return [word for word in self.words if not word.startswith("--")]

    @property
    def origin(self) -> str | None:
        """The stage that a COPY takes from; None: the build context."""
        return next((word.removeprefix("--from=") for word in self.words if word.startswith("--from=")), None)


@dataclass
class Stage:
    """A FROM and what follows it."""

    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, *names: str) -> list[Instruction]:
        """Instructions of these names, in order."""
        return [one for one in self.instructions if one.name in names]

    def index(self, wanted: Instruction) -> int:
        """Where an instruction stands."""
        return next(index for index, one in enumerate(self.instructions) if one is wanted)

    @property
    def environment(self) -> dict[str, str]:
        """What ENV has set by the end of the stage."""
        return {name: value for one in self.all("ENV") for name, value in one.pairs.items()}

    @property
    def package_installs(self) -> list[tuple[Instruction, list[str]]]:
        """Every `pip install`: the RUN that it stands in, and its arguments."""
        return [
            (one, shlex.split(command))
            for one in self.all("RUN")
            for command in re.findall(r"\bpip3? install([^&;|]*)", one.text)
        ]


def parse(text: str) -> tuple[dict[str, str], list[Stage]]:
    """Return the arguments declared before the first FROM, and the stages."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\[ \t]*\n", " ", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in filter(None, map(str.strip, whole.splitlines())):
        name, _, rest = line.partition(" ")
        one = Instruction(name.upper(), rest.strip())
        if one.name == "FROM":
            base, *alias = [word for word in one.words if not word.startswith("--")]
            stages.append(Stage(base, alias[1] if alias else None))
        elif stages:
            stages[-1].instructions.append(one)
        else:
            assert one.name == "ARG", f"{one.name} stands before FROM"
            arguments |= one.pairs
    return arguments, stages


TEXT = (ROOT / "Dockerfile").read_text()
ARGUMENTS, STAGES = parse(TEXT)
FINAL = STAGES[-1]
INSTALLING = [stage for stage in STAGES if stage.package_installs]
BUILD = INSTALLING[0]
VOLUMES = [path for one in FINAL.all("VOLUME") for path in one.words]
CONTEXT_COPIES = [one for stage in STAGES for one in stage.all("COPY", "ADD") if one.origin is None]


def in_a_volume(path: str) -> bool:
    """Tell whether a path of the image is writable on a read-only root filesystem."""
    return any(PurePosixPath(path).is_relative_to(volume) for volume in VOLUMES)


def test_the_parser_reads_continuations_comments_stages_and_scopes() -> None:
    arguments, stages = parse(
        'ARG A=1\nFROM x AS y\nRUN a \\\n  # why\n  b\nENV C=1 \\\n    D="2 3"\nFROM z\nCMD ["e"]\n'
    )
    assert arguments == {"A": "1"}
    assert [(stage.base, stage.name) for stage in stages] == [("x", "y"), ("z", None)]
    assert stages[0].all("RUN")[0].words == ["a", "b"]
    assert stages[0].environment == {"C": "1", "D": "2 3"} and stages[1].environment == {}
    assert stages[1].all("CMD")[0].words == ["e"]


class TestBase:
    def test_it_is_an_argument_with_a_default(self) -> None:
        assert ARGUMENTS == {"BASE_IMAGE": "python:3.11-slim-bookworm"}

    def test_every_stage_starts_from_it(self) -> None:
        assert {stage.base for stage in STAGES} == {"${BASE_IMAGE}"}

    def test_what_builds_is_not_what_ships(self) -> None:
        assert len(STAGES) > 1
        assert not FINAL.package_installs
        names = {stage.name for stage in STAGES[:-1]}
        assert {one.origin for one in FINAL.all("COPY", "ADD")} <= names, "the last stage copies from earlier ones only"

    def test_arguments_are_declared_where_they_are_used(self) -> None:
        """An ARG ends with its stage."""
        for stage in STAGES:
            known = {"PATH"}
            for one in stage.instructions:
                if one.name in ("RUN", "ENV", "COPY", "USER", "WORKDIR", "VOLUME", "ENTRYPOINT", "CMD"):
                    own = set(re.findall(r"(?:^|[\s;(])(\w+)=", one.text)) if one.name == "RUN" else set()
                    used = set(re.findall(r"\$\{?(\w+)", one.text))
                    assert used <= known | own, f"{one.name} {one.text}"
                if one.name in ("ARG", "ENV"):
                    known |= set(one.pairs)

    def test_no_address_of_a_registry_or_an_index(self) -> None:
        for file in ("Dockerfile", ".dockerignore"):
            text = (ROOT / file).read_text()
            assert "://" not in text
            assert not re.search(r"(?i)index[-_]url|find[-_]links|trusted[-_]host|\b\w*proxy=", text)
            assert not re.search(r"\b[\w-]+\.(com|org|net|io|dev|cloud)\b", text)


class TestInstalling:
    def test_dependencies_are_pinned_by_hash_and_never_built(self) -> None:
        for _, words in BUILD.package_installs[:-1]:
            assert {"--require-hashes", "--only-binary", ":all:", "--requirement"} <= set(words)
        assert len(BUILD.package_installs) == 2 and INSTALLING == [BUILD]

    def test_the_package_brings_nothing_with_it_and_is_not_editable(self) -> None:
        _, words = BUILD.package_installs[-1]
        assert {"--no-deps", "--no-build-isolation", "."} <= set(words)
        assert not {"-e", "--editable"} & set(words)

    def test_installing_leaves_no_cache_behind(self) -> None:
        assert BUILD.environment["PIP_NO_CACHE_DIR"] == "1"

    def test_bytecode_does_not_hang_on_the_time_of_its_source(self) -> None:
        """Copying between stages may round it; stale bytecode costs seconds at every start."""
        first = BUILD.all("RUN")[0]
        before = BUILD.instructions[: BUILD.index(first)]
        assert any("SOURCE_DATE_EPOCH" in one.pairs for one in before if one.name == "ENV")

    def test_an_edit_of_the_code_installs_no_dependency_again(self) -> None:
        (dependencies, _), (package, _) = BUILD.package_installs
        before = BUILD.instructions[: BUILD.index(dependencies)]
        assert [path for one in before if one.name == "COPY" for path in one.paths[:-1]] == ["requirements/"]
        after = BUILD.instructions[BUILD.index(dependencies) : BUILD.index(package)]
        assert "trpo_brax/" in [path for one in after if one.name == "COPY" for path in one.paths]

    def test_the_code_is_a_layer_of_its_own_over_its_dependencies(self) -> None:
        folder = next(word for word in shlex.split(BUILD.all("RUN")[0].text) if word.startswith("/"))
        _, words = BUILD.package_installs[-1]
        prefix = words[words.index("--prefix") + 1]
        copied = [[path.rstrip("/") for path in one.paths] for one in FINAL.all("COPY")]
        assert copied == [[folder, folder], [prefix, folder]]
        assert FINAL.environment["PATH"] == f"{folder}/bin:$PATH"


class TestAccelerator:
    def choose(self, accelerator: str) -> subprocess.CompletedProcess[str]:
        """Run the RUN that installs the dependencies, with an echo for the Python of the image."""
        one, _ = BUILD.package_installs[0]
        command, count = re.subn(r"\S+/python\b", "echo", one.text)
        assert count == 1
        return subprocess.run(
            ["/bin/sh", "-c", command],
            env={"PATH": "/nowhere", "ACCELERATOR": accelerator},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_it_is_an_argument_of_its_stage_with_a_default(self) -> None:
        one, _ = BUILD.package_installs[0]
        declared = [early.pairs for early in BUILD.instructions[: BUILD.index(one)] if early.name == "ARG"]
        assert [pairs["ACCELERATOR"] in REQUIREMENTS for pairs in declared if "ACCELERATOR" in pairs] == [True]

    @pytest.mark.parametrize(("accelerator", "file"), REQUIREMENTS.items())
    def test_it_chooses_the_requirements(self, accelerator: str, file: str) -> None:
        done = self.choose(accelerator)
        assert done.returncode == 0 and done.stderr == ""
        assert done.stdout.split()[-2:] == ["--requirement", file]
        assert (ROOT / file).is_file()

    @pytest.mark.parametrize("accelerator", ["rocm", "cuda", "cuda 12", "cuda12|cpu", "CPU", ""])
    def test_anything_else_is_refused_in_one_sentence(self, accelerator: str) -> None:
        done = self.choose(accelerator)
        assert done.returncode != 0 and done.stdout == ""
        assert done.stderr == f"ACCELERATOR is '{accelerator}', and can be cpu, cuda12 or cuda13.\n"


class TestRunning:
    def test_the_gpu_is_there_for_computing_and_for_rendering(self) -> None:
        assert FINAL.environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility,graphics"
        assert FINAL.environment["NVIDIA_VISIBLE_DEVICES"] == "all"

    def test_the_commit_arrives_in_the_environment(self) -> None:
        assert FINAL.environment["GIT_COMMIT"] == "$GIT_COMMIT"
        declared = [one for one in FINAL.all("ARG") if "GIT_COMMIT" in one.pairs]
        assert [one.pairs["GIT_COMMIT"] for one in declared] == [""], "an unknown commit is no commit"

    def test_a_new_commit_makes_no_layer_again(self) -> None:
        declared = next(one for one in FINAL.all("ARG") if "GIT_COMMIT" in one.pairs)
        assert not {one.name for one in FINAL.instructions[FINAL.index(declared) :]} & {"RUN", "COPY", "ADD"}

    def test_the_entrypoint_is_the_command_itself(self) -> None:
        """Exec form: signals and the exit status are the trainer's own."""
        (entry,) = FINAL.all("ENTRYPOINT")
        assert entry.text.startswith("[") and entry.words == ["trpo-brax"]
        assert "trpo-brax" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        assert not FINAL.all("STOPSIGNAL"), "SIGTERM, the default, is what saves a run"

    def test_the_log_is_written_at_once(self) -> None:
        assert FINAL.environment["PYTHONUNBUFFERED"] == "1"


class TestRendering:
    def installing(self) -> str:
        """Return the RUN of the last stage that installs system packages."""
        (one,) = [one for one in FINAL.all("RUN") if "apt-get install" in one.text]
        return one.text

    @pytest.mark.parametrize("library", ["libegl1", "libgl1", "libgl1-mesa-dri", "libosmesa6"])
    def test_the_libraries_are_in_what_ships(self, library: str) -> None:
        words = shlex.split(self.installing().partition("apt-get install")[2].partition("&&")[0])
        assert library in words and "--no-install-recommends" in words

    def test_package_lists_are_left_out(self) -> None:
        assert "apt-get update &&" in self.installing() and "rm -rf /var/lib/apt/lists/*" in self.installing()

    def test_egl_finds_the_driver_of_the_gpu(self) -> None:
        written = re.search(r"echo '([^']*)'\s*>\s*/usr/share/glvnd/egl_vendor\.d/10_nvidia\.json", self.installing())
        assert written is not None
        assert json.loads(written[1])["ICD"] == {"library_path": "libEGL_nvidia.so.0"}

    def test_how_to_render_is_chosen_at_run_time(self) -> None:
        for stage in STAGES:
            assert not {"MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"} & set(stage.environment)


class TestUserAndFiles:
    def test_the_user_is_a_number_and_not_root(self) -> None:
        (one,) = FINAL.all("USER")
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one.text)
        assert not {"RUN", "COPY", "ADD"} & {late.name for late in FINAL.instructions[FINAL.index(one) :]}

    def test_runs_and_cache_are_volumes_that_any_user_may_write(self) -> None:
        assert set(VOLUMES) == {"/runs", "/cache"}
        made = [one for one in FINAL.all("RUN") if re.search(r"mkdir --mode 1777( /runs| /cache){2}", one.text)]
        assert len(made) == 1
        assert FINAL.index(made[0]) < FINAL.index(FINAL.all("VOLUME")[0]), "later changes of a volume are lost"

    def test_home_needs_no_passwd_entry_and_is_writable(self) -> None:
        assert in_a_volume(FINAL.environment["HOME"])
        assert not any("useradd" in one.text or "adduser" in one.text for one in FINAL.all("RUN"))

    def test_compiled_programs_go_to_the_cache(self) -> None:
        """By the user's cache folder: JAX's own variable would also take over what is worth caching."""
        assert PurePosixPath(FINAL.environment["XDG_CACHE_HOME"]).is_relative_to("/cache")
        assert "JAX_COMPILATION_CACHE_DIR" not in FINAL.environment

    def test_nothing_is_written_outside_the_volumes(self) -> None:
        assert FINAL.environment["PYTHONDONTWRITEBYTECODE"] == "1"
        # Matplotlib and CUDA look there, unless told otherwise.
        for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "CUDA_CACHE_PATH"):
            assert in_a_volume(FINAL.environment.get(name, FINAL.environment["HOME"]))

    def test_the_default_run_folder_is_in_the_volume(self) -> None:
        (folder,) = FINAL.all("WORKDIR")
        assert PurePosixPath(folder.text, default_run_dir(preset("hopper"))).parent == PurePosixPath("/runs")


def let_in(path: str) -> bool:
    """Tell whether .dockerignore lets a file in: the last pattern that matches it, or a folder of it, decides."""
    verdict = True
    parts = PurePosixPath(path).parts
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        wildcards = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
        pieces = re.findall(r"\*\*/|[*?]|\[[^\]]+\]|[^*?\[]+", pattern.removeprefix("!").strip("/"))
        regex = "".join(wildcards.get(one, one if one.startswith("[") else re.escape(one)) for one in pieces)
        if any(re.fullmatch(regex, "/".join(parts[:count])) for count in range(1, len(parts) + 1)):
            verdict = pattern.startswith("!")
    return verdict


def package_files() -> Iterator[str]:
    """Yield the files of the package that are its source."""
    for file in (ROOT / "trpo_brax").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".pyc", ".pyo"):
            yield file.relative_to(ROOT).as_posix()


class TestContext:
    def test_every_source_of_a_copy_exists_and_is_let_in(self) -> None:
        sources = [path for one in CONTEXT_COPIES for path in one.paths[:-1]]
        assert set(sources) == {"requirements/", "pyproject.toml", "README.md", "LICENSE", "trpo_brax/"}
        for source in sources:
            assert (ROOT / source).is_dir() if source.endswith("/") else let_in(source) and (ROOT / source).is_file()

    def test_the_whole_package_is_let_in(self) -> None:
        assert [path for path in package_files() if not let_in(path)] == []

    @pytest.mark.parametrize("file", REQUIREMENTS.values())
    def test_the_requirements_are_let_in(self, file: str) -> None:
        assert let_in(file)

    def test_what_the_metadata_names_is_copied(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        copied = {path for one in CONTEXT_COPIES for path in one.paths}
        assert {project["readme"], *project["license-files"]} <= copied

    def test_nothing_else_of_the_root_is_let_in(self) -> None:
        copied = {path.rstrip("/") for one in CONTEXT_COPIES for path in one.paths[:-1]}
        there = {file.name for file in ROOT.iterdir()}
        assert {name for name in there if let_in(name) or let_in(f"{name}/any")} <= copied
        assert {file.name for file in (ROOT / "requirements").iterdir() if let_in(f"requirements/{file.name}")} == {
            Path(file).name for file in REQUIREMENTS.values()
        }

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
    def test_what_is_not_needed_stays_out(self, path: str) -> None:
        assert not let_in(path)
