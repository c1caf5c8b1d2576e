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
from trpo_brax.environments import TASKS, brax_task, own_task

CLIPPED = {"hopper", "walker2d", "inverted_double_pendulum"}
"""Tasks that observe velocities clipped to +-10."""
QUICK = [("hopper", "spring"), ("reacher", "spring"), ("inverted_double_pendulum", "spring")]
SLOW = [(task, backends[0]) for task, backends in TASKS.items()] + [("hopper", "mjx"), ("humanoid", "generalized")]
EVERY = [name if name in dict(QUICK) else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
AXES = {"x": 0, "y": 1, "z": 2}


class Meaning:
    """What a name says of a state, worked out in NumPy.

    Args:
        environment: Brax's.
        physics: the simulator's state.
        control: what its actuators were given.
        clip: largest absolute velocity observed.
    """

    def __init__(self, environment: Any, physics: Any, control: np.ndarray, clip: float) -> None:
        self.sys, self.physics, self.control, self.clip = environment.sys, physics, control, clip
        self.q, self.qd = np.asarray(physics.q, np.float64), np.asarray(physics.qd, np.float64)
        inertia = self.sys.link.inertia
        spring = environment.backend in ("spring", "positional")
        self.mass = np.asarray(inertia.mass, np.float64) ** (1 - self.sys.spring_mass_scale if spring else 1)
        moments = np.asarray(inertia.i, np.float64)
        if spring:
            diagonals = np.einsum("lii->li", moments) ** (1 - self.sys.spring_inertia_scale)
            moments = np.stack([np.diag(row) for row in diagonals])
        self.moments = moments

    def of(self, name: str) -> float:
        """Return the number that the name stands for."""
        subject, what, *rest = name.split(".")
        axis = AXES.get(rest[0], -1) if rest else -1
        joint = mujoco.mj_name2id(self.sys.mj_model, mujoco.mjtObj.mjOBJ_JOINT, subject)
        if subject == "fingertip_from_target":
            return float((self.fingertip() - np.asarray(self.physics.x.pos)[self.link("target")])[AXES[what]])
        if subject == "fingertip":
            # Brax takes the arm's offset along the world's x, however the arm is turned.
            velocity, spin = (
                np.asarray(part)[self.link("body1")] for part in (self.physics.xd.vel, self.physics.xd.ang)
            )
            return float((velocity + np.cross(spin, [0.11, 0, 0]))[axis])
        if joint >= 0 and what not in ("mass", "inertia"):
            return self.of_joint(joint, what, rest)
        return self.of_link(self.link(subject), what, rest)

    def of_joint(self, joint: int, what: str, rest: list[str]) -> float:
        """Return a number of a joint."""
        model = self.sys.mj_model
        position, dof = model.jnt_qposadr[joint], model.jnt_dofadr[joint]
        if what in ("sin", "cos"):
            return float(getattr(np, what)(self.q[position]))
        if what.startswith("actuator"):
            driven = [i for i in range(model.nu) if model.actuator_trnid[i, 0] == joint]
            return sum(float(self.sys.actuator.gear[i] * self.control[i]) for i in driven)
        if what == "orientation":
            return float(self.q[position + 3 + "wxyz".index(rest[0])])
        offset = {"position": 0, "velocity": 0, "angular_velocity": 3}[what] + (AXES[rest[0]] if rest else 0)
        return float(self.q[position + offset] if what == "position" else self.clipped(self.qd[dof + offset]))

    def of_link(self, link: int, what: str, rest: list[str]) -> float:
        """Return a number of a link."""
        place = np.asarray(self.physics.x.pos, np.float64)
        turn = [rotation(quaternion) for quaternion in np.asarray(self.physics.x.rot, np.float64)]
        inertia = self.sys.link.inertia.transform
        offsets = np.stack([turn[i] @ np.asarray(inertia.pos[i], np.float64) for i in range(len(turn))])
        centre = place + offsets
        if what == "position":
            return float(place[link, AXES[rest[0]]])
        if what == "centre":
            return float(centre[link, AXES[rest[0]]])
        if what == "mass":
            return float(self.mass[link])
        spin = np.asarray(self.physics.xd.ang, np.float64)[link]
        if what == "angular_velocity":
            return float(spin[AXES[rest[0]]])
        if what == "weighted_velocity":
            velocity = np.asarray(self.physics.xd.vel, np.float64)[link] + np.cross(spin, offsets[link])
            return float((self.mass[link] * velocity / self.mass.sum())[AXES[rest[0]]])
        assert what == "inertia"
        axes = turn[link] @ rotation(np.asarray(inertia.rot[link], np.float64))
        arm = centre[link] - self.mass @ centre / self.mass.sum()
        steiner = self.mass[link] * (arm @ arm * np.eye(3) - np.outer(arm, arm))
        row, column = (AXES[letter] for letter in rest[0])
        return float((axes @ self.moments[link] @ axes.T + steiner)[row, column])

    def fingertip(self) -> np.ndarray:
        """Return reacher's fingertip, 0.11 m along its second link."""
        arm = self.link("body1")
        turn = rotation(np.asarray(self.physics.x.rot, np.float64)[arm])
        return np.asarray(np.asarray(self.physics.x.pos, np.float64)[arm] + turn @ [0.11, 0, 0])

    def link(self, name: str) -> int:
        """Return a link's index."""
        return int(self.sys.link_names.index(name))

    def clipped(self, velocity: float) -> float:
        """Return a velocity as it is observed."""
        return float(np.clip(velocity, -self.clip, self.clip))


def rotation(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation matrix of a unit quaternion w, x, y, z."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def check(name: str, environment: Any, observed: Any, physics: Any, control: np.ndarray) -> None:
    """Compare an observation with what the names of its components say."""
    meaning = Meaning(environment, physics, control, 10.0 if name in CLIPPED else np.inf)
    names = observation_names(brax_task(name, environment.backend), own=False)
    wanted = np.array([meaning.of(component) for component in names])
    np.testing.assert_allclose(np.asarray(observed), wanted, rtol=2e-4, atol=2e-4)
    # Numbers that could be mistaken for one another would prove nothing.
    assert len(np.unique(np.round(wanted, 3))) > 0.8 * len(names) or name.startswith("humanoid")


@pytest.mark.parametrize(
    ("name", "backend"), [QUICK[0], *(pytest.param(*other, marks=pytest.mark.slow) for other in QUICK[1:])]
)
def test_every_component_is_what_its_name_says_wherever_it_is_put(name: str, backend: str) -> None:
    environment: Any = brax_task(name, backend).environment
    generator = np.random.default_rng(0)
    q = generator.uniform(-1.0, 1.0, environment.sys.q_size()).astype(np.float32)
    qd = generator.uniform(-12.0, 12.0, environment.sys.qd_size()).astype(np.float32)
    physics = jax.jit(environment.pipeline_init)(q, qd)
    check(name, environment, jax.jit(environment._get_obs)(physics), physics, np.zeros(environment.action_size))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), SLOW)
