"""What each trainer runs with: the settings that its own authors published, and where.

- Brax PPO and SAC: Brax's training notebook (google/brax, notebooks/training.ipynb). It has PPO settings for
  inverted_pendulum, SAC settings for hopper and no PPO settings for hopper: those of ant are taken, the notebook's PPO
  settings for the other task that walks, is paid for staying healthy and ends by falling.
- Brax PPO, playground: the settings of MuJoCo Playground for its own hoppers on another physics
  (google-deepmind/mujoco_playground, mujoco_playground/config/dm_control_suite_params.py). One of its updates takes
  983,040 steps and 512 gradient steps on minibatches of 30,720, minutes on a CPU, so it runs only when asked for. It
  resets all environments after every update.
- sb3-contrib TRPO: RL Baselines3 Zoo (DLR-RM/rl-baselines3-zoo, hyperparams/trpo.yml), Hopper-v4, the entry that its
  MuJoCo tasks share; the zoo has none for an inverted pendulum without swing-up, so it serves there as well.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import trpo_brax as tb

EPISODE_LENGTH = 1000
"""Time limit of every trainer and of the evaluator, in control steps; every published setting has the same."""


@dataclasses.dataclass(frozen=True)
class PPOSettings:
    """Arguments of Brax's `ppo.train`, under its names."""

    num_timesteps: int
    reward_scaling: float
    unroll_length: int
    num_updates_per_batch: int
    discounting: float
    learning_rate: float
    num_envs: int
    batch_size: int
    entropy_cost: float = 1e-2
    num_minibatches: int = 32
    normalize_observations: bool = True
    num_resets_per_eval: int = 0
    """With one update an evaluation, 1 is a reset after every update."""

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one `training_step`, the smallest unit of progress."""
        return self.batch_size * self.unroll_length * self.num_minibatches


@dataclasses.dataclass(frozen=True)
class SACSettings:
    """Arguments of Brax's `sac.train`, under its names."""

    num_timesteps: int
    reward_scaling: float
    discounting: float
    learning_rate: float
    num_envs: int
    batch_size: int
    grad_updates_per_step: int
    max_replay_size: int
    min_replay_size: int
    normalize_observations: bool = True


@dataclasses.dataclass(frozen=True)
class TRPOSettings:
    """Arguments of sb3-contrib's `TRPO`, under its names, and the number of steps to train for."""

    n_timesteps: int = 1_000_000
    n_envs: int = 2
    n_steps: int = 1024
    batch_size: int = 128
    gamma: float = 0.99
    gae_lambda: float = 0.95
    sub_sampling_factor: int = 1
    cg_max_steps: int = 25
    cg_damping: float = 0.1
    n_critic_updates: int = 20
    learning_rate: float = 1e-3


_PPO = PPOSettings(
    num_timesteps=2_000_000,
    reward_scaling=10.0,
    unroll_length=5,
    num_updates_per_batch=4,
    discounting=0.97,
    learning_rate=3e-4,
    num_envs=2048,
    batch_size=1024,
)
PPO: dict[str, PPOSettings] = {
    "inverted_pendulum": _PPO,
    "hopper": dataclasses.replace(_PPO, num_timesteps=50_000_000, num_envs=4096, batch_size=2048),
}
PLAYGROUND_PPO: dict[str, PPOSettings] = {
    "hopper": PPOSettings(
        num_timesteps=60_000_000,
        reward_scaling=10.0,
        unroll_length=30,
        num_updates_per_batch=16,
        discounting=0.995,
        learning_rate=1e-3,
        num_envs=2048,
        batch_size=1024,
        num_resets_per_eval=1,
    )
}
SAC: dict[str, SACSettings] = {
    "hopper": SACSettings(
        num_timesteps=6_553_600,
        reward_scaling=30.0,
        discounting=0.997,
        learning_rate=6e-4,
        num_envs=128,
        batch_size=512,
        grad_updates_per_step=64,
        max_replay_size=1_048_576,
        min_replay_size=8192,
    )
}
TRPO = TRPOSettings()


VariantName = Literal[
    "trpo_brax", "ppo-our-envs", "ppo-published", "ppo-playground", "sac-published", "sb3-2-envs", "sb3-512-envs"
]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One trainer with one setting."""

    trainer: str
    setting: str
    module: str
    """Of this folder: what runs it."""
    tasks: tuple[str, ...] = tuple(PPO)
    jax_devices: bool = True
    """Whether it can use several devices of JAX."""


VARIANTS: dict[VariantName, Variant] = {
    "trpo_brax": Variant("trpo_brax", "preset", "ours"),
    "ppo-our-envs": Variant("Brax PPO", "number of environments of trpo_brax", "brax_peers"),
    "ppo-published": Variant("Brax PPO", "published", "brax_peers"),
    "ppo-playground": Variant("Brax PPO", "MuJoCo Playground", "brax_peers", tuple(PLAYGROUND_PPO)),
    "sac-published": Variant("Brax SAC", "published", "brax_peers", tuple(SAC)),
    "sb3-2-envs": Variant("sb3-contrib TRPO", "2 environments", "sb3_trpo", jax_devices=False),
    "sb3-512-envs": Variant("sb3-contrib TRPO", "512 environments", "sb3_trpo", jax_devices=False),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of one trainer, in a process of its own."""

    variant: VariantName
    """Trainer and setting."""
    task: str
    """Brax task."""
    seed: int
    """Of everything random in the training."""
    devices: int
    """JAX devices to train on."""
    folder: Path
    """Where result.json is written."""
    seconds: float
    """Training stops at the first unit of progress that ends after this many seconds of it."""
    points: int
    """Most policies evaluated, evenly spread over the training seconds."""
    started: float
    """When the process was started, in seconds since the epoch."""
    start_only: bool = False
    """Stop after the first unit of progress: only the start is measured."""


def ppo_settings(variant: VariantName, task: str) -> PPOSettings:
    """Return Brax PPO's settings; fewer environments unroll more often, and the batch stays as published."""
    if variant == "ppo-playground":
        return PLAYGROUND_PPO[task]
    if variant == "ppo-published":
        return PPO[task]
    return dataclasses.replace(PPO[task], num_envs=tb.preset(task).rollout.num_envs)


def trpo_settings(variant: VariantName) -> TRPOSettings:
    """Return sb3-contrib's settings; more environments take fewer steps each, and the batch stays as published."""
    if variant == "sb3-2-envs":
        return TRPO
    return dataclasses.replace(TRPO, n_envs=512, n_steps=TRPO.n_envs * TRPO.n_steps // 512)


def num_envs(variant: VariantName, task: str) -> int:
    """Return the number of training environments."""
    if variant == "trpo_brax":
        return tb.preset(task).rollout.num_envs
    if variant == "sac-published":
        return SAC[task].num_envs
    if variant in ("sb3-2-envs", "sb3-512-envs"):
        return trpo_settings(variant).n_envs
    return ppo_settings(variant, task).num_envs
