"""The command line: each command a thin call into the library."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import Positional

from trpo_brax.checked import suggest
from trpo_brax.config import Config, Platform, override
from trpo_brax.errors import ConfigError, RunFolderError, TaskError, UserError
from trpo_brax.presets import PRESETS, preset
from trpo_brax.training.console import Console

Arguments = TypeVar("Arguments")
_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


@dataclass(frozen=True)
class TrainArguments(Config):
    """Train a policy with TRPO and leave a run folder. Every option has a default that suits the task."""

    run_dir: str | None = None
    """Folder to keep the run in; by default runs/TASK-SEED-TIMESTAMP."""
    resume: bool = False
    """Continue the run in --run-dir, exactly as if it had never stopped."""


@dataclass(frozen=True)
class EvaluateArguments:
    """Run episodes of a trained policy and print statistics of their returns."""

    run: Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    checkpoint: str = "latest"
    """latest, best (by training return) or an iteration."""
    episodes: int = 1000
    """How many; they run in parallel, each environment's first."""
    stochastic: bool = False
    """Sample actions as in training, instead of acting by the mode."""
    seed: int = 0
    """Seed of the episodes; no training draws from the same stream."""
    environment: str | None = None
    """package.module:Class, for a run on an environment of your own."""
    platform: Platform = "auto"
    """auto: what JAX finds; cpu; gpu: fail where there is none."""
    json: bool = False
    """Print one JSON object and nothing else on standard output."""


@dataclass(frozen=True)
class CheckArguments:
    """Tell an environment's author what a trainer needs of it, in one sentence each; exit status 1 if it lacks any."""

    environment: Annotated[str, Positional, tyro.conf.arg(metavar="ENVIRONMENT")]
    """package.module:Class of a brax.envs.Env, or a Brax task."""
    backend: str | None = None
    """Physics backend of a Brax task; by default the one its preset trains on."""
    episode_length: int = 1000
    """Time limit in control steps that training will use."""
    action_low: float | None = None
    """Lowest action; overrides what the environment says."""
    action_high: float | None = None
    """Highest action; overrides what the environment says."""


