"""The one command of a GPU's owner: its dry run goes through every part and leaves one JSON and one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.gpu import PARTS, Arguments, main


@pytest.mark.slow
def test_the_dry_run_goes_through_every_part(tmp_path: Path) -> None:
    arguments = Arguments(small=True, results_dir=tmp_path / "results", runs_dir=tmp_path / "runs")
    main(arguments)
    (file,) = arguments.results_dir.glob("*-small.json")
    told = json.loads(file.read_text())
    assert list(told["parts"]) == list(PARTS) and told["small"]
    page = file.with_suffix(".html").read_text()
    assert all(
        str(row[name]) in page for part in told["parts"].values() for row in part["rows"] for name in list(row)[:1]
    )
    repeated = [row for part in ("repeatability", "unconstrained") for row in told["parts"][part]["rows"]]
    assert all(row["same_bits"] for row in repeated), "of a CPU with the same device count"
    before = file.stat().st_mtime_ns
    main(arguments)  # all is there
    assert file.stat().st_mtime_ns == before
