"""Training from the outside: what is asked for is checked, the folder made or resumed, and a session run."""

from __future__ import annotations

import contextlib
import io
import json
import os
from typing import TYPE_CHECKING

from trpo_brax.config import Config, override, shaping_differences, to_dict
from trpo_brax.environments import environment_name, make_task
from trpo_brax.errors import ConfigError, RunFolderError, TrainingError
from trpo_brax.host.console import Console
from trpo_brax.host.devices import prepare
from trpo_brax.host.stopping import StopRequest
from trpo_brax.presets import preset
from trpo_brax.runs.files import read_json
from trpo_brax.runs.folder import RunFolder, default_run_dir
from trpo_brax.runs.run import Run
from trpo_brax.runs.saving import quiet_storage
from trpo_brax.training.conclusion import conclude
from trpo_brax.training.session import ProgressFunction, Session

if TYPE_CHECKING:
    from brax.envs import Env


def train(
    config: Config | str,
    *,
    environment: Env | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    console: Console | None = None,
    progress_fn: ProgressFunction | None = None,
) -> Run:
    """Train a policy and leave a run folder.

    Args:
        config: what to train and how; a task's name stands for its preset.
        environment: a `brax.envs.Env` of your own, instead of `config.task` or `config.environment`.
        run_dir: where the run is kept; by default runs/TASK-SEED-TIMESTAMP.
        resume: continue the run in `run_dir`; a finished one is left as it is.
        console: where progress is told; standard output by default.
        progress_fn: called with (env_steps, record) for each record of metrics.jsonl as it is made, which is a chunk of
            iterations at a time, on the host, in process 0 alone; a slow one holds training up. The record is a copy.
            What it raises ends the run, as `failed`, and is raised again once everything is saved.

    Returns:
        The run; `run.summary["status"]` is `finished` or `stopped`.

    Raises:
        TrainingError: the run went wrong on its way, or could not be saved; what could be is in the folder.
        UserError: one sentence says what cannot work; nothing was created or overwritten.
    """
    console = console or Console()
    if isinstance(config, str):
        config = preset(config)
    if not isinstance(config, Config):
        raise ConfigError(f"config must be a Config or the name of a task, not {config!r:.40}.")
    if not isinstance(run_dir, str | os.PathLike | None):
        raise ConfigError(f"run_dir must be a path, not {run_dir!r:.40}.")
    if progress_fn is not None and not callable(progress_fn):
        raise ConfigError(f"progress_fn must be callable, not {progress_fn!r:.40}.")
    if resume and run_dir is None:
        raise RunFolderError("--resume continues the run in --run-dir, which was not given.")
    if environment is not None:
        config = override(config, environment=environment_name(environment), environment_arguments=None)
    folder = RunFolder(run_dir if run_dir is not None else default_run_dir(config))
    host = prepare(config.runtime, config.rollout.num_envs, console.note, join=True)
    group = host.group
    if not group.primary:
        console = Console(io.StringIO())
    if run_dir is None and group.several:
        raise RunFolderError("several processes share one run folder: give all of them the same --run-dir.")
    # Who trains together is a fact of this start, not of the run: a resume may be another number of processes.
    config = override(config, coordinator=None, num_processes=None, process_id=None)
    group.check_same("configuration", json.dumps([to_dict(config), resume], sort_keys=True))
    if run_dir is not None and group.do(lambda: _nothing_to_do(folder, config, resume)):
        done = Run.load(folder.path).summary["iterations"]
        console.note(f"Nothing to do: {folder.path} is at iteration {done}, {config.total_iterations} were asked for.")
        return Run.load(folder.path)
    with StopRequest() as stop, quiet_storage(), contextlib.ExitStack() as stack:
        with console.stage("Building the task"):
            task = make_task(config, environment)
        if resume:
            group.do(lambda: Run.load(folder.path).refuse_other_actions(task))
        folder = group.do_first(lambda: _take_folder(folder, config, resume, run_dir is not None, stack)) or folder
        segment = Session(config, folder, task, host, console, stop, progress_fn).train()
        failure = conclude(config, folder, task, group, console, stop, segment)
        group.wait("the run folder is complete")
    if segment.raised is not None:
        segment.raised.add_note(f"{folder.path}: {failure}.")
        raise segment.raised
    if failure is not None:
        raise TrainingError(f"{failure}.")
    return Run.load(folder.path)


def _nothing_to_do(folder: RunFolder, config: Config, resume: bool) -> bool:
    """Refuse a folder that cannot be used, and return whether the run that is resumed has ended already."""
    if not resume:
        folder.refuse_used()
        return False
    folder.refuse_links()
    _check_resumable(folder, config)
    return _finished(folder, config)


def _take_folder(
    folder: RunFolder, config: Config, resume: bool, named: bool, stack: contextlib.ExitStack
) -> RunFolder:
    """Make the folder of a new run, with a number behind a name that nobody chose, and hold it until the stack ends."""
    if not named:
        folder = folder.fresh()
    stack.enter_context(folder.locked() if resume else folder.created(config))
    return folder


def _check_resumable(folder: RunFolder, config: Config) -> None:
    different = shaping_differences(folder.read_config(), config)
    if different:
        raise RunFolderError(
            f"run_dir {folder.path} cannot be resumed with another {' and '.join(different)}: it would shape learning."
        )


def _finished(folder: RunFolder, config: Config) -> bool:
    if not folder.summary_file.is_file():
        return False
    try:
        summary = read_json(folder.summary_file)
        finished = summary["status"] == "finished" and summary["iterations"] >= config.total_iterations
        evaluated = summary["evaluation"] is not None or config.record.final_evaluation_episodes == 0
    except (RunFolderError, KeyError, TypeError):
        return False  # A summary that is broken is written anew; what the run is, is in its checkpoints.
    return bool(finished and evaluated)
