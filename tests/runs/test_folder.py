"""The run folder: never half written, never held by two, never believed without looking."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_runs import contents
from trpo_brax.config import Config, override, to_dict
from trpo_brax.errors import RunFolderError
from trpo_brax.runs.files import read_json, write_json
from trpo_brax.runs.folder import RunFolder, default_run_dir
from trpo_brax.runs.records import read_metrics, write_records

CONFIG = override(Config(), task="ant", seed=3)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run folder that has just been created."""
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    return folder


class TestCreate:
    """A new folder, or nothing."""

    def test_it_holds_the_configuration(self, folder: RunFolder) -> None:
        assert folder.read_config() == CONFIG
        assert contents(folder.path).keys() == {"config.json"}

    def test_it_makes_the_folders_above(self, tmp_path: Path) -> None:
        RunFolder(tmp_path / "a" / "b" / "c").create(CONFIG)
        assert (tmp_path / "a/b/c/config.json").is_file()

    def test_an_empty_folder_will_do(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        RunFolder(tmp_path / "empty").create(CONFIG)
        assert RunFolder(tmp_path / "empty").read_config() == CONFIG

    def test_what_is_there_already_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "used").mkdir()
        (tmp_path / "used/notes.txt").write_text("mine")
        (tmp_path / "file").write_text("mine too")
        (tmp_path / "dangling").symlink_to("nowhere")
        (tmp_path / "link").symlink_to("used")
        before = contents(tmp_path)
        for name in ("used", "file", "dangling", "link"):
            with pytest.raises(RunFolderError, match=name):
                RunFolder(tmp_path / name).create(CONFIG)
        assert contents(tmp_path) == before

    def test_a_folder_that_cannot_be_filled_is_taken_away_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunFolderError, match="No space left"):
            RunFolder(tmp_path / "run").create(CONFIG)
        assert contents(tmp_path) == {}

    def test_a_name_too_long_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RunFolderError):
            RunFolder(tmp_path / ("a" * 300)).create(CONFIG)

    @pytest.mark.parametrize("name", ["sizes=[8,8]", "a*", "what?/run"])
    def test_a_name_that_orbax_takes_for_a_pattern_is_refused(self, name: str, tmp_path: Path) -> None:
        """Orbax 0.12.8 found nothing to gather there, and its checkpoints lacked every array."""
        for make in (RunFolder.fresh, lambda folder: folder.create(CONFIG)):
            with pytest.raises(RunFolderError, match="no checkpoint can be kept under"):
                make(RunFolder(tmp_path / name))
        assert contents(tmp_path) == {}

    @pytest.mark.parametrize(
        ("config", "name"),
        [(CONFIG, "ant-3"), (override(CONFIG, environment="my.worlds:Maze"), "Maze-3")],
    )
    def test_the_default_is_task_seed_timestamp(self, config: Config, name: str) -> None:
        assert re.fullmatch(rf"runs/{name}-\d{{8}}-\d{{6}}", str(default_run_dir(config)))

    @pytest.mark.parametrize("other_done", [True, False])
    def test_of_two_at_one_moment_one_has_it(
        self, other_done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second found nothing there; then the first one comes, and has ended, or not, when the second goes on."""
        locked, other = RunFolder.locked, contextlib.ExitStack()

        def late(folder: RunFolder) -> contextlib.AbstractContextManager[None]:
            monkeypatch.setattr(RunFolder, "locked", locked)
            other.enter_context(RunFolder(folder.path).created(CONFIG))
            if other_done:
                other.close()
            return locked(folder)

        monkeypatch.setattr(RunFolder, "locked", late)
        with pytest.raises(RunFolderError, match="already used" if other_done else rf"in use.* {os.getpid()}\b"):
            RunFolder(tmp_path / "run").create(override(CONFIG, seed=4))
        assert RunFolder(tmp_path / "run").read_config() == CONFIG
        other.close()
        assert contents(tmp_path / "run").keys() == {"config.json"}

    def test_a_name_that_nobody_chose_gets_a_number(self, tmp_path: Path) -> None:
        (tmp_path / "dangling").symlink_to("nowhere")
        wanted = RunFolder(tmp_path / "runs" / "ant")
        assert [wanted.fresh().path.name for _ in range(3)] == ["ant", "ant-2", "ant-3"]
        with pytest.raises(RunFolderError, match="dangling/ant cannot be written"):
            RunFolder(tmp_path / "dangling" / "ant").fresh()


class TestJson:
    """Files are whole or as they were."""

    def test_a_reader_never_sees_half_a_file(self, folder: RunFolder) -> None:
        file = folder.summary_file
        write_json(file, [0] * 5000)
        torn, stop = [], threading.Event()

        def read() -> None:
            while not stop.is_set():
                try:
                    data = json.loads(file.read_text())
                except (ValueError, OSError) as error:
                    torn.append(error)
                else:
                    torn.extend([data] if len(set(data)) != 1 else [])

        reader = threading.Thread(target=read)
        reader.start()
        for value in range(50):
            write_json(file, [value] * 5000)
        stop.set()
        reader.join()
        assert torn == []

    def test_what_cannot_be_written_leaves_the_old_file_and_no_other(
        self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = contents(folder.path)
        for data in (float("nan"), {"a": [float("inf")]}, object()):
            with pytest.raises((ValueError, TypeError)):
                write_json(folder.config_file, data)
        assert contents(folder.path) == before

    def test_it_is_read_back(self, folder: RunFolder) -> None:
        data = {"a": [1, 2.5, None, True, "é"], "b": {}}
        write_json(folder.summary_file, data)
        assert read_json(folder.summary_file) == data

    @pytest.mark.parametrize(
        "text", ["", "{", "{'a': 1}", "NaN", '{"a": Infinity}', "[" * 100_000, "\x00", "[1] 2"], ids=range(8)
    )
    def test_what_is_not_json_is_refused_by_name(self, folder: RunFolder, text: str) -> None:
        folder.summary_file.write_text(text)
        with pytest.raises(RunFolderError, match=r"summary\.json"):
            read_json(folder.summary_file)

    def test_bytes_that_are_no_text_are_refused(self, folder: RunFolder) -> None:
        folder.summary_file.write_bytes(b"\xff\xfe{}")
        with pytest.raises(RunFolderError, match=r"summary\.json"):
            read_json(folder.summary_file)

    def test_links_and_giants_and_holes_are_not_read(self, folder: RunFolder, tmp_path: Path) -> None:
        (tmp_path / "secret.json").write_text('{"password": "1234"}')
        folder.summary_file.symlink_to(tmp_path / "secret.json")
        with pytest.raises(RunFolderError, match=r"summary\.json"):
            read_json(folder.summary_file)
        folder.summary_file.unlink()
        with pytest.raises(RunFolderError, match=r"summary\.json"):
            read_json(folder.summary_file)
        folder.summary_file.write_text(f'"{"a" * (2 << 20)}"')
        with pytest.raises(RunFolderError, match=r"summary\.json"):
            read_json(folder.summary_file)


class TestConfiguration:
    """config.json of somebody else's making."""

    def test_no_folder_and_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunFolderError, match="there is no run folder"):
            RunFolder(tmp_path / "absent").read_config()
        with pytest.raises(RunFolderError, match=r"config\.json"):
            RunFolder(tmp_path).read_config()

    def test_a_value_that_cannot_work_is_named(self, folder: RunFolder) -> None:
        data = to_dict(CONFIG)
        data["rollout"]["num_envs"] = 0
        write_json(folder.config_file, data)
        with pytest.raises(RunFolderError, match="num_envs"):
            folder.read_config()


