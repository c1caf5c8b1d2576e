"""The report: whole, fetching nothing, and safe against what a run folder may hold."""

from __future__ import annotations

import base64
import html.parser
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_environments import History
from tests.tiny_runs import TINY, train_tiny
from trpo_brax.certification.certifier import certify
from trpo_brax.certification.settings import Certification
from trpo_brax.cli import main
from trpo_brax.config import override
from trpo_brax.errors import RunFolderError
from trpo_brax.runs.run import Run
from trpo_brax.views.report import report_page

VIDEO = b"\x00\x00\x00\x18ftypisom not really a video"


class Page(html.parser.HTMLParser):
    """What a page holds: its text, its tags and everything it points to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href", "poster", "data")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run with nothing but what training leaves."""
    return train_tiny(tmp_path_factory.mktemp("report") / "run", config=override(TINY, final_evaluation_episodes=8))


@pytest.fixture(scope="module")
def certified(plain: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it with a certificate, perturbed worlds and a video."""
    folder = tmp_path_factory.mktemp("certified") / "run"
    shutil.copytree(plain.path, folder)
    settings = Certification(
        episodes=40, choice_episodes=20, perturb=True, perturb_episodes=20, noise=(0.1,), delays=(1,)
    )
    certify(Run.load(folder), settings, environment=History())
    (folder / "videos").mkdir()
    (folder / "videos" / "worst.mp4").write_bytes(VIDEO)
    return folder


@pytest.fixture
def whole(certified: Path, tmp_path: Path) -> Path:
    """A copy of that, to spoil."""
    return Path(shutil.copytree(certified, tmp_path / "run"))


def test_a_whole_one_holds_everything_and_fetches_nothing(whole: Path) -> None:
    page = Page(report_page(whole))
    certificate = json.loads((whole / "certificate.json").read_text())
    for statement in certificate["statements"]:
        assert statement["sentence"] in page.words
    for words in (
        "Summary",
        "Training",
        "Findings",
        "The worst episode",
        "In other worlds",
        "Configuration",
        "Provenance",
    ):
        assert words in page.words
    assert '"episode_length": 16' in page.words and '"python"' in page.words
    assert page.tags.count("img") == 3 and page.tags.count("video") == 1 and "script" not in page.tags
    assert all(source.startswith("data:") for source in page.sources)
    videos = [source for source in page.sources if source.startswith("data:video/mp4;base64,")]
    assert base64.b64decode(videos[0].split(",")[1]) == VIDEO
    for source in page.sources:
        if source.startswith("data:image/png"):
            assert base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG")


def test_the_summary_is_that_of_the_run(plain: Run) -> None:
    words = Page(report_page(plain.path)).words
    evaluation = plain.summary["evaluation"]
    assert f"{float(evaluation['return_mean']):,.6g}" in words and f"over {evaluation['episodes']} episodes" in words
    assert "Across time" in words and "falls below its best" in words
    assert "4 iterations, 256 control steps" in words


def test_what_is_missing_is_said_with_the_command_that_makes_it(plain: Run) -> None:
    words = Page(report_page(plain.path)).words
    assert f"trpo-brax certify {plain.path}" in words and f"trpo-brax render {plain.path}" in words


def test_a_run_that_has_not_ended(plain: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(plain.path, folder)
    (folder / "summary.json").unlink()
    assert "has not ended yet" in Page(report_page(folder)).words
    (folder / "metrics.jsonl").write_text("")
    assert "no iterations yet" in Page(report_page(folder)).words


def test_several_seeds(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", config=override(TINY, num_seeds=2, total_steps=2 * 64))
    page = Page(report_page(run.path))
    assert "seeds 0 to 1" in page.words and page.tags.count("img") == 2


def test_anybodys_text_stays_text(whole: Path) -> None:
    attack = "<script>alert(1)</script><img src=http://somewhere/x.png>"
    file = whole / "certificate.json"
    certificate = json.loads(file.read_text())
    certificate["statements"][0]["sentence"] = certificate["task"] = certificate["versions"]["jax"] = attack
    certificate["perturbations"]["worlds"][1]["perturbation"] = attack
    certificate["perturbations"]["not_applicable"] = [attack]
    sentences = {"sentences": [attack], "figure": attack, "figures": [1.0, 2.0], "runs": 2}
    certificate["training_runs"] = sentences
    file.write_text(json.dumps(certificate))
    source = report_page(whole)
    page = Page(source)
    assert "script" not in page.tags and page.words.count("<script>") >= 3
    assert all(one.startswith("data:") for one in page.sources)
    assert "default-src 'none'" in source


@pytest.mark.parametrize(
    "spoil",
    [
        lambda certificate: certificate.pop("declared"),
        lambda certificate: certificate["declared"].pop("at"),
        lambda certificate: certificate.update(confidence="high"),
        lambda certificate: certificate.update(statements=[{}]),
        lambda certificate: certificate.update(perturbations=[1]),
        lambda certificate: certificate["perturbations"].update(worlds=[{"perturbation": "mass"}]),
        lambda certificate: certificate.update(
            training_runs={"sentences": [], "figure": "", "figures": [], "runs": "<meta http-equiv=refresh>"}
        ),
        lambda certificate: certificate.update(earlier_certificates="<meta http-equiv=refresh>"),
        lambda certificate: certificate["perturbations"]["worlds"][0].update(return_mean="much"),
    ],
)
def test_what_is_no_certificate_is_refused_in_one_sentence(whole: Path, spoil: Any) -> None:
    file = whole / "certificate.json"
    certificate = json.loads(file.read_text())
    spoil(certificate)
    file.write_text(json.dumps(certificate))
    with pytest.raises(RunFolderError, match=r"certificate.json is no certificate: certify again, or remove it\.$"):
        report_page(whole)


def test_a_file_that_was_cut_short_says_what_to_do(whole: Path) -> None:
    file = whole / "certificate.json"
    file.write_text(file.read_text()[:500])
    with pytest.raises(RunFolderError, match=r"not valid JSON: certify again, or remove it\.$"):
        report_page(whole)


def test_a_folder_of_videos_that_is_a_link_is_not_followed(whole: Path) -> None:
    (whole / "videos").rename(whole.parent / "elsewhere")
    (whole / "videos").symlink_to(whole.parent / "elsewhere")
    with pytest.raises(RunFolderError, match="videos is a link"):
        report_page(whole)


def test_a_certificate_whose_drawing_was_cut_off_is_none(whole: Path) -> None:
    file = whole / "certificate.json"
    certificate = json.loads(file.read_text())
    file.write_text(json.dumps({name: certificate[name] for name in ("format", "task", "declared")}))
    assert "trpo-brax certify" in Page(report_page(whole)).words


def test_the_command_writes_it_and_follows_no_link(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = whole.parent / "elsewhere"
    elsewhere.write_text("mine")
    (whole / "report.html").symlink_to(elsewhere)
    assert main(["report", str(whole)]) == 0
    assert capsys.readouterr().out.strip() == str(whole / "report.html")
    assert elsewhere.read_text() == "mine" and (whole / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(whole), "--output", str(whole / "nowhere" / "x.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_a_browser_shows_it_without_a_complaint(whole: Path) -> None:
    page = whole / "report.html"
    page.write_text(report_page(whole))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=900,1200"]
    done = subprocess.run(
        ["chromium", *options, f"--screenshot={whole / 'page.png'}", f"--user-data-dir={whole / 'profile'}", str(page)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (whole / "page.png").stat().st_size > 20_000
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Refused" in line]
