"""A task whose world differs from the one that was trained in: masses, friction, gravity, actuators, sensors, delay.

Everything is traced: one compiled program serves every strength of every perturbation.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from trpo_brax.config import MOST_DELAY
from trpo_brax.environments.tasks import Task, starting_state
from trpo_brax.errors import TaskError

if TYPE_CHECKING:
    from brax.envs import Env, State

BODILY = ("mass", "friction", "gravity", "gain")
"""What can be scaled only in a simulator's own description of its bodies."""
_NOISE_STREAM = 0x6E6F6973


@struct.dataclass
class Perturbation:
    """How a world differs; `Perturbation.none()` is the trained one."""

    mass: jax.Array
    """float32 []: factor of every body's mass and inertia."""
    friction: jax.Array
    """float32 []: factor of every surface's friction."""
    gravity: jax.Array
    """float32 []: factor of gravity."""
    gain: jax.Array
    """float32 []: factor of the force that every actuator exerts."""
    observation_noise: jax.Array
    """float32 []: standard deviations of Gaussian noise, in units of each component's own in training."""
    delay: jax.Array
    """int32 []: control steps, at most `MOST_DELAY`, by which observations come late; at first the first one stays."""

    @classmethod
    def none(cls) -> Perturbation:
        """Return the world of the training."""
        one = jnp.ones((), jnp.float32)
        return cls(one, one, one, one, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))

    @classmethod
    def of(cls, name: str, strength: float) -> Perturbation:
        """Return the world that differs in one thing, by its field's name."""
        nominal = cls.none()
        dtype = getattr(nominal, name).dtype
        return dataclasses.replace(nominal, **{name: jnp.asarray(strength, dtype)})


def applicable(task: Task) -> tuple[str, ...]:
    """Return the names of the perturbations that a task allows.

    Bodies are changed only in a Brax `PipelineEnv`, under Brax's own wrappers or none, which simulates the `sys` that
    it holds: of any other environment nobody knows whether changing a `sys` changes what it simulates.
    """
    names = tuple(field.name for field in dataclasses.fields(Perturbation))
    return names if _system(task.environment) is not None else tuple(name for name in names if name not in BODILY)


def perturbed_task(task: Task, perturbation: Perturbation, observation_std: jax.Array, action_repeat: int = 1) -> Task:
    """Return the task in another world.

    Args:
        task: to perturb; its bodies are left as they are where its environment has no Brax `sys`.
        perturbation: may be traced.
        observation_std: [observation]: what a noise of 1 is, component by component.
        action_repeat: simulator steps per control step, in which delays are counted.
    """
    environment = task.environment
    system = _system(environment)
    if system is not None:
        scaled = _scaled_system(system, environment.unwrapped.backend, perturbation)
        environment = with_attribute(environment, "sys", scaled)
    return dataclasses.replace(
        task, environment=_LateAndNoisy(environment, perturbation, observation_std, action_repeat)
    )


class _LateAndNoisy:
    """A `brax.envs.Env` whose observations come late and with noise; everything else is the inner environment's.

    The inner state's physics stays where it was, so that whoever asks whether it is finite finds it; the rest of the
    inner state travels in `info`.
    """

    def __init__(self, inner: Env, perturbation: Perturbation, observation_std: jax.Array, action_repeat: int) -> None:
        self._inner, self._perturbation, self._std = inner, perturbation, observation_std
        self._repeat = action_repeat

    def reset(self, rng: jax.Array) -> State:
        start = starting_state(self._inner, rng)
        history = jnp.broadcast_to(start.obs, (MOST_DELAY * self._repeat + 1, *start.obs.shape))
        return self._seen(start, history, jax.random.fold_in(rng, _NOISE_STREAM))

    def step(self, state: State, action: jax.Array) -> State:
        inner = state.info["inner"].replace(pipeline_state=state.pipeline_state)
        after = self._inner.step(inner, action)
        history = jnp.concatenate([after.obs[None], state.info["history"][:-1]])
        return self._seen(after, history, state.info["key"])

    def _seen(self, inner: State, history: jax.Array, key: jax.Array) -> State:
        key, now = jax.random.split(key)
        noise = self._perturbation.observation_noise * self._std * jax.random.normal(now, inner.obs.shape)
        late = jax.lax.dynamic_index_in_dim(history, self._perturbation.delay * self._repeat, keepdims=False)
        info: dict[str, Any] = {"inner": inner.replace(pipeline_state=None), "history": history, "key": key}
        if "truncation" in inner.info:
            info["truncation"] = inner.info["truncation"]
        # Without noise exactly what was measured: a component that is not finite must stay so for the finite guard.
        return inner.replace(obs=late + noise, metrics={}, info=info)


