"""What the commands that open a run have in common."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from trpo_brax.config import Config, Platform, RuntimeConfig, one_spelling
from trpo_brax.errors import ConfigError, RunFolderError
from trpo_brax.host.console import Console

if TYPE_CHECKING:
    from brax.envs import Env

    from trpo_brax.environments import Task
    from trpo_brax.runs.evaluator import Evaluator
    from trpo_brax.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """A run, and on what to look at it."""

    run: str
    """Run folder."""
    environment: str | None = None
    """package.module:Class or :function, for a run on an environment of your own."""
    environment_arguments: str | None = None
    """Keyword arguments to make it with, as a JSON object."""
    platform: Platform = "auto"
    """auto: what JAX finds; cpu; gpu: fail where there is none."""

    def open(self, parallel: int, console: Console) -> tuple[Run, Task]:
        """Return the run and its task, once JAX's devices are chosen.

        Args:
            parallel: how many environments there are to be spread over the devices.
            console: told what the choice of devices has to say.

        Raises:
            UserError: one of them cannot be used.
        """
        from trpo_brax.host.devices import prepare, usable_cores
        from trpo_brax.runs.run import Run

        run = Run.load(self.run)
        prepare(RuntimeConfig(platform=self.platform), max(1, min(parallel, usable_cores())), console.note)
        # What cannot work is said before anything slow is begun.
        return run, run.task(own_environment(run.config, self.environment, self.environment_arguments, self.run))


def refuse_unnamed(trained: Config, environment: str | None, arguments: str | None, run: object) -> None:
    """Refuse to go on where a run's environment is not named again: nothing is imported from what a folder says.

    Raises:
        RunFolderError: it says what to give.
        ConfigError: there are arguments, and no environment to give them to.
    """
    if environment is None and arguments is not None:
        raise ConfigError("--environment-arguments are for --environment, which was not given.")
    named = {"--environment": environment, "--environment-arguments": arguments}
    words = trained.environment_options
    if any(named[option] is None for option in words[::2]):
        again = shlex.join(words)
        raise RunFolderError(f"{run} was trained on an environment of your own: give {again} again.")


def own_environment(trained: Config, environment: str | None, arguments: str | None, run: object) -> Env | None:
    """Return the environment that a run's is named as, None where none is named.

    One made otherwise than the run's is refused: what is stated of a policy is of the world it is of.

    Raises:
        UserError: it says what to give, or why that is no environment.
    """
    from trpo_brax.environments import load_environment

    refuse_unnamed(trained, environment, arguments, run)
    own = trained.environment_arguments
    if own is not None and arguments is not None and one_spelling(arguments) != own:
        raise ConfigError(
            f"{run} was trained with --environment-arguments {shlex.quote(own)}: only from Python is it looked at in "
            "another environment."
        )
    return load_environment(environment, arguments) if environment else None


@dataclass(frozen=True)
class PolicyArguments(RunArguments):
    """Which policy of which run."""

    run: Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    checkpoint: str = "latest"
    """latest, best (by evaluation return, or with --eval-every 0 by training return) or an iteration."""
    policy_seed: int | None = None
    """Whose policy, in a run of several seeds; by default the first one's."""


@dataclass(frozen=True)
class EpisodeArguments(PolicyArguments):
    """Which episodes of it."""

    episodes: int = 1000
    """How many; they run in parallel, in batches, each environment's first."""
    stochastic: bool = False
    """Sample actions as in training, instead of acting by the mean action."""
    episode_length: int | None = None
    """Control steps until the time limit, by default the training's: does the policy hold for longer?"""
    seed: int = 0
    """Seed of the episodes; no training draws from the same stream."""

    def evaluator(self, run: Run, task: Task) -> Evaluator:
        """Return what runs them, of what `open` returned."""
        from trpo_brax.runs.evaluator import Evaluator

        return Evaluator(
            run,
            episodes=self.episodes,
            checkpoint=self.checkpoint,
            policy_seeds=[run.config.check_seed(self.policy_seed)],
            stochastic=self.stochastic,
            episode_length=self.episode_length,
            environment=task,
        )
