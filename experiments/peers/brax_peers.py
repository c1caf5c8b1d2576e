"""One run of Brax PPO or Brax SAC.

Each is called once, with an evaluation after every smallest unit of progress (PPO: one training step, which is one
batch and its updates; SAC: `_SAC_STEPS` environment steps with their updates), and its evaluator is replaced by one
that takes the parameters and runs no episodes. So nothing is compiled or run for an evaluation, and a run can end at
any unit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import tyro

import trpo_brax as tb
from experiments.peers.record import BudgetSpent, Recorder, configure, evaluate_and_write
from experiments.peers.settings import EPISODE_LENGTH, SAC, Job, PPOSettings, SACSettings, ppo_settings
from trpo_brax.environments import Task, brax_task
from trpo_brax.environments.quiet import quiet

_SAC_STEPS = 1024


class _Collector:
    """Takes the place of `brax.training.acting.Evaluator` and of the progress callback."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._parameters: Any = None
        self._policy: Any = None

    def evaluator(self, eval_env: Any, eval_policy_fn: Callable[[Any], Any], **_: Any) -> _Collector:
        """Stand for the evaluator's constructor."""
        self._policy = eval_policy_fn
        return self

    def run_evaluation(self, policy_params: Any, training_metrics: Any) -> Any:
        """Keep the parameters; called by Brax at the end of a unit, before `progress`."""
        self._recorder.pause()
        self._parameters = jax.device_get(policy_params)
        return training_metrics

    def progress(self, env_steps: int, _: Any) -> None:
        """Record the unit and let training go on."""
        if env_steps:
            self._recorder.add(int(env_steps), self._parameters)
        self._recorder.resume()

    def act(self, parameters: Any, observations: jax.Array, keys: jax.Array) -> jax.Array:
        """Return the mode's actions, in [-1, 1] as every Brax task takes them."""
        actions: jax.Array = self._policy(parameters)(observations, keys[0])[0]
        return actions


def main(job: Job) -> None:
    """Train, evaluate the policies, write."""
    configure(job)
    recorder = Recorder(job)
    collector = _Collector(recorder)
    task = brax_task(job.task, tb.preset(job.task).rollout.backend)
    with quiet():
        from brax.training import acting
    stopped = False
    try:
        with mock.patch.object(acting, "Evaluator", collector.evaluator):
            if job.variant == "sac-published":
                _train_sac(job, task, SAC[job.task], collector)
            else:
                _train_ppo(job, task, ppo_settings(job.variant, job.task), collector)
    except BudgetSpent:
        stopped = True
    evaluate_and_write(job, recorder.finish(stopped=stopped), task, collector.act)


def _train_ppo(job: Job, task: Task, settings: PPOSettings, collector: _Collector) -> None:
    from brax.training.agents.ppo import train as ppo

    units = -(-settings.num_timesteps // settings.steps_per_update)
    ppo.train(
        environment=task.environment,
        num_timesteps=units * settings.steps_per_update,
        max_devices_per_host=job.devices,
        num_envs=settings.num_envs,
        episode_length=EPISODE_LENGTH,
        learning_rate=settings.learning_rate,
        entropy_cost=settings.entropy_cost,
        discounting=settings.discounting,
        unroll_length=settings.unroll_length,
        batch_size=settings.batch_size,
        num_minibatches=settings.num_minibatches,
        num_updates_per_batch=settings.num_updates_per_batch,
        num_resets_per_eval=settings.num_resets_per_eval,
        normalize_observations=settings.normalize_observations,
        reward_scaling=settings.reward_scaling,
        seed=job.seed,
        num_evals=units + 1,
        deterministic_eval=True,
        progress_fn=collector.progress,
    )


def _train_sac(job: Job, task: Task, settings: SACSettings, collector: _Collector) -> None:
    from brax.training.agents.sac import train as sac

    units = -(-(settings.num_timesteps - settings.min_replay_size) // _SAC_STEPS)
    sac.train(
        environment=task.environment,
        num_timesteps=settings.min_replay_size + units * _SAC_STEPS,
        episode_length=EPISODE_LENGTH,
        num_envs=settings.num_envs,
        learning_rate=settings.learning_rate,
        discounting=settings.discounting,
        seed=job.seed,
        batch_size=settings.batch_size,
        num_evals=units + 1,
        normalize_observations=settings.normalize_observations,
        max_devices_per_host=job.devices,
        reward_scaling=settings.reward_scaling,
        min_replay_size=settings.min_replay_size,
        max_replay_size=settings.max_replay_size,
        grad_updates_per_step=settings.grad_updates_per_step,
        deterministic_eval=True,
        progress_fn=collector.progress,
    )


if __name__ == "__main__":
    main(tyro.cli(Job))
