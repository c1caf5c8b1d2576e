"""What is written is what TensorBoard and `metrics.jsonl` hold."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from trpo_brax.config import MOST_CHARACTERS, MOST_METRICS
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.recorder import Recorder
from trpo_brax.runs.records import read_metrics, write_records


def row(iteration: int, **changes: Any) -> dict[str, Any]:
    """Return a record with every kind of value that one has."""
    return {
        "seed": 0,
        "iteration": iteration,
        "env_steps": 64 * iteration,
        "episodes": 3,
        "episode_return_mean": -1.0 / iteration,
        "episode_return_std": None,
        "kl_mean": 1e-3 * iteration,
        "step_outcome": "accepted",
        "parameter_fingerprint": "0123abcd",
        "environment": {"distance": 0.5 * iteration, "speed": None},
    } | changes


def checksum(data: bytes) -> int:
    """Return TFRecord's masked CRC-32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder: RunFolder) -> list[Event]:
    """Read all event files in TensorBoard's order, which is by name. A record: length, checksum, data, checksum."""
    found = []
    for file in sorted(folder.tensorboard.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length, length_checksum = struct.unpack_from("<QI", data, at)
            body = data[at + 12 : at + 12 + length]
            assert checksum(data[at : at + 8]) == length_checksum
            assert checksum(body) == struct.unpack_from("<I", data, at + 12 + length)[0]
            found.append(Event.FromString(body))
            at += 16 + length
    return found


def scalars(found: list[Event]) -> list[tuple[int, str, float]]:
    """Return (step, tag, value) of each scalar, without those that a later restart hides, as TensorBoard does."""
    shown: list[tuple[int, str, float]] = []
    for event in found:
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            shown = [point for point in shown if point[0] < event.step]
        shown += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return shown


def kept(folder: RunFolder, iteration: int) -> list[dict[str, Any]]:
    """Leave the records up to an iteration, as resuming from its checkpoint does."""
    records = [record for record in read_metrics(folder.metrics_file) if record["iteration"] <= iteration]
    write_records(folder.metrics_file, records)
    return records


def next_second() -> None:
    """Wait for tensorboardX's next file name: it has the time in whole seconds."""
    time.sleep(1.05 - time.time() % 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return an empty run folder."""
    return RunFolder(tmp_path)


class TestRecorder:
    """Both files, line by line."""

    def test_lines_are_the_records_and_strict_json(self, folder: RunFolder) -> None:
        recorder = Recorder(folder, [])
        for iteration in (1, 2, 3):
            recorder.add([row(iteration)])
        recorder.flush()
        lines = folder.metrics_file.read_text().splitlines()
        assert [json.loads(line) for line in lines] == [row(1), row(2), row(3)] == read_metrics(folder.metrics_file)

    def test_whatever_metrics_an_environment_may_have_are_read_again(self, folder: RunFolder) -> None:
        """As many, of names as long and as odd, as `own_task` allows."""
        odd = "\u00e9\u2603. /".ljust(MOST_CHARACTERS - 20, "\U0001d54f")
        names = [f"{index:04}{odd}" for index in range(MOST_METRICS)]
        records = [row(n, environment=dict.fromkeys(names, -1.2345678e-30)) for n in (1, 2)]
        write_records(folder.metrics_file, records[:1])
        recorder = Recorder(folder, records[:1])
        recorder.add(records[1:])
        recorder.flush()
        assert read_metrics(folder.metrics_file) == records
        assert {tag for _, tag, _ in scalars(events(folder))} >= {f"environment/{name}" for name in names}

    def test_a_number_that_is_none_is_never_written(self, folder: RunFolder) -> None:
        recorder = Recorder(folder, [])
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="JSON"):
                recorder.add([row(1, kl_mean=value)])
        recorder.flush()
        assert folder.metrics_file.read_text() == ""

    def test_tensorboard_shows_every_number_over_control_steps(self, folder: RunFolder) -> None:
        recorder = Recorder(folder, [])
        for iteration in (1, 2):
            recorder.add([row(iteration)])
        recorder.flush()
        wanted = [
            (64 * iteration, tag, float(np.float32(value)))
            for iteration in (1, 2)
            for tag, value in (
                ("episodes", 3.0),
                ("episode_return_mean", -1.0 / iteration),
                ("kl_mean", 1e-3 * iteration),
                ("environment/distance", 0.5 * iteration),
            )
        ]
        assert sorted(scalars(events(folder))) == sorted(wanted)

    def test_flushed_records_survive_a_crash(self, folder: RunFolder) -> None:
        recorder = Recorder(folder, [])
        recorder.add([row(1)])
        recorder.flush()
        assert read_metrics(folder.metrics_file) == [row(1)]
        recorder.flush()

    def test_a_resumed_run_shows_each_iteration_once(self, folder: RunFolder) -> None:
        """Iterations 3 and 4 were recorded after the checkpoint of iteration 2, and are trained again."""
        first = Recorder(folder, [])
        for iteration in (1, 2, 3, 4):
            first.add([row(iteration, kl_mean=0.25)])
        first.flush()
        next_second()
        second = Recorder(folder, kept(folder, 2))
        for iteration in (3, 4, 5):
            second.add([row(iteration, kl_mean=0.5)])
        second.flush()
        shown = [(step, value) for step, tag, value in scalars(events(folder)) if tag == "kl_mean"]
        assert shown == [(64, 0.25), (128, 0.25), (192, 0.5), (256, 0.5), (320, 0.5)]
        assert [record["iteration"] for record in read_metrics(folder.metrics_file)] == [1, 2, 3, 4, 5]

    def test_a_run_that_begins_again_hides_everything_before(self, folder: RunFolder) -> None:
        first = Recorder(folder, [])
        first.add([row(1, kl_mean=0.25)])
        first.flush()
        next_second()
        second = Recorder(folder, kept(folder, 0))
        second.add([row(1, kl_mean=0.5)])
        second.flush()
        assert [value for _, tag, value in scalars(events(folder)) if tag == "kl_mean"] == [0.5]
