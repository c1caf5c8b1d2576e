"""Drawing what a simulator went through, by MuJoCo's renderer and without a display."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.views.opengl import RenderingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mujoco import MjModel, MjvCamera

_SKY = (205, 218, 232)
_SUNSHINE = np.array([0.0, 0.2873, -0.9578])


@dataclasses.dataclass(frozen=True)
class Motion:
    """Where the links of a system are, at S moments."""

    positions: np.ndarray
    """float64 [S, links, 3], m."""
    rotations: np.ndarray
    """float64 [S, links, 4]: unit quaternions, real part first."""


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


def motion_of(model: MjModel, physics: Sequence[Any], name: str) -> Motion:
    """Return where the links were in the simulator's states.

    They are taken from the state's own `x`. Joint positions would do on generalized coordinates alone: the links of the
    spring and positional backends are free bodies, which their joints hold together only so far.
    A state that is not finite is drawn as the last finite one before it.

    Raises:
        RenderingError: the states hold no transform of every body of the model.
    """
    x: list[Any] = [getattr(state, "x", None) for state in physics]
    wanted = {"pos": (model.nbody - 1, 3), "rot": (model.nbody - 1, 4)}
    if any(getattr(getattr(one, field, None), "shape", None) != shape for one in x for field, shape in wanted.items()):
        raise RenderingError(
            f"environment {name} cannot be drawn: its simulator's state has no transform x of each of the "
            f"{model.nbody - 1} bodies of its model."
        )
    positions, rotations = (np.stack([getattr(one, field) for one in x]).astype(np.float64) for field in wanted)
    finite = np.isfinite(positions).all((1, 2)) & np.isfinite(rotations).all((1, 2))
    last_finite = np.maximum.accumulate(np.where(finite, np.arange(len(x)), 0))
    positions, rotations = positions[last_finite], rotations[last_finite]
    norms = np.linalg.norm(rotations, axis=-1, keepdims=True)
    return Motion(positions, rotations / np.where(norms > 0.0, norms, 1.0))


class Canvas(contextlib.AbstractContextManager["Canvas"]):
    """A drawing surface for one model; to be closed.

    Args:
        model: what to draw; it is left as it is.
        platform: `choose_platform`'s.
        width: pixels.
        height: pixels.
    """

    def __init__(self, model: MjModel, platform: str, *, width: int, height: int) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        self._model: Any = _lit(model, width, height)
        self._data = mujoco.MjData(self._model)
        self._has_sky = bool(np.any(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX))
        self._scene = mujoco.MjvScene(self._model, maxgeom=self._model.ngeom + 1000)
        self._option = mujoco.MjvOption()
        self._area = mujoco.MjrRect(0, 0, width, height)
        self._gl = importlib.import_module(f"mujoco.{platform}").GLContext(width, height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)

    def __exit__(self, *_: object) -> None:
        self._gl.make_current()
        self._context.free()
        self._gl.free()

    def draw(self, positions: np.ndarray, rotations: np.ndarray, camera: MjvCamera) -> np.ndarray:
        """Return a picture, uint8 [height, width, 3].

        Args:
            positions: of the links, [links, 3].
            rotations: of the links, [links, 4].
            camera: from where.
        """
        mujoco = self._mujoco
        place(self._model, self._data, positions, rotations)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, self._data, self._option, None, camera, everything, self._scene)
        if not self._has_sky:
            _add_backdrop(self._model, self._scene, self._area.width / self._area.height)
        picture = np.empty((self._area.height, self._area.width, 3), np.uint8)
        self._gl.make_current()
        mujoco.mjr_render(self._area, self._scene, self._context)
        mujoco.mjr_readPixels(picture, None, self._area, self._context)
        return picture[::-1]


def _lit(model: MjModel, width: int, height: int) -> MjModel:
    """Return a copy with room for the picture, even light, and pale ground and sky for the robot to stand out from."""
    import mujoco

    copied: Any = copy.copy(model)
    copied.vis.global_.offwidth, copied.vis.global_.offheight = width, height
    copied.vis.headlight.ambient, copied.vis.headlight.diffuse, copied.vis.headlight.specular = 0.3, 0.4, 0.0
    # Mirrors, finer shadows and smooth edges make a picture take five times as long where there is no GPU.
    copied.mat_reflectance[:] = 0.0
    copied.vis.quality.shadowsize, copied.vis.quality.offsamples = 1024, 0
    patterned = (copied.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (copied.geom_matid >= 0)
    copied.geom_rgba[patterned] = 0.5, 0.5, 0.5, 1.0
    for texture in set(copied.mat_texid[copied.geom_matid[patterned]].ravel().tolist()) - {-1}:
        colors = _colors(copied, texture)
        colors[:] = 120 + colors // 3
    for texture in np.flatnonzero(copied.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX):
        _colors(copied, int(texture))[:, :3] = _SKY
    if walks(model):
        # The sun goes along, since its shadows reach only so far, and stands aslant: straight above it lights no limb.
        sun = copied.light_bodyid == 0
        copied.light_bodyid[sun], copied.light_mode[sun] = 1, mujoco.mjtCamLight.mjCAMLIGHT_TRACK
        copied.light_pos0[sun], copied.light_dir0[sun] = -4.0 * _SUNSHINE, _SUNSHINE
        copied.vis.map.shadowclip = 4.0 / copied.stat.extent
    return copied


def _colors(model: Any, texture: int) -> np.ndarray:
    """Return a view of a texture's colours, uint8 [pixels, channels]."""
    channels = int(model.tex_nchannel[texture])
    first, size = model.tex_adr[texture], model.tex_height[texture] * model.tex_width[texture] * channels
    colors: np.ndarray = model.tex_data[first : first + size]
    return colors.reshape(-1, channels)


