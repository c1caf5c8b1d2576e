"""What Brax PPO and Brax SAC run with: the settings that their own authors published for each task.

All are those of Brax's training notebook (google/brax, notebooks/training.ipynb), which trains hopper and walker2d with
SAC and everything else with PPO. For these two it has no PPO settings, and those of ant are taken: the task that walks,
is paid for staying healthy and ends by falling, too. It has none for swimmer either, which gets halfcheetah's: the
other task that moves forward and has no end.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

EPISODE_LENGTH = 1000
"""Time limit of every trainer and of the evaluator, in simulator steps; every published setting has the same."""

Trainer = Literal["ppo", "sac"]


@dataclasses.dataclass(frozen=True)
class PPOSettings:
    """Arguments of Brax's `ppo.train`, under its names."""

    num_timesteps: int
    reward_scaling: float
    unroll_length: int
    num_updates_per_batch: int
    discounting: float
    entropy_cost: float
    num_envs: int
    batch_size: int
    num_minibatches: int = 32
    learning_rate: float = 3e-4
    action_repeat: int = 1

    @property
    def steps_per_update(self) -> int:
        """Simulator steps of one `training_step`, the smallest unit of progress."""
        return self.batch_size * self.unroll_length * self.num_minibatches * self.action_repeat


@dataclasses.dataclass(frozen=True)
class SACSettings:
    """Arguments of Brax's `sac.train`, under its names."""

    num_timesteps: int
    reward_scaling: float
    batch_size: int
    grad_updates_per_step: int
    discounting: float = 0.997
    learning_rate: float = 6e-4
    num_envs: int = 128
    max_replay_size: int = 1_048_576
    min_replay_size: int = 8192
    action_repeat: int = 1


_PENDULUM = PPOSettings(
    num_timesteps=2_000_000,
    reward_scaling=10,
    unroll_length=5,
    num_updates_per_batch=4,
    discounting=0.97,
    entropy_cost=1e-2,
    num_envs=2048,
    batch_size=1024,
)
_ANT = dataclasses.replace(_PENDULUM, num_timesteps=50_000_000, num_envs=4096, batch_size=2048)
_HALFCHEETAH = PPOSettings(
    num_timesteps=50_000_000,
    reward_scaling=1,
    unroll_length=20,
    num_updates_per_batch=8,
    discounting=0.95,
    entropy_cost=1e-3,
    num_envs=2048,
    batch_size=512,
)
_HUMANOID = PPOSettings(
    num_timesteps=50_000_000,
    reward_scaling=0.1,
    unroll_length=10,
    num_updates_per_batch=8,
    discounting=0.97,
    entropy_cost=1e-3,
    num_envs=2048,
    batch_size=1024,
)
PPO = {
    "inverted_pendulum": _PENDULUM,
    "inverted_double_pendulum": dataclasses.replace(_PENDULUM, num_timesteps=20_000_000),
    "reacher": dataclasses.replace(_HALFCHEETAH, reward_scaling=5, action_repeat=4, unroll_length=50, batch_size=256),
    "hopper": _ANT,
    "walker2d": _ANT,
    "swimmer": _HALFCHEETAH,
    "halfcheetah": _HALFCHEETAH,
    "ant": _ANT,
    "humanoid": _HUMANOID,
    "humanoidstandup": dataclasses.replace(
        _HUMANOID, num_timesteps=100_000_000, unroll_length=15, entropy_cost=1e-2, learning_rate=6e-4
    ),
    "pusher": dataclasses.replace(
        _HALFCHEETAH, reward_scaling=5, unroll_length=30, entropy_cost=1e-2, num_minibatches=16
    ),
}
SAC = {
    "hopper": SACSettings(num_timesteps=6_553_600, reward_scaling=30, batch_size=512, grad_updates_per_step=64),
    "walker2d": SACSettings(num_timesteps=7_864_320, reward_scaling=5, batch_size=128, grad_updates_per_step=32),
}
