"""A run's policies and the compiled program that runs their episodes."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from trpo_brax.config import RolloutConfig, override
from trpo_brax.environments import Task
from trpo_brax.errors import ConfigError
from trpo_brax.evaluation import (
    DEFAULT_FAILURE,
    EpisodeRunner,
    Episodes,
    EvaluationReport,
    Failure,
    Recording,
    Watcher,
    batch_size,
    policy_actor,
    summarize,
)
from trpo_brax.host.settings import check_process
from trpo_brax.policy import Policy, PolicySpecification
from trpo_brax.randomness import Stream, stream_key
from trpo_brax.runs.run import Run

if TYPE_CHECKING:
    from brax.envs import Env

MOST_EPISODES = 10**9


class Evaluator:
    """Runs episodes of a run's policies, whichever of its seeds they are of, with one compilation.

    Args:
        run: the run.
        episodes: about how many at a time; it decides on the size of a batch.
        checkpoint: `latest`, `best` (each seed's own) or an iteration.
        policy_seeds: whose policies, of a run of several seeds; all by default.
        stochastic: sample actions as in training, instead of acting by the mean action.
        episode_length: control steps until the time limit, where it is not the training's.
        environment: for a run on an environment of the user's own, that environment.
        worlds: what makes the task of `run`'s `world`; by default there is one world, that of the training.

    Raises:
        UserError: the run, checkpoint or environment cannot be used.
    """

    def __init__(
        self,
        run: Run,
        *,
        episodes: int,
        checkpoint: str | int = "latest",
        policy_seeds: Sequence[int] | None = None,
        stochastic: bool = False,
        episode_length: int | None = None,
        environment: Env | Task | None = None,
        worlds: Callable[[Task, Any], Task] | None = None,
    ) -> None:
        check_episodes(episodes)
        check_process()
        config = run.config if episode_length is None else override(run.config, episode_length=episode_length)
        seeds = run.config.seeds if policy_seeds is None else [run.config.check_seed(seed) for seed in policy_seeds]
        self.task = task = run.task(environment)
        self.iterations = {seed: run.checkpoints.resolve(checkpoint, seed) for seed in seeds}
        """Of the checkpoint of each seed."""
        self.policies: dict[int, Policy] = {
            seed: run.policy(iteration, policy_seed=seed) for seed, iteration in self.iterations.items()
        }
        self.runner = episode_runner(
            config.rollout,
            task if worlds is None else lambda world: worlds(task, world),
            self.policies[seeds[0]].specification,
            episodes,
            stochastic=stochastic,
        )
        """Runs episodes with another policy too, by `episode_key`."""

    def run(
        self,
        episodes: int,
        *,
        seed: int = 0,
        stream: Stream = Stream.EVALUATION,
        policy_seed: int | None = None,
        policy: Policy | None = None,
        begin: int = 0,
        world: Any = None,
        watcher: Watcher | None = None,
    ) -> Episodes:
        """Run episodes of one policy.

        Args:
            episodes: how many.
            seed: of the episodes.
            stream: which of the seed's randomness; none of them is used by training.
            policy_seed: whose policy; by default the first one's.
            policy: another one of the same kind instead, as of another checkpoint.
            begin: number of the first of them: episode i is the same whenever it is run.
            world: what `worlds` takes.
            watcher: asked and told while they run.

        Raises:
            EvaluationStopped: the watcher said so.
        """
        return self.runner.run(
            self._acting(policy_seed, policy),
            episode_key(seed, stream),
            episodes=episodes,
            begin=begin,
            world=world,
            watcher=watcher,
        )

    def record(self, episodes: int, chosen: Sequence[int], *, seed: int = 0) -> dict[int, Recording]:
        """Run some of `run`'s episodes of the first policy again, keeping what the simulator went through."""
        key = episode_key(seed, Stream.EVALUATION)
        return self.runner.record(self._acting(None), key, episodes=episodes, chosen=chosen)

    def _acting(self, policy_seed: int | None, policy: Policy | None = None) -> Any:
        chosen = policy or self.policies[next(iter(self.policies)) if policy_seed is None else policy_seed]
        return chosen.parameters, chosen.statistics


def episode_runner(
    rollout: RolloutConfig,
    task: Task | Callable[[Any], Task],
    specification: PolicySpecification,
    episodes: int,
    *,
    stochastic: bool = False,
) -> EpisodeRunner:
    """Return what runs a run's episodes, about so many at a time, on all devices of this process."""
    devices = jax.local_devices()
    return EpisodeRunner(
        task,
        policy_actor(specification, stochastic=stochastic),
        batch=batch_size(episodes, len(devices)),
        episode_length=rollout.episode_length,
        action_repeat=rollout.action_repeat,
        devices=devices,
    )


def check_episodes(episodes: int, seed: int = 0) -> None:
    """Raise a `ConfigError` where there cannot be this many episodes, or episodes of this seed."""
    if not isinstance(episodes, numbers.Integral):
        raise ConfigError(f"episodes must be a whole number, not {episodes!r:.40}.")
    if not 1 <= episodes <= MOST_EPISODES:
        raise ConfigError(f"episodes must be at least 1 and at most {MOST_EPISODES}, not {episodes}.")
    if not isinstance(seed, numbers.Integral):
        raise ConfigError(f"seed must be a whole number, not {seed!r:.40}.")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be at least 0 and less than 2^32, not {seed}.")


def episode_key(seed: int, stream: Stream) -> jax.Array:
    """Return the key of a seed's episodes, uint32 [2].

    Raises:
        ConfigError: the seed is none.
    """
    check_episodes(1, seed)
    return stream_key(jax.random.PRNGKey(seed), stream)


def evaluate(
    run: Run | str | os.PathLike[str],
    *,
    episodes: int = 1000,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    episode_length: int | None = None,
    seed: int = 0,
    policy_seed: int | None = None,
    environment: Env | Task | None = None,
    failure: str | Failure = DEFAULT_FAILURE,
) -> EvaluationReport:
    """Run episodes of a trained policy, in parallel, each environment's first, and describe their returns.

    Args:
        run: the run, or its folder.
        episodes: how many.
        checkpoint: `latest`, `best` or an iteration.
        stochastic: sample actions as in training, instead of acting by the mean action.
        episode_length: control steps until the time limit, by default the training's: does it hold for longer?
        seed: of the episodes; drawn from a stream that no training uses.
        policy_seed: whose policy, in a run of several seeds; by default the first one's.
        environment: for a run on an environment of the user's own, that environment.
        failure: what counts as a failed episode, as in `return < 500`; by default one that ended before its time limit.

    Raises:
        UserError: the run, checkpoint or environment cannot be used, or `failure` is no predicate.
    """
    run = Run.load(run)
    check_episodes(episodes, seed)
    if not isinstance(failure, str | Failure):
        raise ConfigError(f"failure must be a Failure or its text, not {failure!r:.40}.")
    predicate = Failure(failure) if isinstance(failure, str) else failure
    evaluator = Evaluator(
        run,
        episodes=episodes,
        checkpoint=checkpoint,
        policy_seeds=[run.config.check_seed(policy_seed)],
        stochastic=stochastic,
        episode_length=episode_length,
        environment=environment,
    )
    return summarize(evaluator.run(episodes, seed=seed), predicate)
