"""What each number of an observation and of an action is called, by the joints and links of the task's model.

A joint's numbers are `JOINT.position` and `JOINT.velocity` (rad and rad/s of a hinge, m and m/s of a slide); those of a
free joint are `JOINT.position.x`, `.orientation.w`, `.velocity.x` and `.angular_velocity.x`, and so on. The order of
each task's observation is that of its `_get_obs` in Brax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trpo_brax.environments import Task

if TYPE_CHECKING:
    from brax.envs import Env

_XYZ = ("x", "y", "z")
_WXYZ = ("w", "x", "y", "z")


def observation_names(task: Task, own: bool) -> tuple[str, ...]:
    """Return the names of an observation's components, in order.

    Args:
        task: the task.
        own: whether it is an environment of the user's own: it may have an attribute `observation_names`; where it has
            none, the components are called by their index.
    """
    size = task.observation_size
    if own:
        return _told(task.environment, "observation_names", size) or _indexed("observation", size)
    names = tuple(_OBSERVATIONS[task.name](task.environment))
    if len(names) != size or len(set(names)) != size:
        raise AssertionError(f"{len(names)} names for the {size} observations of {task.name}")
    return names


def action_names(task: Task, own: bool) -> tuple[str, ...]:
    """Return the names of an action's components, in order: of the actuators, or else of the joints they drive.

    Args:
        task: the task.
        own: whether it is an environment of the user's own: it may have an attribute `action_names`; where it has none,
            and no MuJoCo model with as many actuators as actions, the components are called by their index.
    """
    size = len(task.action_low)
    told = _told(task.environment, "action_names", size) if own else None
    model = getattr(getattr(task.environment, "sys", None), "mj_model", None)
    if told is not None or model is None or model.nu != size:
        return told or _indexed("action", size)
    return tuple(_actuator_name(model, index) for index in range(size))


def _told(environment: Env, attribute: str, size: int) -> tuple[str, ...] | None:
    told = getattr(environment, attribute, None)
    if isinstance(told, (list, tuple)) and len(told) == size and all(isinstance(name, str) for name in told):
        return tuple(told)
    return None


def _indexed(what: str, size: int) -> tuple[str, ...]:
    return tuple(f"{what}[{index}]" for index in range(size))


def _actuator_name(model: Any, index: int) -> str:
    import mujoco

    name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index)
    is_joint = model.actuator_trntype[index] == mujoco.mjtTrn.mjTRN_JOINT
    if not name and is_joint:
        name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, int(model.actuator_trnid[index, 0]))
    return name or f"action[{index}]"


def _joints(environment: Env) -> list[tuple[str, bool]]:
    """Return (name, whether it is free) of each joint in the model's order, which is that of positions."""
    import mujoco

    model = environment.sys.mj_model
    return [
        (
            mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, index),
            model.jnt_type[index] == mujoco.mjtJoint.mjJNT_FREE,
        )
        for index in range(model.njnt)
    ]


def _parts(prefix: str, axes: Sequence[str] = _XYZ) -> list[str]:
    return [f"{prefix}.{axis}" for axis in axes]


def _positions(environment: Env) -> list[str]:
    names = []
    for joint, free in _joints(environment):
        parts = [*_parts(f"{joint}.position"), *_parts(f"{joint}.orientation", _WXYZ)]
        names += parts if free else [f"{joint}.position"]
    return names


def _per_velocity(environment: Env, what: str, angular: str) -> list[str]:
    names = []
    for joint, free in _joints(environment):
        parts = [*_parts(f"{joint}.{what}"), *_parts(f"{joint}.{angular}")]
        names += parts if free else [f"{joint}.{what}"]
    return names


def _velocities(environment: Env) -> list[str]:
    return _per_velocity(environment, "velocity", "angular_velocity")


def _without_first(count: int) -> Callable[[Env], list[str]]:
    """Return the layout of positions without the first few, which say where on the ground it is, and velocities."""
    return lambda environment: [*_positions(environment)[count:], *_velocities(environment)]


def _with_height(environment: Env) -> list[str]:
    """Hopper's and walker's: the second position is replaced by the height of the torso."""
    return ["torso.position.z", *_positions(environment)[2:], *_velocities(environment)]


def _humanoid(environment: Env) -> list[str]:
    """Return the names of what both humanoids observe: of each link its inertia about the whole body's centre of mass
    and its mass, as the physics backend scales them, and its velocities, the linear one times its share of the mass."""
    links = environment.sys.link_names
    inertia = [f"{link}.inertia.{row}{column}" for link in links for row in _XYZ for column in _XYZ]
    by_link = [[*inertia[9 * index : 9 * (index + 1)], f"{link}.mass"] for index, link in enumerate(links)]
    velocities = [[*_parts(f"{link}.weighted_velocity"), *_parts(f"{link}.angular_velocity")] for link in links]
    return [
        *_positions(environment)[2:],
        *_velocities(environment),
        *(name for names in by_link for name in names),
        *(name for names in velocities for name in names),
        *_per_velocity(environment, "actuator_force", "actuator_torque"),
    ]


def _inverted_double_pendulum(environment: Env) -> list[str]:
    (slider, _), *hinges = _joints(environment)
    sines, cosines = ([f"{hinge}.{what}" for hinge, _ in hinges] for what in ("sin", "cos"))
    return [f"{slider}.position", *sines, *cosines, *_velocities(environment)]


def _reacher(environment: Env) -> list[str]:
    """The fingertip lies at the end of the second link; the last three are its position less the target's."""
    arm = [joint for joint, _ in _joints(environment)[:2]]
    cosines, sines = ([f"{joint}.{what}" for joint in arm] for what in ("cos", "sin"))
    tip = [*_parts("fingertip.velocity", _XYZ[:2]), *_parts("fingertip_from_target")]
    return [*cosines, *sines, *_positions(environment)[2:], *tip]


def _pusher(environment: Env) -> list[str]:
    """Seven joints of the arm, and where the centres of mass of its hand, of the object and of the goal are."""
    centres = [name for link in ("r_wrist_flex_link", "object", "goal") for name in _parts(f"{link}.centre")]
    return [*_positions(environment)[:7], *_velocities(environment)[:7], *centres]


_OBSERVATIONS: dict[str, Callable[[Env], list[str]]] = {
    "ant": _without_first(2),
    "halfcheetah": _without_first(1),
    "hopper": _with_height,
    "humanoid": _humanoid,
    "humanoidstandup": _humanoid,
    "inverted_double_pendulum": _inverted_double_pendulum,
    "inverted_pendulum": _without_first(0),
    "pusher": _pusher,
    "reacher": _reacher,
    "swimmer": _without_first(2),
    "walker2d": _with_height,
}