def walks(model: MjModel) -> bool:
    """Return whether the first body can go anywhere: by a free joint, or by a slide without a limit."""
    import mujoco

    mine = model.jnt_bodyid == 1
    free = model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)
    endless = (model.jnt_type == int(mujoco.mjtJoint.mjJNT_SLIDE)) & (model.jnt_limited == 0)
    return bool(np.any(mine & (free | endless)))


def _add_backdrop(model: Any, scene: Any, aspect: float) -> None:
    """Put a wall far behind the scene, in the sky's colour: a model without a sky has a black one."""
    import mujoco

    eye = scene.camera[0]
    forward, up = np.array(eye.forward, float), np.array(eye.up, float)
    far = 0.9 * model.vis.map.zfar * model.stat.extent
    wall = scene.geoms[scene.ngeom]
    # The wall's own axes: x to the right, y up, z towards the camera.
    matrix = np.column_stack([np.cross(forward, up), up, -forward])
    size = far * np.array([max(1.0, aspect), 1.0, 1e-3])
    color = np.array([*(0.5 * np.array(_SKY) / 255.0), 1.0], np.float32)
    box = mujoco.mjtGeom.mjGEOM_BOX
    mujoco.mjv_initGeom(wall, box, size, np.array(eye.pos, float) + far * forward, matrix.ravel(), color)
    wall.emission, wall.specular = 1.0, 0.0
    scene.ngeom += 1


def place(model: Any, data: Any, positions: np.ndarray, rotations: np.ndarray) -> None:
    """Put every body of `data` where it was, and with it all that is fixed to it: shapes, sites, cameras and lights.

    Args:
        model: the system.
        data: its MjData, where they are written.
        positions: of the links, [links, 3].
        rotations: of the links, [links, 4].
    """
    import mujoco

    data.xpos[0], data.xquat[0] = 0.0, (1.0, 0.0, 0.0, 0.0)
    data.xpos[1:], data.xquat[1:] = positions, rotations
    for body in range(model.nbody):
        mujoco.mju_quat2Mat(data.xmat[body], data.xquat[body])
        _fix(data, body, data.xipos[body], data.ximat[body], model.body_ipos[body], model.body_iquat[body])
    for geom, body in enumerate(model.geom_bodyid):
        _fix(data, body, data.geom_xpos[geom], data.geom_xmat[geom], model.geom_pos[geom], model.geom_quat[geom])
    for site, body in enumerate(model.site_bodyid):
        _fix(data, body, data.site_xpos[site], data.site_xmat[site], model.site_pos[site], model.site_quat[site])
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)


def _fix(data: Any, body: int, position: Any, matrix: Any, offset: Any, turn: Any) -> None:
    """Write position and matrix of what is fixed to a body by an offset and a turn of it."""
    import mujoco

    mujoco.mj_local2Global(data, position, matrix, offset, turn, body, 0)
