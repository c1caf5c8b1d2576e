"""Task name -> Config: settings that train each Brax task."""

from __future__ import annotations

from trpo_brax.checked import suggest
from trpo_brax.config import Config, override
from trpo_brax.errors import ConfigError

# Balancing is lost by drifting for hundreds of steps, and running by falling after as many: a short horizon does not
# see it coming. With a discount of 0.995 hopper learns to run fast and fall (return 900, episodes of 300 steps).
_FAR_SIGHTED = override(Config(), discount=0.999, trace_decay=0.97, fisher_fraction=0.03)
_LOCOMOTION = override(Config(), discount=0.99, trace_decay=0.97, fisher_fraction=0.03)
_SMALL = override(Config(), num_envs=256, unroll_length=64, critic_minibatches=8)
# Ten passes of the critic, which cost more than all the rest: with two or four, seeds ended at 910 to 970 instead of
# 1000, and one of three double pendulums at 5300 instead of 9300.
_PENDULUM = override(_SMALL, discount=0.998, trace_decay=0.97, fisher_fraction=0.2, critic_epochs=10)

PRESETS: dict[str, Config] = {
    "inverted_pendulum": override(_PENDULUM, task="inverted_pendulum", total_steps=1_200_000),
    "inverted_double_pendulum": override(_PENDULUM, task="inverted_double_pendulum", total_steps=3_000_000),
    "reacher": override(_SMALL, task="reacher", fisher_fraction=0.2, critic_epochs=5, total_steps=2_000_000),
    "hopper": override(_FAR_SIGHTED, task="hopper", total_steps=5_000_000),
    "walker2d": override(_FAR_SIGHTED, task="walker2d", total_steps=10_000_000),
    "halfcheetah": override(_LOCOMOTION, task="halfcheetah", total_steps=10_000_000),
    "ant": override(_LOCOMOTION, task="ant", total_steps=10_000_000),
    "humanoid": override(_LOCOMOTION, task="humanoid", total_steps=20_000_000),
    "humanoidstandup": override(_LOCOMOTION, task="humanoidstandup", total_steps=20_000_000),
    "pusher": override(_LOCOMOTION, task="pusher", total_steps=10_000_000),
    "swimmer": override(_LOCOMOTION, task="swimmer", backend="generalized", total_steps=5_000_000),
}


def preset(task: str) -> Config:
    """Return the settings that train `task`.

    Raises:
        ConfigError: there is no such task; the sentence names the nearest ones.
    """
    if not isinstance(task, str):
        raise ConfigError(f"task must be the name of a task, not {task!r:.40}.")
    if task not in PRESETS:
        raise ConfigError(f"unknown task {task!r}{suggest(task, PRESETS)}")
    return PRESETS[task]
