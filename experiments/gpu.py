"""Everything that is claimed of a GPU, on the one that is here.

    python experiments/gpu.py            # on a CPU: python experiments/gpu.py --small

Each part in a process of its own, so that none holds another's memory, and beside each other those that time nothing. A
part that is there is not run again, nor within a part a run or a command that ended; so the script can be stopped and
started. Results go to experiments/results/gpu/, a JSON and a page a card, by its name. What was run by hand of these
parts, command by command, is in nvidia-h200-in-part.json there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Literal, get_args

import tyro

import trpo_brax as tb
from experiments import seeds
from trpo_brax.config import Config
from trpo_brax.runs.files import write_text
from trpo_brax.runs.provenance import checkout
from trpo_brax.views.page import document, table, text

RESULTS = Path(__file__).parent / "results" / "gpu"
WIDE = {"num_envs": 512, "unroll_length": 16}
"""The presets' batches of 8,192 in fewer time steps: a GPU is idle between the small pieces of each."""
TARGETS: tuple[tuple[str, float, dict[str, int]], ...] = (
    ("ant", 7500.0, WIDE),
    ("humanoid", 6000.0, WIDE),
    ("humanoid", 6000.0, {}),
)
"""Task, return to reach, and what differs from its preset."""
Row = dict[str, Any]
Part = Literal["targets", "bench", "repeatability", "unconstrained", "crossing", "precision", "leaving", "memory"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Everything that is claimed of a GPU, on the one that is here."""

    small: bool = False
    """A dry run of seconds to minutes on whatever is here: small tasks, few environments, few steps."""
    parts: tuple[Part, ...] = ()
    """Parts to run; by default all of them."""
    results_dir: Path = RESULTS
    """Where the JSON and the page are written."""
    runs_dir: Path = Path("runs/gpu")
    """Where the runs are kept, in a folder by the card's name."""
    inside: bool = False
    """Run the one part in this process and print its rows as JSON; what the script calls itself with."""


def command(*words: object, environment: dict[str, str] | None = None) -> str:
    """Return what a command of trpo-brax prints.

    Raises:
        RuntimeError: its exit status is not 0; with what it said.
    """
    line = [sys.executable, "-m", "trpo_brax", *map(str, words)]
    done = subprocess.run(line, env=os.environ | (environment or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line[2:])} ended with status {done.returncode}: {done.stderr[-800:]}")
    return done.stdout


def trained(config: Config, folder: Path, *, evaluated: bool = False) -> tb.Run:
    """Train to the end, or open what is there."""
    quiet = config if evaluated else tb.override(config, eval_every=0, final_evaluation_episodes=0)
    return seeds.trained(quiet, folder)


def base(arguments: Arguments) -> Config:
    """Return a short run: of hopper, or of the pendulum."""
    if arguments.small:
        return tb.override(tb.preset("inverted_pendulum"), num_envs=16, unroll_length=16, total_steps=2048)
    return tb.override(tb.preset("hopper"), **WIDE, total_steps=1_000_000)


def told(file: Path, *words: object, environment: dict[str, str] | None = None) -> Row:
    """Return what a command of trpo-brax says in JSON, or what it said when it ran before."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, command(*words, "--json", environment=environment))
    row: Row = json.loads(file.read_text())
    return row


def bench(arguments: Arguments) -> list[Row]:
    """How fast: physics, physics with inference, training, by task and number of environments."""
    tasks = ("inverted_pendulum",) if arguments.small else ("hopper", "ant", "humanoid")
    sizes = (16, 32) if arguments.small else (1024, 4096, 16384)
    rest = ("--unroll-length", 16 if arguments.small else 32, "--skip-start")
    benches = {
        arguments.runs_dir / f"bench-{task}-{n}.json": (task, "--num-envs", n, *rest) for task in tasks for n in sizes
    }
    # Compiling is what takes long: this fills the cache, and its figures are thrown away.
    with ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2)) as pool:
        missing = [words for file, words in benches.items() if not file.is_file()]
        list(pool.map(lambda words: command("bench", *words, "--repeats", 1), missing))
    rows = []
    for file, words in benches.items():
        one = told(file, "bench", *words, "--repeats", 3)
        names = ("physics_steps_per_second", "rollout_steps_per_second", "training_steps_per_second")
        more = ("rollout_to_physics", "training_to_physics", "iteration_ms")
        planned = {"planned_mib": one["peak_memory_bytes"] / 2**20}
        rows.append({name: one[name] for name in ("task", "num_envs", *names, *more)} | planned)
    return rows


def targets(arguments: Arguments) -> list[Row]:
    """How long to the return that a task is to reach, by the mean action."""
    rows = []
    for task, target, changed in (("inverted_pendulum", 10.0, {}),) if arguments.small else TARGETS:
        config = tb.override(tb.preset(task), **changed)
        if arguments.small:
            config = tb.override(base(arguments), checkpoint_every=4, eval_episodes=8)
        run = trained(config, arguments.runs_dir / f"target-{task}-{config.rollout.num_envs}", evaluated=True)
        records = run.metrics()
        reached = next((row for row in records if (row["evaluation_return_mean"] or -1e9) >= target), None)
        last = run.summary["evaluation"]
        rows.append(
            {
                "task": task,
                "num_envs": config.rollout.num_envs,
                "target": target,
                "seconds_to_target": reached and reached["wall_time_s"],
                "steps_to_target": reached and reached["env_steps"],
                "seconds": records[-1]["wall_time_s"],
                "env_steps": records[-1]["env_steps"],
                "return_mean": last["return_mean"],
                "failure_rate": last["failure_rate"],
            }
        )
    return rows


def repeatability(arguments: Arguments) -> list[Row]:
    """D0 to D2 of docs/reliability.md with --deterministic: are all parameters the same, bit for bit?"""
    return _repeated(arguments, "--deterministic")


def unconstrained(arguments: Arguments) -> list[Row]:
    """And without --deterministic, which no one promises?"""
    return _repeated(arguments)


def _repeated(arguments: Arguments, *flag: str) -> list[Row]:
    config = tb.override(base(arguments), deterministic=bool(flag))
    folder = arguments.runs_dir / ("repeated" + "".join(flag))
    first = _fingerprints(trained(config, folder / "first"))
    return [
        {"what": what, "iterations": len(first), "same_bits": _fingerprints(run) == first}
        for what, run in (
            ("D0: again in the same process", trained(config, folder / "again")),
            ("D1: in another process", _elsewhere(config, folder / "elsewhere", *flag)),
            ("D2: ended half-way and resumed", _resumed(config, folder / "resumed")),
        )
    ]


def _fingerprints(run: tb.Run) -> list[Any]:
    return [row["parameter_fingerprint"] for row in run.metrics()]


def _resumed(config: Config, folder: Path) -> tb.Run:
    if not (folder / "config.json").is_file():
        trained(tb.override(config, total_steps=config.total_steps // 2), folder)
    return trained(config, folder)


def _elsewhere(config: Config, folder: Path, *more: str) -> tb.Run:
    """Train by the command line, in a process of its own, or open what is there."""
    changed = {
        "num_envs": config.rollout.num_envs,
        "unroll_length": config.rollout.unroll_length,
        "total_steps": config.total_steps,
        "eval_every": 0,
        "final_evaluation_episodes": 0,
    }
    words = [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", value)]
    if not (folder / "config.json").is_file():
        command("train", config.task, *words, *more, "--run-dir", folder)
    elif tb.Run.load(folder).summary["status"] != "finished":
        command("train", "--run-dir", folder, "--resume")
    return tb.Run.load(folder)


def crossing(arguments: Arguments) -> list[Row]:
    """A policy trained here evaluated on the CPU and here, and the reverse."""
    episodes = 16 if arguments.small else 1000
    here = trained(base(arguments), arguments.runs_dir / "crossing-here").path
    config = tb.override(base(arguments), total_steps=base(arguments).total_steps // 4)
    there = _elsewhere(config, arguments.runs_dir / "crossing-cpu", "--platform", "cpu").path
    rows = []
    for trained_on, run in (("here", here), ("cpu", there)):
        for platform in ("auto", "cpu"):
            file = arguments.runs_dir / f"crossing-{trained_on}-{platform}.json"
            one = told(file, "evaluate", run, "--episodes", episodes, "--platform", platform)
            rows.append({"trained_on": trained_on, "evaluated_on": platform, **_figures(one)})
    return rows


def _figures(one: Row) -> Row:
    return {name: one[name] for name in ("episodes", "return_mean", "return_std", "return_cvar_05", "failure_rate")}


def precision(arguments: Arguments) -> list[Row]:
    """Does TF32 in the physics change returns? The same policy and episodes, products by default and at highest."""
    backends = ("spring", "generalized") if arguments.small else ("spring", "generalized", "mjx")
    episodes = 16 if arguments.small else 2000

    def of(backend: str) -> list[Row]:
        config = tb.override(base(arguments), backend=backend)
        if backend == "mjx":  # it takes ten times as long
            config = tb.override(config, total_steps=config.total_steps // 4)
        run = _elsewhere(config, arguments.runs_dir / f"precision-{backend}", "--backend", backend).path
        rows = []
        for level in ("default", "highest"):
            setting = {} if level == "default" else {"JAX_DEFAULT_MATMUL_PRECISION": level}
            file = arguments.runs_dir / f"precision-{backend}-{level}.json"
            one = told(file, "evaluate", run, "--episodes", episodes, environment=setting)
            rows.append({"backend": backend, "precision": level, **_figures(one)})
        return rows

    with ThreadPoolExecutor(len(backends)) as pool:
        return [row for rows in pool.map(of, backends) for row in rows]


def leaving(arguments: Arguments) -> list[Row]:
    """What leaves the house: a film by EGL, and the policy as StableHLO, called where this runs."""
    run = trained(base(arguments), arguments.runs_dir / "crossing-here").path
    egl = {"MUJOCO_GL": "egl"}
    command("render", run, "--episodes", 8, "--output", arguments.runs_dir / "videos", environment=egl)
    films = sorted((arguments.runs_dir / "videos").glob("*.mp4"))
    exported = arguments.runs_dir / "stablehlo"
    if not exported.exists():
        command("export", run, "--format", "stablehlo", "--output", exported)
    wide = ("--failure-margin", 0.5, "--margin", 0.5)  # it is the actions that are to be the same
    episodes = 16 if arguments.small else 1000
    one = told(arguments.runs_dir / "verified.json", "verify", exported, "--run", run, "--episodes", episodes, *wide)
    return [
        {
            "what": f"films by EGL: {', '.join(film.name for film in films)}",
            "value": sum(film.stat().st_size for film in films),
        },
        {"what": "StableHLO: largest difference of an action", "value": one["max_action_difference"]},
        {"what": "StableHLO: passed", "value": str(one["passed"])},
    ]


def memory(arguments: Arguments) -> list[Row]:
    """Memory in use at its peak while training, against bench's estimate."""
    import jax

    num_envs = 16 if arguments.small else 4096
    config = tb.override(base(arguments), num_envs=num_envs)
    words = ("--num-envs", num_envs, "--unroll-length", config.rollout.unroll_length, "--skip-start", "--repeats", 1)
    planned = told(arguments.runs_dir / "memory.json", "bench", config.task, *words)["peak_memory_bytes"]
    with TemporaryDirectory() as folder:  # a peak is of the process that trained
        trained(config, Path(folder) / "memory")
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    mib = {"peak_mib": peak and peak / 2**20, "planned_mib": planned / 2**20}
    return [{"task": config.task, "num_envs": num_envs, **mib}]


STAGES: tuple[tuple[Callable[[Arguments], list[Row]], ...], ...] = (
    (targets,),
    (bench,),
    (repeatability, unconstrained, crossing, precision),
    (leaving, memory),
)
"""One after another; the parts of each beside each other."""
PARTS = {part.__name__: part for stage in STAGES for part in stage}
assert {*PARTS} == {*get_args(Part)}


def page(results: dict[str, Any]) -> str:
    """Return the tables of all parts as one page."""
    made_by = f"python experiments/gpu.py{' --small' if results['small'] else ''}"
    parts = [f'<h1>{text(results["device"])}</h1>\n<p class="sub">{made_by}</p>']
    for name, part in results["parts"].items():
        about = (PARTS[name].__doc__ or "").partition("\n")[0]
        parts.append(f"<h2>{text(about)}</h2>\n<p>{part['seconds']:,.0f} s, commit {text(part['commit'])}.</p>")
        parts.append(table(tuple(part["rows"][0]), [tuple(row.values()) for row in part["rows"]]))
    return document(f"On {results['device']}", "\n".join(parts))


def main(arguments: Arguments) -> None:
    """Run what is missing, and write after each part."""
    if arguments.inside:
        print(json.dumps(PARTS[arguments.parts[0]](arguments)))
        return
    arguments.results_dir.mkdir(parents=True, exist_ok=True)
    device = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.devices()[0].device_kind, 'jax', jax.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    name = "-".join(re.findall(r"[a-z0-9.]+", device.lower())) + "-small" * arguments.small
    file, runs_dir = arguments.results_dir / f"{name}.json", arguments.runs_dir.resolve() / name
    results: dict[str, Any] = (
        json.loads(file.read_text()) if file.is_file() else {"device": device, "small": arguments.small, "parts": {}}
    )
    commit = (checkout() or {"commit": ""})["commit"]
    writing = Lock()

    def add(part: str) -> None:
        began = time.monotonic()
        words = [sys.executable, "-m", "experiments.gpu", "--inside", "--parts", part]
        words += ["--runs-dir", str(runs_dir)]
        words += ["--small"] if arguments.small else []
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # a part's own commands need room beside it
        done = subprocess.run(words, env=os.environ | shared, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{part} failed with status {done.returncode}.")
        mine = {
            "seconds": round(time.monotonic() - began, 1),
            "commit": commit[:12],
            "rows": json.loads(done.stdout.splitlines()[-1]),
        }
        with writing:
            have = results["parts"] | {part: mine}
            results["parts"] = {one: have[one] for one in PARTS if one in have}
            write_text(file, json.dumps(results, indent=1) + "\n")
            write_text(file.with_suffix(".html"), page(results))
        print(f"{part}: {mine['seconds']:,.0f} s", flush=True)

    for stage in STAGES:
        asked = [one.__name__ for one in stage if one.__name__ in (arguments.parts or PARTS)]
        with ThreadPoolExecutor(len(stage)) as pool:
            list(pool.map(add, [one for one in asked if one not in results["parts"]]))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
