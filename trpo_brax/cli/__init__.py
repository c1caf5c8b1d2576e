"""The command line: each command a thin call into the library."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence

from trpo_brax.checked import suggest
from trpo_brax.cli.bench import bench
from trpo_brax.cli.certify import certify
from trpo_brax.cli.compare import compare
from trpo_brax.cli.diagnose import diagnose
from trpo_brax.cli.diff import diff
from trpo_brax.cli.environments import check, tasks
from trpo_brax.cli.evaluate import evaluate
from trpo_brax.cli.export import export
from trpo_brax.cli.plot import plot
from trpo_brax.cli.render import render
from trpo_brax.cli.replay import replay
from trpo_brax.cli.report import report
from trpo_brax.cli.train import train
from trpo_brax.cli.verify import verify
from trpo_brax.errors import ConfigError, UserError

_COMMANDS: dict[str, tuple[Callable[[list[str]], int], str, str]] = {
    "train": (train, "[TASK] [options]", "train a policy and leave a run folder"),
    "evaluate": (evaluate, "RUN [options]", "run episodes of a trained policy"),
    "certify": (certify, "RUN [options]", "state what a policy will do, with stated confidence"),
    "compare": (compare, "RUN_A RUN_B [options]", "say whether policy B is better than A, and by how much"),
    "export": (export, "RUN [options]", "write the policy as one graph that runs without this package"),
    "verify": (verify, "ARTIFACT --run RUN", "hold an exported policy to the one it came from"),
    "diagnose": (diagnose, "RUN [options]", "name what a run's metrics show to have gone wrong"),
    "plot": (plot, "RUN... [options]", "draw learning curves over seeds"),
    "render": (render, "RUN [options]", "film the worst, the median and the best episode"),
    "report": (report, "RUN", "write a run as one HTML page: curves, findings, certificate, video"),
    "diff": (diff, "RUN_A RUN_B [--json]", "tell where two runs first differ, and what could explain it"),
    "replay": (replay, "DUMP", "name the operation that made a non-finite number"),
    "bench": (bench, "[TASK] [options]", "measure speed, an iteration's parts and the start"),
    "tasks": (tasks, "", "list the tasks"),
    "check": (check, "ENVIRONMENT", "tell what a trainer needs of an environment"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done; 1: a failure, to save the run for instance; 2: bad arguments or configuration; 128 + n: stopped by signal n
    with the run saved. What went wrong is one sentence on standard error.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:
        # It was closed. The next file that is opened takes its number: let it be this one.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if os.getpid() == 1:
        # In a container: the kernel drops a SIGTERM that its first process has no handler for. Training sets its own.
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    try:
        status = _answer(words)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"trpo-brax: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        # JAX looks at its settings while it is imported: it names the one that it does not take, and is not there.
        if "jax" in sys.modules or "jax._src" not in sys.modules:
            raise
        print(f"trpo-brax: JAX cannot be used: {error}.", file=sys.stderr)
        return UserError.exit_status
    except BrokenPipeError:
        # Who reads has seen enough, as `head` does; the rest goes nowhere, or Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _answer(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if words[:1] == ["--version"]:
        print(_versions())
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] not in _COMMANDS:
        raise ConfigError(f"unknown command {words[0]!r}{suggest(words[0], _COMMANDS)}")
    _check_folders()
    return _COMMANDS[words[0]][0](words[1:])


def _check_folders() -> None:
    """Refuse to work without a current or a temporary folder, which JAX and its friends cannot do without either."""
    try:
        here = os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder is gone: change to one that is there.") from error
    # An environment of the user's own stands there; at the end of the path it hides no other module.
    if here not in sys.path:
        sys.path.append(here)
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError("no folder for temporary files can be written: set TMPDIR to one that can.") from error


def _versions() -> str:
    """Return the versions of what is installed, without importing any of it."""

    def told(name: str) -> str:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            return f"{name}, not installed"

    return f"{told('trpo-brax')} ({told('jax')}, {told('brax')})"


def _overview() -> str:
    lines = "\n".join(
        f"  {f'trpo-brax {name} {arguments}':40}{about}" for name, (_, arguments, about) in _COMMANDS.items()
    )
    hint = "Add --help to any of them for its options; trpo-brax --version tells the versions."
    return f"Trust region policy optimisation for Brax, as one compiled JAX program.\n\n{lines}\n\n{hint}"
