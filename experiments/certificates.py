"""Train tasks with their presets, three seeds at once, and certify the first one's policy, in perturbed worlds too.

    python experiments/certificates.py --tasks inverted_pendulum hopper

A run that was stopped is resumed, a finished one is not repeated, and neither is its certificate. Results go to
experiments/results/certificates/: TASK.json, the certificate of 10,000 episodes, TASK-perturbed.png,
TASK-verified.json, what `trpo-brax verify` says of the policy exported to ONNX, and summary.csv with what is stated,
what was seen, and the seconds that it took.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tyro

import trpo_brax as tb
from trpo_brax.certification.certificate import STATEMENTS
from trpo_brax.certification.certifier import certify
from trpo_brax.certification.settings import Certification, Listener
from trpo_brax.deployment import export, verify
from trpo_brax.host.console import Console
from trpo_brax.views.perturbation_plots import perturbation_figure
from trpo_brax.views.plots import png_of

RESULTS = Path(__file__).parent / "results" / "certificates"
_OBSERVED = ("return_mean", "return_quantile_05", "return_cvar_05", "return_min", "failure_rate")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train tasks with their presets, three seeds at once, and certify the first one's policy."""

    tasks: tuple[str, ...] = ("inverted_pendulum", "hopper")
    """Tasks."""
    seed: int = 0
    """First seed."""
    num_seeds: int = 3
    """Seeds."""
    runs_dir: Path = Path("runs/certificates")
    """Where the run folders are kept."""


class Clock:
    """Passes progress on, and keeps the seconds that each stage took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.seconds: dict[str, float] = {}

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Return the console's block; a stage ends where the next begins."""
        self._last = what
        self.seconds[what] = time.monotonic()
        return self._console.counting(what, total)


def certificate_of(run: tb.Run) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the run's certificate and the seconds of its stages; one that is there is not drawn again."""
    file = RESULTS / f"{run.config.task}.json"
    if file.is_file():
        kept = json.loads(file.read_text())
        if kept["certificate"]["policy_sha256"] == run.policy().fingerprint():
            return kept["certificate"], kept["seconds"]
    clock = Clock(Console(sys.stderr))
    found = certify(run, Certification(perturb=True), listener=Listener(counting=clock.counting))
    starts = [*clock.seconds.values(), time.monotonic()]
    seconds = {
        name: round(after - before, 1) for name, before, after in zip(clock.seconds, starts, starts[1:], strict=False)
    }
    file.write_text(json.dumps({"certificate": found, "seconds": seconds}, indent=1) + "\n")
    return found, seconds


def verify_exported(run: tb.Run, console: Console) -> None:
    """Export the policy and hold the file to it and to its certificate, unless that has been done with this policy."""
    file = RESULTS / f"{run.config.task}-verified.json"
    fingerprint = run.policy().fingerprint()
    if file.is_file() and json.loads(file.read_text())["policy_sha256"] == fingerprint:
        return
    artifact = export(run)
    listener = Listener(counting=console.counting, note=console.note)
    found = verify(artifact, run, listener=listener).to_dict()
    found |= {"artifact": Path(found["artifact"]).name, "policy_sha256": fingerprint}
    file.write_text(json.dumps(found, indent=1) + "\n")


def row(run: tb.Run, certificate: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """Return a task's row of summary.csv."""
    provenance = json.loads((run.path / "provenance.json").read_text())
    return {
        "task": run.config.task,
        "iteration": certificate["checkpoint"],
        "episodes": certificate["episodes"],
        "confidence": certificate["confidence"],
        **{name: certificate[name] for name in STATEMENTS},
        **{name: certificate["observed"][name] for name in _OBSERVED},
        "training_runs": " ".join(f"{figure:.6g}" for figure in certificate["training_runs"]["figures"]),
        "drawing_seconds": seconds["Drawing the episodes"],
        "perturbed_seconds": next(value for name, value in seconds.items() if name.startswith("Perturbing")),
        "commit": provenance["git"]["commit"][:12],
        "processor": provenance["processor"],
        "devices": len(provenance["devices"]),
    }


def main(arguments: Arguments) -> None:
    """Train, certify, write and draw."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = RESULTS / "summary.csv"
    known: dict[str, dict[str, Any]] = {}
    if table.is_file():
        with table.open() as file:
            known = {one["task"]: one for one in csv.DictReader(file)}
    for task in arguments.tasks:
        folder = arguments.runs_dir / task
        config = tb.override(tb.preset(task), seed=arguments.seed, num_seeds=arguments.num_seeds)
        run = tb.train(config, run_dir=folder, resume=(folder / "config.json").is_file())
        if run.summary["status"] != "finished":
            raise SystemExit(f"{folder} was stopped; start the script again to go on.")
        certificate, seconds = certificate_of(run)
        (RESULTS / f"{task}-perturbed.png").write_bytes(png_of(perturbation_figure(certificate["perturbations"])))
        verify_exported(run, Console(sys.stderr))
        known[task] = row(run, certificate, seconds)
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, known[task].keys())
            writer.writeheader()
            writer.writerows(known[name] for name in sorted(known))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
