"""Drawing what a simulator went through, by MuJoCo's renderer and without a display."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.views.opengl import RenderingError

_BEHIND = 225
"""Grey, where a model without a sky leaves black."""

if TYPE_CHECKING:
    from mujoco import MjModel, MjvCamera


def drawable_model(environment: Any, name: str) -> MjModel:
    """Return the MuJoCo model of an environment's simulator.

    Raises:
        RenderingError: it has none, or does not tell how long a step of it lasts.
    """
    model = getattr(getattr(environment, "sys", None), "mj_model", None)
    if model is None or not hasattr(environment, "dt"):
        raise RenderingError(
            f"environment {name} cannot be drawn: MuJoCo's renderer needs its model as sys.mj_model, "
            "and its step in seconds as dt."
        )
    return model


def joint_positions(model: MjModel, physics: Sequence[Any], name: str) -> np.ndarray:
    """Return the joint positions in S of the simulator's states, float64 [S, nq].

    The links of the spring and positional backends are free bodies, which their joints hold together only so far: they
    are drawn as if these held. A state that is not finite is drawn as the last finite one before it.

    Raises:
        RenderingError: the states do not hold the positions of the model's joints.
    """
    found: list[Any] = [getattr(state, "q", None) for state in physics]
    if any(np.shape(q) != (model.nq,) for q in found):
        raise RenderingError(
            f"environment {name} cannot be drawn: its simulator's state has no positions q of the {model.nq} degrees "
            "of freedom of its model."
        )
    positions = np.stack(found).astype(np.float64)
    finite = np.isfinite(positions).all(1)
    return positions[np.maximum.accumulate(np.where(finite, np.arange(len(positions)), 0))]


def pictures(
    model: MjModel, platform: str, positions: np.ndarray, cameras: Sequence[MjvCamera], *, width: int, height: int
) -> Iterator[np.ndarray]:
    """Yield a picture of each moment, uint8 [height, width, 3].

    Args:
        model: what to draw; it is left as it is.
        platform: `choose_platform`'s.
        positions: of the joints, [S, nq].
        cameras: S, from where.
        width: pixels.
        height: pixels.
    """
    import mujoco

    drawn: Any = _lit(model, width, height)
    data: Any = mujoco.MjData(drawn)
    scene, option = mujoco.MjvScene(drawn, maxgeom=drawn.ngeom + 1000), mujoco.MjvOption()
    area = mujoco.MjrRect(0, 0, width, height)
    gl = importlib.import_module(f"mujoco.{platform}").GLContext(width, height)
    gl.make_current()
    context = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_100.value)
    try:
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, context)
        for moment, camera in zip(positions, cameras, strict=True):
            data.qpos = moment
            mujoco.mj_fwdPosition(drawn, data)
            mujoco.mjv_updateScene(drawn, data, option, None, camera, mujoco.mjtCatBit.mjCAT_ALL.value, scene)
            picture = np.empty((height, width, 3), np.uint8)
            gl.make_current()
            mujoco.mjr_render(area, scene, context)
            mujoco.mjr_readPixels(picture, None, area, context)
            picture[~picture.any(axis=-1)] = _BEHIND
            yield picture[::-1]
    finally:
        gl.make_current()
        context.free()
        gl.free()


def _lit(model: MjModel, width: int, height: int) -> MjModel:
    """Return a copy with room for the picture, even light, and pale patterns for the robot to stand out from."""
    copied: Any = copy.copy(model)
    copied.vis.global_.offwidth, copied.vis.global_.offheight = width, height
    copied.vis.headlight.ambient, copied.vis.headlight.diffuse, copied.vis.headlight.specular = 0.5, 0.6, 0.0
    copied.tex_data[:] = 120 + copied.tex_data // 3
    # Mirrors, finer shadows and smooth edges make a picture take five times as long where there is no GPU.
    copied.mat_reflectance[:] = 0.0
    copied.vis.quality.shadowsize, copied.vis.quality.offsamples = 1024, 0
    return copied


def walks(model: MjModel) -> bool:
    """Return whether the first body can go anywhere: by a free joint, or by a slide without a limit."""
    import mujoco

    mine = model.jnt_bodyid == 1
    free = model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)
    endless = (model.jnt_type == int(mujoco.mjtJoint.mjJNT_SLIDE)) & (model.jnt_limited == 0)
    return bool(np.any(mine & (free | endless)))
