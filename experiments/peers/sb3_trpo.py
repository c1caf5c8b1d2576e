"""One run of sb3-contrib's TRPO on a Brax task."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch  # type: ignore[import-not-found]
import tyro
from sb3_contrib import TRPO  # type: ignore[import-not-found]
from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found]
from stable_baselines3.common.vec_env import VecNormalize  # type: ignore[import-not-found]

import trpo_brax as tb
from experiments.peers.record import BudgetSpent, Recorder, configure, evaluate_and_write
from experiments.peers.settings import EPISODE_LENGTH, Job, trpo_settings
from experiments.peers.vector_env import BraxVecEnv, check_vector_env
from trpo_brax.environments import brax_task

_TOLERANCE = 1e-4


class _Collector(BaseCallback):
    """Keeps the policy after every iteration: when the next rollout is about to start, and at the end."""

    def __init__(self, recorder: Recorder, normalizer: VecNormalize) -> None:
        super().__init__()
        self._recorder = recorder
        self._normalizer = normalizer

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._keep()
        self._recorder.resume()

    def _on_training_end(self) -> None:
        self._keep()

    def _on_step(self) -> bool:
        return True

    def _keep(self) -> None:
        self._recorder.pause()
        self._recorder.add(self.num_timesteps, export(self.model, self._normalizer))


def export(model: TRPO, normalizer: VecNormalize) -> dict[str, Any]:
    """Return everything that the deterministic policy is made of, as arrays."""
    policy = model.policy
    layers = [layer for layer in policy.mlp_extractor.policy_net if isinstance(layer, torch.nn.Linear)]
    numbers = lambda tensor: tensor.detach().cpu().numpy().copy()
    return {
        "mean": np.asarray(normalizer.obs_rms.mean, np.float32),
        "deviation": np.sqrt(np.asarray(normalizer.obs_rms.var + normalizer.epsilon, np.float32)),
        "clip": np.float32(normalizer.clip_obs),
        "layers": [(numbers(layer.weight), numbers(layer.bias)) for layer in (*layers, policy.action_net)],
        "low": np.asarray(model.action_space.low, np.float32),
        "high": np.asarray(model.action_space.high, np.float32),
    }


def act(parameters: dict[str, Any], observations: jax.Array, keys: jax.Array) -> jax.Array:
    """Return the mode's actions of an exported policy: normalised observations, tanh layers, clipped to the bounds."""
    normalized = (observations - parameters["mean"]) / parameters["deviation"]
    hidden = jnp.clip(normalized, -parameters["clip"], parameters["clip"])
    *layers, last = parameters["layers"]
    for weight, bias in layers:
        hidden = jnp.tanh(jnp.matmul(hidden, weight.T, precision="highest") + bias)
    mean = jnp.matmul(hidden, last[0].T, precision="highest") + last[1]
    return jnp.clip(mean, parameters["low"], parameters["high"])


def check_export(model: TRPO, normalizer: VecNormalize) -> None:
    """Compare the exported policy with `predict` on observations as widely spread as three times those seen.

    Raises:
        RuntimeError: an action differs by more than 1e-4.
    """
    parameters = export(model, normalizer)
    noise = np.random.default_rng(0).standard_normal((512, parameters["mean"].size)).astype(np.float32)
    observations = parameters["mean"] + 3 * parameters["deviation"] * noise
    theirs, _ = model.predict(normalizer.normalize_obs(observations), deterministic=True)
    difference = np.max(np.abs(theirs - np.asarray(act(parameters, jnp.asarray(observations), jnp.zeros((512, 2))))))
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"the exported policy's actions differ from stable-baselines3's by {difference:g}.")


def main(job: Job) -> None:
    """Train, evaluate the policies, write."""
    configure(job)
    warnings.simplefilter("ignore")
    # In its favour: layers this small lose more by waiting for a second thread than it saves, 30 x on a busy machine.
    torch.set_num_threads(1)
    settings = trpo_settings(job.variant)
    task = brax_task(job.task, tb.preset(job.task).rollout.backend)
    environment = BraxVecEnv(task, num_envs=settings.n_envs, episode_length=EPISODE_LENGTH, seed=job.seed)
    normalizer = VecNormalize(environment, gamma=settings.gamma)  # the zoo's `normalize: true`
    recorder = Recorder(job)
    model = TRPO(
        "MlpPolicy",
        normalizer,
        learning_rate=settings.learning_rate,
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        gamma=settings.gamma,
        cg_max_steps=settings.cg_max_steps,
        cg_damping=settings.cg_damping,
        n_critic_updates=settings.n_critic_updates,
        gae_lambda=settings.gae_lambda,
        sub_sampling_factor=settings.sub_sampling_factor,
        seed=job.seed,
    )
    stopped = False
    try:
        model.learn(settings.n_timesteps, callback=_Collector(recorder, normalizer))
    except BudgetSpent:
        stopped = True
    check_export(model, normalizer)
    if job.start_only:
        check_vector_env(task)
    evaluate_and_write(job, recorder.finish(stopped=stopped), task, act)


if __name__ == "__main__":
    main(tyro.cli(Job))
