"""trpo-brax replay."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.cli.command import Answer, command
from trpo_brax.cli.opening import own_environment
from trpo_brax.config import Platform
from trpo_brax.host.console import Console
from trpo_brax.host.paths import user_path


@dataclass(frozen=True)
class ReplayArguments:
    """Replay an iteration that --check-finite dumped, part by part, and name the operation that made the number."""

    dump: Annotated[str, Positional, tyro.conf.arg(metavar="DUMP")]
    """Folder of the dump, in `dumps/` of a run folder."""
    environment: str | None = None
    """package.module:Class or :function, for a run on an environment of your own."""
    environment_arguments: str | None = None
    """Keyword arguments to make it with, as a JSON object."""
    platform: Platform = "auto"
    """auto: what JAX finds; cpu; gpu: fail where there is none."""


@command(ReplayArguments)
def replay(arguments: ReplayArguments) -> Answer:
    """Run `trpo-brax replay`; exit status 0 where the dump could be replayed, whatever it showed."""
    from trpo_brax.config import RuntimeConfig
    from trpo_brax.forensics.replay import replay as replay_iteration
    from trpo_brax.host.devices import prepare
    from trpo_brax.learner.program import Program
    from trpo_brax.runs.dumps import Dump
    from trpo_brax.runs.run import Run

    console = Console(sys.stderr)
    dump = Dump.load(user_path(arguments.dump))
    # One device: operations are named one by one, and shards would only be in the way.
    runtime = RuntimeConfig(platform=arguments.platform, cpu_devices=1)
    devices = prepare(runtime, dump.config.rollout.num_envs, console.note).devices
    environment = own_environment(dump.config, arguments.environment, arguments.environment_arguments, arguments.dump)
    task = Run.load(dump.path).task(environment)
    console.note(f"Iteration {dump.iteration} of seed {dump.seed}, where {dump.seen}.")
    with console.stage("Restoring the state before it"):
        program = Program(dump.config, task, devices[:1])
        state = dump.state(program)
    with console.stage("Replaying its parts"):
        shown = replay_iteration(program.iteration, state)
    return Answer(shown.report())
