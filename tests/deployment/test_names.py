"""Each name of an observation's component says what the simulator's state holds there, read from the model by name."""

from __future__ import annotations

from typing import Any

import jax
import mujoco
import numpy as np
import pytest

from tests.tiny_environments import Bounded, History
from trpo_brax.config import RolloutConfig
from trpo_brax.deployment.names import action_names, observation_names
from trpo_brax.environments import TASKS, Task, brax_task, own_task

BY_INDEX = {
    "hopper": {0},
    "walker2d": {0},
    "inverted_double_pendulum": {1, 2, 3, 4},
    "reacher": {0, 1, 2, 3, 6, 7, 8, 9, 10},
    "pusher": {*range(7), *range(14, 23)},
    "humanoid": {*range(45, 244)},
    "humanoidstandup": {*range(45, 244)},
}
"""Components that are no joint's (heights, sines, inertias), or, as pusher's arm, start the same every time."""
CLIPPED = {"hopper", "walker2d", "inverted_double_pendulum"}
"""Tasks that observe velocities clipped to +-10."""
QUICK = "hopper"
EVERY = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
OFFSETS = {"position": 0, "orientation": 3, "velocity": 0, "angular_velocity": 3}


def starts(task: Task) -> Any:
    return jax.jit(jax.vmap(task.environment.reset))(jax.random.split(jax.random.PRNGKey(0), 8))


def by_name(model: Any, physics: Any, name: str) -> float:
    """Return the coordinate that a name stands for, found by MuJoCo's addresses."""
    joint, what, *rest = name.split(".")
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, joint)
    axes = "wxyz" if what == "orientation" else "xyz"
    place = OFFSETS[what] + (axes.index(rest[0]) if rest else 0)
    if what in ("position", "orientation"):
        return float(physics.q[model.jnt_qposadr[index] + place])
    return float(physics.qd[model.jnt_dofadr[index] + place])


@pytest.mark.parametrize("name", EVERY)
def test_every_component_is_what_its_name_says_wherever_it_is_put(name: str) -> None:
    task = brax_task(name, TASKS[name][0])
    environment: Any = task.environment
    names = observation_names(task, starts(task))
    assert len(set(names)) == task.observation_size
    assert {i for i, one in enumerate(names) if one == f"observation[{i}]"} == BY_INDEX.get(name, set())
    generator = np.random.default_rng(0)
    q = generator.uniform(-1.0, 1.0, environment.sys.q_size()).astype(np.float32)
    qd = generator.uniform(-12.0, 12.0, environment.sys.qd_size()).astype(np.float32)
    physics = jax.jit(environment.pipeline_init)(q, qd)
    # Humanoid's observation takes the action too.
    extra = (np.zeros(environment.action_size),) if name.startswith("humanoid") else ()
    observed = np.asarray(jax.jit(environment._get_obs)(physics, *extra))
    for index, one in enumerate(names):
        if index not in BY_INDEX.get(name, set()):
            wanted = by_name(environment.sys.mj_model, physics, one)
            if name in CLIPPED and "velocity" in one:
                wanted = float(np.clip(wanted, -10.0, 10.0))
            assert observed[index] == pytest.approx(wanted, rel=1e-6), one


@pytest.mark.parametrize("name", EVERY)
def test_every_action_is_called_by_what_it_drives(name: str) -> None:
    task = brax_task(name, TASKS[name][0])
    model = task.environment.sys.mj_model
    names = action_names(task)
    assert len(set(names)) == len(task.action_low)
    for index, action in enumerate(names):
        dof = int(task.environment.sys.actuator.qd_id[index])
        joint = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, int(model.dof_jntid[dof]))
        actuator = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index)
        assert action == (actuator or joint)


class TestAnEnvironmentOfOnesOwn:
    """It may name its components; otherwise they have numbers."""

    def test_without_names(self) -> None:
        task = own_task(History(), RolloutConfig())
        assert observation_names(task, starts(task)) == ("observation[0]", "observation[1]")
        assert action_names(task) == ("action[0]",)

    def test_with_names(self) -> None:
        environment = Bounded(low=-1.0, high=1.0)
        environment.observation_names = ["position", "velocity"]
        environment.action_names = ("push", "pull")
        task = own_task(environment, RolloutConfig())
        assert observation_names(task, starts(task)) == ("position", "velocity")
        assert action_names(task) == ("push", "pull")

    def test_names_that_do_not_fit_are_not_used(self) -> None:
        environment = History()
        environment.observation_names = ["position"]
        task = own_task(environment, RolloutConfig())
        assert observation_names(task, starts(task)) == ("observation[0]", "observation[1]")
