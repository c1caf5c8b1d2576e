"""What each number of an observation and of an action is called, by the joints and actuators of the task's model.

A joint's numbers are `JOINT.position` and `JOINT.velocity` (rad and rad/s of a hinge, m and m/s of a slide); those of a
free joint are `JOINT.position.x`, `.orientation.w`, `.velocity.x` and `.angular_velocity.x`, and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.environments import Task

if TYPE_CHECKING:
    from brax.envs import State

_POSITION, _ORIENTATION = ["position.x", "position.y", "position.z"], [f"orientation.{part}" for part in "wxyz"]
_VELOCITY, _ANGULAR = ([f"{what}.{axis}" for axis in "xyz"] for what in ("velocity", "angular_velocity"))
_PARTS = {0: (_POSITION + _ORIENTATION, _VELOCITY + _ANGULAR), 1: (_ORIENTATION, _ANGULAR)}
"""MuJoCo's type of a joint, free and ball -> what its positions and its velocities are; hinges and slides have one."""


def observation_names(task: Task, start: State) -> tuple[str, ...]:
    """Return the names of an observation's components, in order.

    They are the environment's own where it has an attribute `observation_names`. Otherwise a component that at every
    start is a joint's position or velocity, to rounding, is called by it, and any other by its index.

    Args:
        task: the task.
        start: some of its starting states, batched.
    """
    indexed = tuple(f"observation[{index}]" for index in range(task.observation_size))
    told, model = _told(task, "observation_names", task.observation_size), _model(task)
    if told is not None or model is None:
        return told or indexed
    physics: Any = start.pipeline_state
    shapes = [getattr(getattr(physics, part, None), "shape", (0, 0))[1:] for part in ("q", "qd")]
    if shapes != [(model.nq,), (model.nv,)]:
        return indexed
    joints = [model.joint(index) for index in range(model.njnt)]
    known: dict[str, np.ndarray] = {}
    for kind, values in enumerate((physics.q, physics.qd)):
        parts = [
            f"{one.name}.{part}"
            for one in joints
            for part in _PARTS.get(one.type[0], (["position"], ["velocity"]))[kind]
        ]
        # What is the same at every start could be anything, and what has no name is called by its index.
        columns = zip(parts, np.asarray(values).T, strict=True)
        known |= {part: column for part, column in columns if np.ptp(column) and not part.startswith(".")}

    def name(index: int, column: np.ndarray) -> str:
        # How XLA fuses the two is its own affair.
        same = (one for one, values in known.items() if np.allclose(column, values, rtol=1e-6, atol=1e-8))
        found = next(same, indexed[index])
        known.pop(found, None)
        return found

    return tuple(name(index, column) for index, column in enumerate(np.asarray(start.obs).T))


def action_names(task: Task) -> tuple[str, ...]:
    """Return the names of an action's components, in order: of the actuators, or else of the joints they drive.

    They are the environment's own where it has an attribute `action_names`; where it has none, and no MuJoCo model with
    as many actuators as actions, the components are called by their index.
    """
    size = len(task.action_low)
    told, model = _told(task, "action_names", size), _model(task)
    if told is not None or model is None or model.nu != size:
        return told or tuple(f"action[{index}]" for index in range(size))
    return tuple(_actuator_name(model, index) for index in range(size))


def _told(task: Task, attribute: str, size: int) -> tuple[str, ...] | None:
    told = getattr(task.environment, attribute, None)
    if isinstance(told, (list, tuple)) and len(told) == size and all(isinstance(name, str) for name in told):
        return tuple(told)
    return None


def _model(task: Task) -> Any:
    """Return the MuJoCo model, None where there is none."""
    return getattr(getattr(task.environment, "sys", None), "mj_model", None)


def _actuator_name(model: Any, index: int) -> str:
    import mujoco

    actuator = model.actuator(index)
    is_joint = actuator.trntype[0] == mujoco.mjtTrn.mjTRN_JOINT
    return actuator.name or (model.joint(actuator.trnid[0]).name if is_joint else "") or f"action[{index}]"