@dataclass(frozen=True)
class TasksArguments:
    """List the tasks, their physics backends and how long their presets train."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done; 1: a failure; 2: bad arguments or configuration, one sentence on standard error; 128 + n: stopped by
    signal n with the run saved.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # An environment of the user's own stands in the current folder; at the end of the path it hides no other module.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_overview())
            return 0 if words else 2
        if words[0] not in _COMMANDS:
            raise ConfigError(f"unknown command {words[0]!r}{suggest(words[0], _COMMANDS)}.")
        return _COMMANDS[words[0]](words[1:])
    except UserError as error:
        print(f"trpo-brax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _train(words: list[str]) -> int:
    arguments = _parse_training(words)
    config = Config(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Config)})
    console = Console()
    with console.stage("Loading JAX and Brax"):
        from trpo_brax.training import train

        _import_brax()
    run = train(config, run_dir=arguments.run_dir, resume=arguments.resume, console=console)
    signal = run.summary["signal"]
    return 0 if signal is None else 128 + int(signal)


def _import_brax() -> None:
    from trpo_brax.environments.quiet import quiet

    with quiet():
        import brax.envs  # noqa: F401


def _evaluate(words: list[str]) -> int:
    arguments = _parse(EvaluateArguments, words, "evaluate")
    # An environment's author may print: standard output is for the result alone.
    with contextlib.redirect_stdout(sys.stderr):
        report = _report(arguments)
    if arguments.json:
        print(json.dumps(report, allow_nan=False))
        return 0
    for name, value in report.items():
        print(f"{name.replace('_', ' '):20} {value:,.4g}" if isinstance(value, float) else f"{name:20} {value}")
    return 0


def _report(arguments: EvaluateArguments) -> dict[str, float | int]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from trpo_brax.config import RuntimeConfig
    from trpo_brax.environments import load_environment
    from trpo_brax.training import Run, evaluate
    from trpo_brax.training.devices import configure
    from trpo_brax.training.run import check_evaluation

    console = Console(sys.stderr)
    run = Run.load(arguments.run)
    check_evaluation(arguments.episodes, arguments.seed)
    for note in configure(RuntimeConfig(platform=arguments.platform), arguments.episodes):
        console.note(note)
    environment = load_environment(arguments.environment) if arguments.environment else None
    # What cannot work is said before anything slow is begun.
    run.task(environment)
    run.policy(arguments.checkpoint)
    with console.stage(f"Evaluating {arguments.episodes} episodes"):
        report = evaluate(
            run,
            episodes=arguments.episodes,
            checkpoint=arguments.checkpoint,
            stochastic=arguments.stochastic,
            seed=arguments.seed,
            environment=environment,
        )
    return report.to_dict()


def _check(words: list[str]) -> int:
    arguments = _parse(CheckArguments, words, "check")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from trpo_brax.config import RolloutConfig, RuntimeConfig
    from trpo_brax.environments import brax_task, load_environment, own_task
    from trpo_brax.environments.check import Finding, check_environment, format_findings
    from trpo_brax.training.devices import configure

    settings = RolloutConfig(
        episode_length=arguments.episode_length, action_low=arguments.action_low, action_high=arguments.action_high
    )
    configure(RuntimeConfig(cpu_devices=1), 1)
    if ":" in arguments.environment:
        environment = load_environment(arguments.environment)
        try:
            task = own_task(environment, settings)
        except TaskError as error:
            print(format_findings([Finding("error", "structure", str(error))]))
            return 1
    else:
        task = brax_task(arguments.environment, arguments.backend or preset(arguments.environment).rollout.backend)
    findings = check_environment(task, episode_length=settings.episode_length)
    print(format_findings(findings))
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _tasks(words: list[str]) -> int:
    _parse(TasksArguments, words, "tasks")
    from trpo_brax.environments import TASKS

    print(f"{'task':26}{'environments':>14}{'steps':>14}  physics backends")
    for name in sorted(TASKS):
        config = PRESETS[name]
        backends = ", ".join(TASKS[name])
        print(f"{name:26}{config.rollout.num_envs:>14,}{config.total_steps:>14,}  {backends}")
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "tasks": _tasks,
    "check": _check,
}


def _overview() -> str:
    about = {
        "train": "trpo-brax train [TASK] [options]        train a policy and leave a run folder",
        "evaluate": "trpo-brax evaluate RUN [options]        run episodes of a trained policy",
        "tasks": "trpo-brax tasks                         list the tasks",
        "check": "trpo-brax check ENVIRONMENT             tell what a trainer needs of an environment",
    }
    lines = "\n".join(f"  {about[name]}" for name in _COMMANDS)
    hint = "Add --help to any of them for its options."
    return f"Trust region policy optimisation for Brax, as one compiled JAX program.\n\n{lines}\n\n{hint}"


def _parse_training(words: list[str]) -> TrainArguments:
    """Parse twice: once for the task or the run to resume, once with its settings as the defaults."""
    plain = [word for word in words if word not in ("-h", "--help")]
    first = _parse(TrainArguments, plain, "train", default=_arguments(override(Config(), task="")))
    base = preset(first.task or "inverted_pendulum")
    if first.environment is not None and not first.task:
        base = Config()
    if not first.resume:
        return _parse(TrainArguments, words, "train", default=_arguments(base))
    if first.run_dir is None:
        raise RunFolderError("--resume continues the run in --run-dir, which was not given.")
    from trpo_brax.training.folder import RunFolder

    saved = RunFolder(first.run_dir).read_config()
    if saved.environment is not None and first.environment is None:
        raise RunFolderError(
            f"{first.run_dir} was trained on an environment of your own: give --environment {saved.environment} again."
        )
    return _parse(TrainArguments, words, "train", default=_arguments(saved))


def _arguments(config: Config) -> TrainArguments:
    return TrainArguments(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)})


def _parse(kind: type[Arguments], words: list[str], command: str, default: Arguments | None = None) -> Arguments:
    """Parse one command's words; what cannot be parsed becomes one sentence.

    Raises:
        ConfigError: instead of tyro's box on standard error.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=f"trpo-brax {command}", args=words, config=_STYLE, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_one_sentence(complaint.getvalue(), command)) from None


_PLAIN_WORDS = {
    r"invalid literal for int\(\) with base 10:": "a whole number",
    r"could not convert string to float:": "a number",
}


def _one_sentence(box: str, command: str) -> str:
    """Return tyro's complaint without its frame, with the nearest option where it names one."""
    lines = [line.strip("│ \t") for line in box.splitlines()]
    rules = [index for index, line in enumerate(lines) if line.startswith(("╭", "╰", "───", "---"))]
    first = rules[0] + 1 if rules else 0
    last = rules[1] if len(rules) > 1 else len(lines)
    sentence = " ".join(line for line in lines[first:last] if line).rstrip(".")
    # A field's own complaint arrives behind the name of its group, which the user never typed.
    sentence = re.sub(r"^Error parsing (?!--)[^:]*: ", "", sentence)
    for jargon, plain in _PLAIN_WORDS.items():
        sentence = re.sub(rf"^Error parsing (--[\w-]+): {jargon}", rf"\1 must be {plain}, not", sentence)
    choice = re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)$", sentence)
    if choice:
        allowed = [word.strip("' ") for word in choice[3].split(",")]
        sentence = f"{choice[2]} must be one of {', '.join(allowed)}, not {choice[1]!r}{suggest(choice[1], allowed)}"
    sentence = re.sub(r"^Missing value for argument '(.*)'\..*", r"\1 needs a value", sentence)
    near = re.search(r"Perhaps you meant:\s*(--[\w-]+)", " ".join(lines))
    hint = f"; did you mean {near.group(1)}" if near else ""
    return f"{sentence}{hint}; see trpo-brax {command} --help."