def test_every_component_is_what_its_name_says_after_some_steps(name: str, backend: str) -> None:
    environment: Any = brax_task(name, backend).environment
    step = jax.jit(environment.step)
    state = jax.jit(environment.reset)(jax.random.PRNGKey(3))
    action = np.random.default_rng(0).uniform(-0.9, 0.9, environment.action_size).astype(np.float32)
    for _ in range(5):
        state = step(state, action)
    ranges = np.asarray(environment.sys.actuator.ctrl_range, np.float64)
    control = ranges[:, 0] + (action + 1) * (ranges[:, 1] - ranges[:, 0]) / 2
    check(name, environment, state.obs, state.pipeline_state, control)


@pytest.mark.parametrize("name", EVERY)
def test_every_action_is_called_by_what_it_drives(name: str) -> None:
    task = brax_task(name, TASKS[name][0])
    model = task.environment.sys.mj_model
    names = action_names(task, own=False)
    assert len(set(names)) == len(task.action_low)
    for index, action in enumerate(names):
        dof = int(task.environment.sys.actuator.qd_id[index])
        joint = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, int(model.dof_jntid[dof]))
        actuator = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index)
        assert action == (actuator or joint)


@pytest.mark.parametrize("name", EVERY)
def test_every_component_has_a_name_of_its_own(name: str) -> None:
    task = brax_task(name, TASKS[name][0])
    assert len(set(observation_names(task, own=False))) == task.observation_size


def test_hopper_by_hand() -> None:
    task = brax_task("hopper", "spring")
    assert observation_names(task, own=False)[:3] == ("torso.position.z", "rooty.position", "thigh_joint.position")
    assert action_names(task, own=False) == ("thigh_joint", "leg_joint", "foot_joint")


class TestAnEnvironmentOfOnesOwn:
    """It may name its components; otherwise they have numbers."""

    def test_without_names(self) -> None:
        task = own_task(History(), RolloutConfig())
        assert observation_names(task, own=True) == ("observation[0]", "observation[1]")
        assert action_names(task, own=True) == ("action[0]",)

    def test_with_names(self) -> None:
        environment = Bounded(low=-1.0, high=1.0)
        environment.observation_names = ["position", "velocity"]
        environment.action_names = ("push", "pull")
        task = own_task(environment, RolloutConfig())
        assert observation_names(task, own=True) == ("position", "velocity")
        assert action_names(task, own=True) == ("push", "pull")

    def test_names_that_do_not_fit_are_not_used(self) -> None:
        environment = History()
        environment.observation_names = ["position"]
        task = own_task(environment, RolloutConfig())
        assert observation_names(task, own=True) == ("observation[0]", "observation[1]")
