"""A trainer that learns nothing.

It can be `ok`, `plain` (evaluates nothing), `spoiled` (the same, and cannot be resumed), `fail`, `silent` (is killed)
or `endless`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

words = sys.argv[1:]
kind, folder = words[0], Path(words[words.index("--run-dir") + 1])
resumed = "--resume" in words
calls = Path(os.environ["STAND_IN_CALLS"])


def tell(event: str) -> None:
    """Append one short line, which is one write."""
    with calls.open("a") as file:
        file.write(f"{event} {kind} {'resumed' if resumed else 'new'} {os.getpid()} {os.getppid()}\n")


def summarize(status: str, evaluation: dict[str, Any] | None) -> None:
    """Write what a trainer leaves."""
    training = {"episode_return_mean": 12.5, "episodes": 7}
    summary = {"status": status, "signal": None, "iterations": 3, "env_steps": 96, "wall_time_s": 1.5}
    (folder / "summary.json").write_text(json.dumps({**summary, "training": training, "evaluation": evaluation}))


def stop(*_: Any) -> None:
    """Save and end."""
    summarize("stopped", None)
    tell("end")
    sys.exit(143)


signal.signal(signal.SIGTERM, stop)
if resumed != folder.exists():
    sys.exit("trpo-brax: the launcher took one for the other")
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text("{}")
tell("begin")
if kind == "endless" and not resumed:
    time.sleep(60)
time.sleep(0.5)
tell("end")
if kind == "spoiled" and resumed:
    sys.exit(143)
if kind == "fail":
    print("first complaint\ntrpo-brax: max_kl must be greater than 0, not -1.\n", file=sys.stderr)
    sys.exit(2)
if kind == "silent":
    os.kill(os.getpid(), signal.SIGKILL)
summarize("finished", None if kind in ("plain", "spoiled") else {"episodes": 128, "return_mean": 20.0})
