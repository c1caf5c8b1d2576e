"""The command line in process: one sentence for whatever cannot work, and thin calls for whatever can."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trpo_brax as tb
from tests.contract import EVALUATION_KEYS
from tests.tiny_environments import History
from tests.tiny_runs import HISTORY, TINY, another, arbitrary_state, contents, tiny_program, train_tiny
from trpo_brax import config as config_module
from trpo_brax.cli import _COMMANDS, main
from trpo_brax.config import Config, override, to_dict, walk
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.run import Run
from trpo_brax.runs.saving import CheckpointSaver

BACKENDS = {
    "ant": 4,
    "halfcheetah": 4,
    "hopper": 4,
    "humanoid": 4,
    "humanoidstandup": 4,
    "inverted_double_pendulum": 4,
    "inverted_pendulum": 4,
    "pusher": 4,
    "reacher": 4,
    "swimmer": 1,
    "walker2d": 4,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a tiny run of four iterations; tests that touch it copy it."""
    return train_tiny(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def here(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: a copy of the run, a folder in use, a file, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine too")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once where bad input gets as far as compiling, instead of training a million steps."""

    def refuse(*_: Any) -> None:
        pytest.fail("training began")

    monkeypatch.setattr("trpo_brax.learner.program.Program.__init__", refuse)


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence on standard error that the command line ends with, exit status 2."""
    capsys.readouterr()
    status = main(words)
    told = capsys.readouterr()
    assert status == 2, told
    assert "Traceback" not in told.out + told.err
    assert re.fullmatch(r"trpo-brax: \S.*[.?]\n", told.err), f"not one line: {told.err!r}"
    assert not re.search(r"[.!?] [A-Z]", told.err), f"more than one sentence: {told.err!r}"
    assert len(told.err) < 600
    return told.err


def refused_untouched(words: list[str], fragments: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check the sentence, and that nothing was created, changed or removed."""
    before = contents(here)
    sentence = refusal(words, capsys)
    for fragment in fragments:
        assert fragment in sentence, sentence
    assert contents(here) == before


EVALUATE = ["evaluate", "run", "--environment", HISTORY]
RESUME = ["train", "--run-dir", "run", "--resume", "--environment", HISTORY]
OWN = ["train", "--environment"]
NOBODY = "~nobody-of-that-name"

# Words, and what the sentence must hold: the field or thing, and what is allowed or near.
BAD: dict[str, tuple[list[str], list[str]]] = {
    # Numbers
    "no environments": (["train", "--num-envs", "0"], ["num_envs", "at least 4", "0"]),
    "too few environments": (["train", "--num-envs", "3"], ["num_envs", "at least 4", "3"]),
    "environments in words": (["train", "--num-envs", "many"], ["num-envs", "whole number", "many"]),
    "fraction of an environment": (["train", "--num-envs", "64.5"], ["num-envs", "whole number", "64.5"]),
    "more environments than int32": (["train", "--num-envs", "2147483648"], ["num_envs"]),
    "short unroll": (["train", "hopper", "--unroll-length", "3"], ["unroll_length", "at least 4", "3"]),
    "no steps": (["train", "--total-steps", "0"], ["total_steps", "at least 1"]),
    "negative steps": (["train", "--total-steps", "-5"], ["total_steps", "at least 1", "-5"]),
    "more steps than a float": (["train", "--total-steps", "9" * 400], ["total_steps"]),
    "KL nan": (["train", "--max-kl", "nan"], ["max_kl", "greater than 0", "nan"]),
    "KL infinite": (["train", "--max-kl", "inf"], ["max_kl", "inf"]),
    "KL zero": (["train", "--max-kl", "0"], ["max_kl", "greater than 0"]),
    "KL negative": (["train", "--max-kl", "-0.01"], ["max_kl", "greater than 0", "-0.01"]),
    "KL missing": (["train", "--max-kl"], ["--max-kl"]),
    "KL in words": (["train", "--max-kl", "small"], ["max-kl", "a number", "small"]),
    "discount above one": (["train", "--discount", "1.01"], ["discount", "at most 1", "1.01"]),
    "discount nan": (["train", "--discount", "nan"], ["discount", "nan"]),
    "trace decay negative": (["train", "--trace-decay", "-0.5"], ["trace_decay", "at least 0", "-0.5"]),
    "damping infinite": (["train", "--damping", "inf"], ["damping", "inf"]),
    "no Fisher samples": (["train", "--fisher-fraction", "0"], ["fisher_fraction", "greater than 0"]),
    "no backtracking": (["train", "--backtrack-factor", "1"], ["backtrack_factor", "less than 1"]),
    "acceptance of all": (["train", "--acceptance-ratio", "1"], ["acceptance_ratio", "less than 1"]),
    "learning rate zero": (["train", "--critic-learning-rate", "0"], ["critic_learning_rate", "greater than 0"]),
    "no episode length": (["train", "--episode-length", "0"], ["episode_length", "at least 1"]),
    "episode beyond int32": (["train", "--episode-length", "3000000000"], ["episode_length"]),
    "empty layer": (["train", "--policy-hidden-sizes", "8", "0"], ["policy_hidden_sizes", "at least 1"]),
    "seed negative": (["train", "--seed", "-1"], ["seed", "at least 0", "-1"]),
    "seed beyond 32 bits": (["train", "--seed", "4294967296"], ["seed", "4294967295", "4294967296"]),
    # Names
    "unknown task": (["train", "hoper"], ["hoper", "hopper"]),
    "unknown task behind options": (["train", "--seed", "3", "Walker2d"], ["Walker2d", "walker2d"]),
    "two tasks": (["train", "hopper", "ant"], ["unknown argument ant;"]),
    "unknown backend": (["train", "--backend", "sprig"], ["backend", "sprig", "did you mean spring?"]),
    "swimmer on spring": (["train", "swimmer", "--backend", "spring"], ["swimmer", "spring", "generalized"]),
    "unknown activation": (["train", "--activation", "tahn"], ["activation", "tahn", "did you mean tanh?"]),
    "unknown mode": (["train", "--mode", "tpro"], ["mode", "tpro", "did you mean trpo?"]),
    "unknown option": (["train", "--nun-envs", "8"], ["unknown option --nun-envs; did you mean --num-envs?"]),
    "unknown options": (
        ["train", "--xx", "-3", "--yy=a,b"],
        ["unknown options --xx, --yy=a,b; see trpo-brax train --help"],
    ),
    "unknown command": (["trian"], ["trian", "did you mean train?"]),
    "unknown command far off": (["xyzzy"], ["xyzzy", "train", "evaluate"]),
    "option before the command": (["--seed", "3", "train"], ["--seed"]),
    "word after tasks": (["tasks", "hopper"], ["hopper"]),
    "task to check": (["check", "hoper"], ["hoper", "hopper"]),
    # Devices
    "no GPU": (["train", "--platform", "gpu"], ["gpu"]),
    "unknown platform": (["train", "--platform", "gup"], ["platform", "gup", "did you mean gpu?"]),
    "devices that do not divide": (["train", "--num-envs", "8", "--cpu-devices", "3"], ["cpu_devices", "3", "8"]),
    "no devices": (["train", "--cpu-devices", "0"], ["cpu_devices", "at least 1"]),
    "cache below a file": (["train", "--compilation-cache", "file/cache"], ["compilation_cache", "file/cache"]),
    # Actions
    "one action bound": (["train", "--action-low", "-1"], ["action_low", "action_high"]),
    "bounds the wrong way": (
        [*OWN, HISTORY, "--action-low", "1", "--action-high", "-1"],
        ["action_low", "action_high", "less than"],
    ),
    "bounds for a Brax task": (
        ["train", "hopper", "--action-low", "-2", "--action-high", "2"],
        ["action_low", "action_high", "hopper"],
    ),
    # Folders
    "used folder": (["train", "--run-dir", "used"], ["run_dir", "used", "--resume"]),
    "the current folder": (["train", "--run-dir", "."], ["run_dir", "--resume"]),
    "another run": (["train", "--run-dir", "run"], ["run_dir", "run", "--resume"]),
    "file for a folder": (["train", "--run-dir", "file"], ["run_dir", "file"]),
    "dangling link": (["train", "--run-dir", "dangling"], ["run_dir", "dangling"]),
    "folder below a file": (["train", "--run-dir", "file/run"], ["run_dir", "file/run"]),
    "folder in /proc": (["train", "--run-dir", "/proc/trpo/run"], ["run_dir", "/proc/trpo/run"]),
    "name too long": (["train", "--run-dir", "r" * 300], ["run_dir"]),
    "folder of nobody": (["train", "--run-dir", f"{NOBODY}/run"], [NOBODY, "home"]),
    # Resuming
    "resume nothing": (["train", "--resume"], ["--resume", "--run-dir"]),
    "resume what is not there": (["train", "--resume", "--run-dir", "absent"], ["absent"]),
    "resume what is no run": (["train", "--resume", "--run-dir", "used"], ["used", "config.json"]),
    "resume an empty folder": (["train", "--resume", "--run-dir", "empty"], ["empty", "config.json"]),
    "resume a file": (["train", "--resume", "--run-dir", "file"], ["file"]),
    "resume in a folder of nobody": (["train", "--resume", "--run-dir", NOBODY], [NOBODY, "home"]),
    "resume without the environment": (["train", "--resume", "--run-dir", "run"], ["--environment", HISTORY]),
    "resume in another environment": (
        ["train", "--resume", "--run-dir", "run", "--environment", "tests.tiny_environments:PointMass"],
        ["environment"],
    ),
    "resume with another seed": ([*RESUME, "--seed", "5"], ["seed"]),
    "resume with other sizes": ([*RESUME, "--num-envs", "16", "--unroll-length", "4"], ["num_envs", "unroll_length"]),
    "resume with another KL": ([*RESUME, "--max-kl", "0.02"], ["max_kl"]),
    "resume with another network": ([*RESUME, "--critic-hidden-sizes", "4"], ["critic_hidden_sizes"]),
    "resume another task": ([*RESUME, "hopper"], ["task"]),
    # Environments
    "arguments it does not take": (
        [*OWN, HISTORY, "--environment-arguments", '{"goal": 2}'],
        ["environment_arguments", "goal"],
    ),
    "arguments that are no JSON": ([*OWN, HISTORY, "--environment-arguments", "goal=2"], ["environment_arguments"]),
    "arguments for no environment": (
        ["evaluate", "run", "--environment-arguments", "{}"],
        ["--environment-arguments", "--environment"],
    ),
    "no such module": ([*OWN, "tests.nothing:Env"], ["environment", "tests.nothing"]),
    "no such class": ([*OWN, "tests.tiny_environments:Histroy"], ["Histroy", "did you mean History?"]),
    "no class": ([*OWN, "tests.tiny_environments"], ["environment", "module:Class"]),
    "no module": ([*OWN, ":History"], ["environment", "module:Class"]),
    "relative module": ([*OWN, ".tiny_environments:History"], ["environment", ".tiny_environments"]),
    "no environment at all": ([*OWN, "collections:OrderedDict"], ["OrderedDict", "reset"]),
    "dictionary observed": ([*OWN, "tests.tiny_environments:DictObservation"], ["DictObservation", "dictionary"]),
    # Comparing
    "compare one": (["compare", "run"], ["compare needs RUN_B; see"]),
    "compare with what is no run": (["compare", *EVALUATE[1:], "used"], ["used", "config.json"]),
    "compare without the environment": (["compare", "run", "run"], ["environment", HISTORY]),
    "compare no episodes": (["compare", "run", *EVALUATE[1:], "--episodes", "0"], ["episodes", "at least 1"]),
    "compare with no checkpoint": (["compare", "run", *EVALUATE[1:], "--other-checkpoint", "3"], ["3", "2, 4"]),
    # Evaluating
    "evaluate nothing": (["evaluate"], ["evaluate needs RUN; see"]),
    "verify nothing": (["verify"], ["verify needs ARTIFACT and --run; see"]),
    "help on nothing": (["help", "trian"], ["trian", "did you mean train?"]),
    "evaluate what is not there": (["evaluate", "absent"], ["absent"]),
    "evaluate what is no run": (["evaluate", "used"], ["used", "config.json"]),
    "no episodes": (["evaluate", "run", "--episodes", "0"], ["episodes", "at least 1"]),
    "half an episode": (["evaluate", "run", "--episodes", "1.5"], ["episodes", "whole number"]),
    "evaluation seed": (["evaluate", "run", "--seed", "-1"], ["seed", "at least 0"]),
    "evaluate on a GPU": ([*EVALUATE, "--platform", "gpu"], ["gpu"]),
    "evaluate without the environment": (["evaluate", "run"], ["environment", HISTORY]),
    "evaluate in another environment": (
        ["evaluate", "run", "--environment", "tests.tiny_environments:Countdown"],
        ["Countdown", "observations"],
    ),
    "missing checkpoint": ([*EVALUATE, "--checkpoint", "3"], ["3", "2, 4"]),
    "unknown checkpoint": ([*EVALUATE, "--checkpoint", "newest"], ["newest", "best", "latest"]),
    # Other paths
    "run of nobody": (["evaluate", NOBODY], [NOBODY, "home"]),
    "episodes for nobody": ([*EVALUATE, "--output", f"{NOBODY}/e.npz"], [NOBODY, "home"]),
    "cache of nobody": (["train", "--compilation-cache", NOBODY], ["compilation_cache", NOBODY, "home"]),
    "certificate for nobody": (["certify", *EVALUATE[1:], "--output", NOBODY], [NOBODY, "home"]),
    "artifact of nobody": (["verify", NOBODY, "--run", *EVALUATE[1:]], [NOBODY, "home"]),
    "dump of nobody": (["replay", NOBODY], [NOBODY, "home"]),
    "report for nobody": (["report", "run", "--output", NOBODY], [NOBODY, "home"]),
    "picture for nobody": (["plot", "run", "--output", NOBODY], [NOBODY, "home"]),
    "table for nobody": (["plot", "run", "--table", NOBODY], [NOBODY, "home"]),
    "panels for nobody": (["plot", "run", "--panels", NOBODY], [NOBODY, "home"]),
    "difference with nobody": (["diff", "run", NOBODY], [NOBODY, "home"]),
}


def test_an_export_for_nobody_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself, as the stage that it is in has begun."""
    assert main(["export", *EVALUATE[1:], "--output", NOBODY]) == 2
    assert capsys.readouterr().err.endswith(f"\ntrpo-brax: {NOBODY} names a home that is not known.\n")
    assert not (here / NOBODY).exists()


@pytest.mark.parametrize("lacking", ["the current folder", "a folder for temporary files"])
def test_without_its_folders_nothing_is_begun_but_help_is_given(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if lacking == "the current folder":
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        told = "the current folder is gone: change to one that is there."
    else:
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
        told = "no folder for temporary files can be written: set TMPDIR to one that can."
    assert refusal(["train"], capsys) == f"trpo-brax: {told}\n"
    assert main(["--help"]) == 0


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("words", "fragments"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_touched(
    words: list[str], fragments: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused_untouched(words, fragments, here, capsys)


def write_config(text: str) -> Callable[[Path], None]:
    """Return what puts a text into config.json."""

    def write(run: Path) -> None:
        (run / "config.json").write_text(text)

    return write


def edit_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Return what changes config.json in a run folder."""

    def edit(run: Path) -> None:
        data = json.loads((run / "config.json").read_text())
        change(data)
        (run / "config.json").write_text(json.dumps(data))

    return edit


def link_config(run: Path) -> None:
    """Replace config.json by a link to it."""
    (run / "config.json").rename(run.parent / "elsewhere.json")
    (run / "config.json").symlink_to(run.parent / "elsewhere.json")


def foreign_checkpoint(run: Path) -> None:
    """Replace the latest checkpoint by that of a run with another network."""
    program = tiny_program(override(TINY, policy_hidden_sizes=(16,)))
    shutil.rmtree(run / "checkpoints" / "4")
    foreign = RunFolder(run.parent / "foreign")
    foreign.create(program.config)
    saver = CheckpointSaver(foreign, program.config)
    assert saver.save(4, arbitrary_state(program, 0).replace(iteration=4), {0: 1.0}) is None
    saver.close()
    shutil.move(foreign.checkpoints / "4", run / "checkpoints" / "4")
    shutil.rmtree(foreign.path)


DAMAGE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "half a config.json": (write_config(json.dumps(to_dict(TINY))[:200]), ["config.json"]),
    "empty config.json": (write_config(""), ["config.json"]),
    "list for config.json": (write_config("[]"), ["config.json"]),
    "linked config.json": (link_config, ["config.json"]),
    "unknown field": (edit_config(lambda data: data["rollout"].update(colour=3)), ["config.json", "colour"]),
    "missing field": (edit_config(lambda data: data["critic"].pop("critic_epochs")), ["config.json", "critic_epochs"]),
    "field out of bounds": (edit_config(lambda data: data["rollout"].update(num_envs=2)), ["num_envs", "at least 4"]),
    "field of another type": (edit_config(lambda data: data.update(seed="3")), ["seed", "whole number"]),
    "foreign checkpoint": (foreign_checkpoint, ["checkpoint", "policy_hidden_sizes (16,), not (8,)"]),
    "edited sizes": (
        edit_config(lambda data: data["rollout"].update(num_envs=16, unroll_length=4)),
        ["does not belong to this run's config.json", "num_envs 8, not 16, unroll_length 8, not 4"],
    ),
    "edited seeds": (edit_config(lambda data: data.update(num_seeds=2)), ["num_seeds 1, not 2"]),
    "edited network": (
        edit_config(lambda data: data["network"].update(activation="relu")),
        ["activation tanh, not relu"],
    ),
}


@pytest.mark.parametrize("command", ["evaluate", "resume"])
@pytest.mark.parametrize(("damage", "fragments"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_run_folder_is_refused_and_left_as_it_is(
    command: str,
    damage: Callable[[Path], None],
    fragments: list[str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(here / "run")
    words = {"evaluate": EVALUATE, "resume": [*RESUME, "--total-steps", "512"]}[command]
    refused_untouched(words, fragments, here, capsys)


@pytest.mark.parametrize("file", ["task.json", "checkpoints"])
def test_a_run_folder_without_its_parts_cannot_be_evaluated(
    file: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = here / "run" / file
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    refused_untouched(EVALUATE, [file], here, capsys)


def test_a_checkpoint_cut_short_is_told_once_by_a_whole_process(here: Path) -> None:
    """Orbax reads in threads of its own, whose tracebacks are nobody's business."""
    file = here / "run/checkpoints/4/policy/array_metadatas/process_0"
    file.write_bytes(file.read_bytes()[:100])
    before = contents(here)
    words = [sys.executable, "-m", "trpo_brax", *EVALUATE, "--episodes", "4"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 2
    assert re.fullmatch(r"trpo-brax: checkpoint \S*run/checkpoints/4 is damaged\b.*\.\n", done.stderr), done.stderr
    assert contents(here) == before


def test_a_brax_run_takes_no_environment_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(lambda data: data.update(environment=None, task="inverted_pendulum"))(here / "run")
    refused_untouched(EVALUATE, ["inverted_pendulum", "History"], here, capsys)


def test_an_environment_that_breaks_its_own_shape_leaves_nothing_behind(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*OWN, "tests.tiny_environments:ChangesShape", "--run-dir", "new", "--num-envs", "8", "--total-steps", "64"]
    refused_untouched(words, ["ChangesShape"], here, capsys)


def test_actions_of_another_range_shape_learning(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = json.loads((here / "run/task.json").read_text())
    (here / "run/task.json").write_text(json.dumps(task | {"action_low": [-0.4], "action_high": [0.4]}))
    refused_untouched([*RESUME, "--total-steps", "512"], ["run", "[-0.4] to [0.4]", "[-1.0] to [1.0]"], here, capsys)


def test_a_run_asks_for_the_arguments_of_its_environment(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(lambda data: data.update(environment_arguments='{"goal": 2}'))(here / "run")
    again = f"""--environment {HISTORY} --environment-arguments '{{"goal": 2}}'"""
    for words in (EVALUATE, RESUME):
        refused_untouched(words, [again], here, capsys)
    refused_untouched([*EVALUATE, "--environment-arguments", '{"goal": 3}'], ['{"goal": 2}'], here, capsys)


def test_a_second_trainer_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder(here / "run").locked():
        refused_untouched([*RESUME, "--total-steps", "512"], ["run", "in use", str(os.getpid())], here, capsys)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what `train` is called with, instead of training."""
    calls: list[dict[str, Any]] = []

    class Stub:
        """A run that has finished."""

        summary: dict[str, Any] = {"signal": None}  # noqa: RUF012

    def train(config: Config, **options: Any) -> Stub:
        calls.append({"config": config, **options})
        return Stub()

    monkeypatch.setattr("trpo_brax.training.loop.train", train)
    return calls


class TestTrainArguments:
    """Words on the command line become the configuration they say."""

    @pytest.mark.parametrize(
        ("words", "task", "changes"),
        [
            ("", "inverted_pendulum", {}),
            ("--seed 3", "inverted_pendulum", {"seed": 3}),
            ("hopper --seed 3", "hopper", {"seed": 3}),
            ("--seed 3 hopper", "hopper", {"seed": 3}),
            ("swimmer --backend generalized", "swimmer", {}),
            (
                "ant --num-envs 64 --unroll-length 16 --total-steps 1000 --episode-length 200 --backend mjx "
                "--discount 0.9 --trace-decay 0.8 --max-kl 0.05",
                "ant",
                {
                    "num_envs": 64,
                    "unroll_length": 16,
                    "total_steps": 1000,
                    "episode_length": 200,
                    "backend": "mjx",
                    "discount": 0.9,
                    "trace_decay": 0.8,
                    "max_kl": 0.05,
                },
            ),
            ("--policy-hidden-sizes 32 16 --critic-hidden-sizes 8", "inverted_pendulum", None),
        ],
    )
    def test_the_preset_and_what_was_given(
        self, words: str, task: str, changes: dict[str, Any] | None, asked: list[dict[str, Any]]
    ) -> None:
        if changes is None:
            changes = {"policy_hidden_sizes": (32, 16), "critic_hidden_sizes": (8,)}
        assert main(["train", *words.split()]) == 0
        assert [call["config"] for call in asked] == [override(tb.preset(task), **changes)]
        assert asked[0]["run_dir"] is None and asked[0]["resume"] is False

    def test_the_run_folder_and_resume(self, here: Path, asked: list[dict[str, Any]]) -> None:
        assert main(["train", "--run-dir", "new"]) == 0
        assert main([*RESUME, "--total-steps", "999"]) == 0
        assert [(call["run_dir"], call["resume"]) for call in asked] == [("new", False), ("run", True)]
        assert asked[1]["config"] == override(TINY, total_steps=999)

    @pytest.mark.parametrize("words", ["--run-dir ant", "--run-dir=ant", "--seed 1 --run-dir hopper"])
    def test_a_run_folder_named_like_a_task_is_no_task(self, words: str, asked: list[dict[str, Any]]) -> None:
        assert main(["train", *words.split()]) == 0
        assert asked[0]["config"].task == "inverted_pendulum"
        assert asked[0]["config"].rollout == tb.preset("inverted_pendulum").rollout

    @pytest.mark.parametrize("field", list(walk(Config())), ids=lambda field: field[0])
    def test_every_field_has_its_flag(self, field: tuple[str, Any, Any], asked: list[dict[str, Any]]) -> None:
        name, value, hint = field
        new = another(name, value, hint)
        flag = f"--{name.replace('_', '-')}"
        words = [new] if name == "task" else [flag, *(map(str, new) if isinstance(new, tuple) else [str(new)])]
        changes = {name: new}
        if isinstance(new, bool):
            words = [flag if new else f"--no-{flag[2:]}"]
        if name.startswith("action_"):
            words, changes = ["--action-low", "-3.0", "--action-high", "3.0"], {"action_low": -3.0, "action_high": 3.0}
        if name in ("final_max_kl", "final_discount", "final_log_std", "anneal_steps"):
            changes = {"final_max_kl": 0.003, "final_discount": 0.9995, "final_log_std": -3.0, "anneal_steps": 9}
            words = [word for key, last in changes.items() for word in (f"--{key.replace('_', '-')}", str(last))]
        if name == "environment_arguments":
            words, changes = [*words, "--environment", HISTORY], changes | {"environment": HISTORY}
        assert main(["train", *([] if name == "task" else ["hopper"]), *words]) == 0
        wanted = tb.preset("ant") if name == "task" else override(tb.preset("hopper"), **changes)
        assert asked[0]["config"] == wanted

    @pytest.mark.parametrize(("signal", "status"), [(None, 0), (1, 129), (2, 130), (15, 143)])
    def test_the_exit_status_tells_of_a_signal(
        self, signal: int | None, status: int, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trpo_brax.training import loop

        stub = loop.train(Config())
        monkeypatch.setattr(type(stub), "summary", {"signal": signal})
        assert main(["train"]) == status


def manual(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a help text without its frame and line breaks."""
    monkeypatch.setenv("COLUMNS", "80")  # wider ones get several columns
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main(words))
    assert stop.value.code == 0
    told = capsys.readouterr()
    assert told.err == ""
    return " ".join(word for line in told.out.splitlines() for word in line.strip("│| ").split())


def docstrings() -> dict[str, str]:
    """Return each configuration field's own docstring, read from the source."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(config_module))):
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[ast.unparse(field.target)] = ast.literal_eval(text.value)
    return found


class TestHelp:
    """The manual is the configuration's own."""

    @pytest.mark.parametrize("task", [None, "hopper"])
    def test_every_field_is_explained_with_the_presets_default(
        self, task: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = manual(["train", *([task] if task else []), "--help"], capsys, monkeypatch)
        told = docstrings()
        for name, value, _ in walk(tb.preset(task or "inverted_pendulum")):
            if name == "task" and task is not None:
                continue  # tyro leaves out a positional argument that it has been given
            default = " ".join(map(str, value)) if isinstance(value, tuple) else value
            assert f"{told[name]} (default: {default})" in text
            flag = name.replace("_", "-")
            assert name == "task" or f"--{flag} " in text or f"--no-{flag} " in text
        assert "--run-dir" in text and "--resume" in text

    @pytest.mark.parametrize("command", [command for command in _COMMANDS if command != "train"])
    def test_every_command_has_one(
        self, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert f"trpo-brax {command}" in manual([command, "--help"], capsys, monkeypatch)
        assert f"trpo-brax {command}" in manual(["help", command], capsys, monkeypatch)

    @pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
    def test_the_overview_names_the_commands(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 0
        told = capsys.readouterr()
        for command in _COMMANDS:
            assert f"trpo-brax {command}" in told.out
        assert told.err == ""

    def test_the_version_names_what_is_installed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        jax, brax = (importlib.import_module(name).__version__ for name in ("jax", "brax"))
        assert re.fullmatch(rf"trpo-brax \d+\.\d+\.\d+ \(jax {jax}, brax {brax}\)\n", capsys.readouterr().out)


def test_a_reader_that_has_seen_enough_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["tasks"]) == 128 + 13
    assert capsys.readouterr().err == ""


def test_a_closed_output_is_no_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["tasks"]) == 0
    sys.stdout.close()
    assert capsys.readouterr().err == ""


def test_tasks_lists_all_eleven_with_their_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.split()[0] in BACKENDS}
    assert rows.keys() == BACKENDS.keys()
    for task, backends in BACKENDS.items():
        found = re.findall(r"\b(spring|positional|generalized|mjx)\b", rows[task])
        assert len(found) == backends and (backends == 4 or found == ["generalized"])
        assert f"{tb.preset(task).total_steps:,}" in rows[task]


class TestWholeCommands:
    """Training and evaluating for real, on a tiny environment."""

    def test_train_then_evaluate(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        words = "--num-envs 8 --unroll-length 8 --episode-length 16 --total-steps 256 --policy-hidden-sizes 8"
        words += " --critic-hidden-sizes 8 --critic-fraction 1 --critic-damping 0.1 --checkpoint-every 2"
        words += " --eval-every 0 --final-evaluation-episodes 0"
        words += " --run-dir new"
        assert main(["train", "--environment", HISTORY, *words.split()]) == 0
        told = capsys.readouterr()
        assert told.err == "" and "4/4" in told.out and "new" in told.out
        files = {"config.json", "provenance.json", "metrics.jsonl", "checkpoints", "tensorboard"}
        assert {path.name for path in (tmp_path / "new").iterdir()} >= files | {"summary.json", "learning_curve.png"}
        assert Run.load("new").config == TINY

        before = contents(tmp_path)
        assert main(["evaluate", "new", "--environment", HISTORY, "--episodes", "12", "--json"]) == 0
        told = capsys.readouterr()
        report = json.loads(told.out)
        assert list(report) == EVALUATION_KEYS and told.out.count("\n") == 1
        wanted = tb.evaluate("new", episodes=12, environment=History()).to_dict()
        assert report.pop("failure") == wanted.pop("failure") == "terminated or non-finite"
        assert report == pytest.approx(wanted, rel=1e-6)

        assert main(["evaluate", "new", "--environment", HISTORY, "--episodes", "12", "--checkpoint", "2"]) == 0
        table = capsys.readouterr().out
        assert [line.split("  ")[0].strip().replace(" ", "_") for line in table.splitlines()] == EVALUATION_KEYS
        assert contents(tmp_path) == before

    def test_the_same_command_again_is_refused_and_a_resume_of_a_finished_run_is_not(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused_untouched(["train", "--environment", HISTORY, "--run-dir", "run"], ["already used"], here, capsys)
        before = {name: what for name, what in contents(here / "run").items() if name.startswith("checkpoints")}
        metrics = (here / "run/metrics.jsonl").read_text()
        assert main(RESUME) == 0
        after = {name: what for name, what in contents(here / "run").items() if name.startswith("checkpoints")}
        assert after == before and (here / "run/metrics.jsonl").read_text() == metrics


def test_compare_says_by_its_exit_status_whether_b_is_better(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checkpoint 2 beside the latest, either way round, within a range that their differences nearly fill."""
    words = ["compare", "run", *EVALUATE[1:], "--episodes", "2000", "--json"]
    found = {}
    for option in ("--checkpoint", "--other-checkpoint"):
        status = main([*words, option, "2", "--largest-difference", "2"])
        told = capsys.readouterr()
        found[option] = json.loads(told.out)
        assert told.out.count("\n") == 1 and status == (0 if found[option]["verdict"] == "better" else 1)
    a, b = found["--checkpoint"], found["--other-checkpoint"]
    assert {a["verdict"], b["verdict"]} == {"better", "worse"} and a["episodes"] == b["episodes"] < 2000
    assert a["difference_lower"] == -b["difference_upper"] and a["return_means"] == b["return_means"][::-1]
    assert main([*words[:-1], "--episodes", "20"]) == 1
    assert capsys.readouterr().out.startswith("It is not known which is better, after 20 episodes of each.\n")


class TestEvaluate:
    """What evaluate writes and counts, on a run of four iterations."""

    def test_every_episode_is_written_and_the_predicate_decides(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["evaluate", "run", "--environment", HISTORY, "--episodes", "12", "--json"]
        assert main([*words, "--output", "all.npz", "--failure", "length < 5 or return < -1", "--seed", "3"]) == 0
        report = json.loads(capsys.readouterr().out)
        with np.load(here / "all.npz") as found:
            failed = (found["lengths"] < 5) | (found["returns"] < -1) | found["nonfinite"]
            np.testing.assert_array_equal(found["failed"], failed)
            assert found["returns"].shape == (12,) and found["returns"].mean() == pytest.approx(report["return_mean"])
            assert str(found["failure"]) == report["failure"] and int(found["seed"]) == 3
        assert report["failure_rate"] == pytest.approx(failed.mean()) and 0 < failed.sum() < 12
        assert not list(here.glob("*.tmp")) + list(here.glob(".*"))

    def test_another_time_limit_cuts_the_same_episodes_elsewhere(self, here: Path) -> None:
        found = {}
        for limit in ("4", "7"):  # no episode of this task is longer than 7 steps
            words = ["evaluate", "run", "--environment", HISTORY, "--episodes", "12", "--output", f"{limit}.npz"]
            assert main([*words, "--episode-length", limit]) == 0
            with np.load(here / f"{limit}.npz") as file:
                found[limit] = dict(file)
        whole = found["7"]["lengths"]
        assert whole.min() < 4 < whole.max() and found["7"]["terminated"].all()
        np.testing.assert_array_equal(found["4"]["lengths"], np.minimum(whole, 4))
        np.testing.assert_array_equal(found["4"]["terminated"], whole <= 4)

    def test_what_is_written_goes_through_no_link(self, here: Path) -> None:
        elsewhere = here.parent / f"{here.name}-elsewhere"
        elsewhere.write_text("mine")
        for name in ("all.npz", "all.tmp", ".all.npz.tmp"):
            (here / name).symlink_to(elsewhere)
        words = ["evaluate", "run", "--environment", HISTORY, "--episodes", "2", "--output", "all.npz"]
        assert main(words) == 0 and elsewhere.read_text() == "mine" and not (here / "all.npz").is_symlink()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--failure", "reward < 3"], ["failure", "return < 500"]),
            (["--episode-length", "0"], ["episode_length", "at least 1"]),
            (["--output", "all.csv"], ["output", ".npz"]),
            (["--output", "nowhere/all.npz"], ["nowhere/all.npz cannot be written: No such file or directory"]),
            (["--output", "run/config.json/all.npz"], ["all.npz cannot be written: Not a directory"]),
        ],
    )
    def test_what_cannot_work_is_said(
        self, here: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: list[str]
    ) -> None:
        refused_untouched(
            ["evaluate", "run", "--environment", HISTORY, "--episodes", "2", *options], words, here, capsys
        )