def in_another_process(path: Path) -> subprocess.Popen[str]:
    """Return a process that holds the folder's lock until it is killed."""
    code = (
        "import sys, time\nfrom trpo_brax.runs.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked():\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


class TestLock:
    """One trainer at a time, and no lock outlives its owner."""

    def test_a_second_holder_is_refused_and_told_who(self, folder: RunFolder) -> None:
        refused = pytest.raises(RunFolderError, match=rf"in use.* {os.getpid()}\b")
        with folder.locked(), refused, RunFolder(folder.path).locked():
            pytest.fail("two hold the lock")

    def test_it_is_released_and_leaves_nothing(self, folder: RunFolder) -> None:
        before = contents(folder.path)
        with folder.locked():
            pass
        with pytest.raises(ZeroDivisionError), folder.locked():
            raise ZeroDivisionError
        assert contents(folder.path) == before
        with RunFolder(folder.path).locked():
            pass

    def test_a_refused_holder_does_not_release_it(self, folder: RunFolder) -> None:
        with folder.locked():
            for _ in range(2):
                with pytest.raises(RunFolderError), RunFolder(folder.path).locked():
                    pytest.fail("two hold the lock")

    def test_a_killed_process_holds_nothing(self, folder: RunFolder) -> None:
        process = in_another_process(folder.path)
        try:
            with pytest.raises(RunFolderError, match=str(process.pid)), folder.locked():
                pytest.fail("two hold the lock")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        with folder.locked():
            pass

    def test_the_moment_of_release_lets_only_one_in(self, folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second opens the lock file, the first releases, the second locks, a third comes."""
        first = folder.locked()
        first.__enter__()
        flock = fcntl.flock

        def release_then_lock(*arguments: Any) -> None:
            monkeypatch.setattr(fcntl, "flock", flock)
            first.__exit__(None, None, None)
            flock(*arguments)

        monkeypatch.setattr(fcntl, "flock", release_then_lock)
        second = RunFolder(folder.path).locked()
        try:
            second.__enter__()
        except RunFolderError:
            return  # to be refused is safe as well
        with pytest.raises(RunFolderError), RunFolder(folder.path).locked():
            pytest.fail("two hold the lock")
        second.__exit__(None, None, None)


def rows(count: int) -> list[dict[str, Any]]:
    """Return records with numbers that do not survive rounding."""
    numbers = range(1, count + 1)
    row = {"seed": 0, "kl_mean": 0.0, "episode_return_mean": None}
    return [row | {"iteration": i, "env_steps": 10 * i, "kl_mean": i / 3} for i in numbers]


class TestMetrics:
    """metrics.jsonl after a crash and before a resume."""

    def write(self, folder: RunFolder, records: list[dict[str, Any]], tail: str = "") -> None:
        folder.metrics_file.write_text("".join(f"{json.dumps(record)}\n" for record in records) + tail)

    def test_none_yet(self, folder: RunFolder) -> None:
        assert read_metrics(folder.metrics_file) == []

    def test_it_is_read_back(self, folder: RunFolder) -> None:
        self.write(folder, rows(5))
        assert read_metrics(folder.metrics_file) == rows(5)

    @pytest.mark.parametrize("length", [1, 10, 30])
    def test_a_last_line_cut_short_is_left_out(self, folder: RunFolder, length: int) -> None:
        self.write(folder, rows(2), json.dumps(rows(3)[2])[:length])
        assert read_metrics(folder.metrics_file) == rows(2)

    def test_a_last_line_without_its_end_may_be_cut_short_too(self, folder: RunFolder) -> None:
        """12 could have been the beginning of 123."""
        self.write(folder, rows(2), json.dumps(rows(3)[2]))
        assert read_metrics(folder.metrics_file) == rows(2)

    @pytest.mark.parametrize("count", [0, 3, 5])
    def test_what_is_kept_takes_the_place_of_all_there_was(self, folder: RunFolder, count: int) -> None:
        self.write(folder, rows(5), '{"iteration": 6, "env')
        write_records(folder.metrics_file, rows(count))
        assert folder.metrics_file.read_text() == "".join(f"{json.dumps(row)}\n" for row in rows(count))
        assert contents(folder.path).keys() == {"config.json", "metrics.jsonl"}

    @pytest.mark.parametrize("line", ["garbage", "{}", "[1]", '{"iteration": "one"}'])
    def test_a_line_that_is_no_record_is_refused_in_a_sentence(self, folder: RunFolder, line: str) -> None:
        self.write(folder, rows(2), f"{line}\n{json.dumps(rows(3)[2])}\n")
        before = contents(folder.path)
        with pytest.raises(RunFolderError, match=r"metrics\.jsonl"):
            read_metrics(folder.metrics_file)
        assert contents(folder.path) == before