def _system(environment: Any) -> Any:
    """Return the Brax system that the environment simulates, None where nobody knows it to simulate one."""
    from brax.base import System
    from brax.envs.base import PipelineEnv, Wrapper

    while isinstance(environment, Wrapper):
        environment = environment.env
    system = vars(environment).get("sys") if isinstance(environment, PipelineEnv) else None
    return system if isinstance(system, System) else None


def with_attribute(environment: Any, name: str, value: Any) -> Any:
    """Return a copy of an environment, and of the wrappers around it, with one attribute of the innermost replaced."""
    from brax.envs.base import Wrapper

    changed = copy.copy(environment)
    if isinstance(environment, Wrapper):
        changed.env = with_attribute(environment.env, name, value)
    else:
        setattr(changed, name, value)
    return changed


def _scaled_system(system: Any, backend: str, perturbation: Perturbation) -> Any:
    """Return the system with everything scaled that its backend's physics reads."""
    mass, gain = perturbation.mass, perturbation.gain
    friction = system.geom_friction * jnp.asarray([perturbation.friction, 1.0, 1.0])
    pairs = jnp.asarray(system.pair_friction)
    pairs = pairs * jnp.concatenate([jnp.full((2,), perturbation.friction), jnp.ones(3)]) if pairs.size else pairs
    gravity = perturbation.gravity * system.gravity
    common = {"geom_friction": friction, "pair_friction": pairs, "gravity": gravity}
    if backend == "mjx":
        # Weights of constraints go with the inverse of what they hold.
        return system.replace(
            **common,
            opt=system.opt.replace(gravity=perturbation.gravity * system.opt.gravity),
            body_mass=mass * system.body_mass,
            body_inertia=mass * system.body_inertia,
            body_subtreemass=mass * system.body_subtreemass,
            body_invweight0=system.body_invweight0 / mass,
            dof_invweight0=system.dof_invweight0 / mass,
            actuator_gainprm=gain * system.actuator_gainprm,
            actuator_biasprm=gain * system.actuator_biasprm,
            actuator_forcerange=gain * system.actuator_forcerange,
        )
    inertia, link, actuator = system.link.inertia, system.link, system.actuator
    common["actuator"] = actuator.replace(
        gain=gain * actuator.gain,
        bias_q=gain * actuator.bias_q,
        bias_qd=gain * actuator.bias_qd,
        force_range=gain * actuator.force_range,
    )
    if backend == "generalized":
        scaled = inertia.replace(mass=mass * inertia.mass, i=mass * inertia.i)
        return system.replace(
            **common,
            link=link.replace(inertia=scaled, invweight=link.invweight / mass),
            dof=system.dof.replace(invweight=system.dof.invweight / mass),
        )
    if backend not in ("spring", "positional"):
        raise TaskError(f"masses cannot be scaled on backend {backend}.")
    # These two simulate mass^(1 - scale), often with scale 1, where every body weighs the same whatever its mass:
    # scaled is what they simulate.
    own = {
        "mass": mass * inertia.mass ** (1 - system.spring_mass_scale),
        "i": mass * inertia.i ** (1 - system.spring_inertia_scale),
    }
    return system.replace(
        **common,
        link=link.replace(inertia=inertia.replace(**own)),
        spring_mass_scale=0.0,
        spring_inertia_scale=0.0,
    )
