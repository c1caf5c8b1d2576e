"""trpo-brax plot: run folders in, a picture and its numbers out."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_runs import TINY, train_tiny
from trpo_brax.cli import main
from trpo_brax.config import override
from trpo_brax.runs.run import Run


@pytest.fixture(scope="module")
def runs(pictures: None, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two seeds together, a third alone, and another configuration."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {"pair": {"num_seeds": 2}, "third": {"seed": 2}, "other": {"discount": 0.9}}
    return [train_tiny(folder / name, config=override(TINY, **changes)) for name, changes in configs.items()]


def test_runs_that_differ_only_in_seed_are_one_curve(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, table = tmp_path / "curves.svg", tmp_path / "curves.csv"
    for file in (picture, table):
        file.write_text("before")
        os.link(file, f"{file}.before")
    words = ["plot", *(str(run.path) for run in runs), "--output", str(picture), "--table", str(table)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    for file in (picture, table):
        assert Path(f"{file}.before").read_text() == "before", "replaced, not written over"
    assert "3 seeds" in picture.read_text() or picture.read_text().startswith("<?xml")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    by_group = {group: [row for row in rows if row["group"] == group] for group in {row["group"] for row in rows}}
    assert {tuple(row["seeds"] for row in part) for part in by_group.values()} == {("3",) * 4, ("1",) * 4}
    last = next(part[-1] for part in by_group.values() if part[-1]["seeds"] == "3")
    returns = [row["episode_return_mean"] for run in runs[:2] for row in run.metrics() if row["iteration"] == 4]
    assert len(returns) == 3
    assert float(last["iqm"]) == pytest.approx(np.mean(returns), rel=1e-5)


def test_a_run_of_several_seeds_leaves_their_curve_in_its_folder(runs: list[Run]) -> None:
    assert (runs[0].path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_panels_are_drawn_beside_the_curves(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves, panels = tmp_path / "curves.png", tmp_path / "panels.svg"
    words = ["plot", str(runs[0].path), "--output", str(curves), "--panels", str(panels)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{curves}\n{panels}\n"
    assert curves.read_bytes().startswith(b"\x89PNG") and panels.read_text().startswith("<?xml")


def test_a_run_leaves_its_panels_in_its_folder(runs: list[Run]) -> None:
    for run in runs:
        assert (run.path / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "at least one RUN"),
        (["nowhere"], "there is no run folder nowhere"),
        (["{run}", "--window", "0"], "window must be at least 1"),
        (["{run}", "--x", "days"], "--x must be one of"),
        (["{run}", "{run}"], "seed"),
        (["{run}", "{run}", "--panels", "panels.png"], "of one RUN at a time, not of 2"),
        (["{run}", "--output", "curve.docx"], "docx"),
        (["{run}", "--output", "/dev/null/curve.png"], "cannot be written"),
        (
            ["{run}", "--output", "{run}/new.png", "--table", "/dev/null/t.csv"],
            "t.csv cannot be written: Not a directory",
        ),
        (["{run}", "--output", "{run}/new.png", "--panels", "panels.docx"], "docx"),
        (["{run}", "--output", "{run}/new.png", "--table", "{pipe}"], "/pipe is no plain file: it is not replaced"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    words: list[str], sentence: str, runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main(["plot", *(word.format(run=runs[1].path, pipe=pipe) for word in words)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (runs[1].path / "new.png").exists()
