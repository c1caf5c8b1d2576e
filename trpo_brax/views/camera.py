"""From where a system is watched: near enough to fill the picture, and along with a robot that walks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.views.opengl import RenderingError
from trpo_brax.views.rendering import walks

if TYPE_CHECKING:
    from mujoco import MjModel, MjvCamera

_SIDE, _ABOVE = -12.0, -60.0
"""Degrees that the camera looks down, at what moves upright and at what moves in a horizontal plane."""
_FLAT = 0.2
"""Height by width and depth below which something moves in a horizontal plane."""
_MARGIN = 1.15
_ROOM = 3.0
"""Times its own size that what is watched may grow or wander from where it began and stay in the picture."""
_CAPTION = 0.14
"""Share of the picture's height that is kept free for the caption above."""


def model_camera(model: MjModel, name: str) -> MjvCamera:
    """Return a camera that the model itself has.

    Raises:
        RenderingError: it has none of this name.
    """
    import mujoco

    names = [model.camera(index).name for index in range(model.ncam)]
    if name not in names:
        known = f"only {', '.join(filter(None, names))}" if any(names) else "nor any other with a name"
        raise RenderingError(f"the model has no camera {name!r}, {known}.")
    camera: Any = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, names.index(name)
    return camera


def frame(model: MjModel, positions: np.ndarray, aspect: float) -> tuple[MjvCamera, ...]:
    """Return a camera for each moment, x to the right, so that nothing that moves leaves the picture.

    A robot that can go anywhere is followed, over the ground and up and down by no more than it must; else the camera
    stands still. What moves in a horizontal plane is watched from above.

    Args:
        model: the system.
        positions: of its joints, [S, nq].
        aspect: the picture's width by its height.

    Raises:
        RenderingError: nothing is to be seen of it.
    """
    import mujoco

    follows = walks(model)
    # What is bounded and, where the camera goes along, moves: the ground has no end, which MuJoCo writes as a radius 0.
    shapes = np.flatnonzero((model.geom_rbound > 0.0) & (model.geom_bodyid >= int(follows)))
    if not shapes.size:
        raise RenderingError("there is nothing to draw: the model has no shape that moves.")
    low, high, anchors = _extents(model, positions, shapes)
    anchors *= follows
    if follows:
        slack = (high[0].max(0) - low[0].min(0))[2] / 2.0
        anchors[:, 2] -= np.clip(anchors[:, 2] - anchors[0, 2], -slack, slack)
    low, high = (low - anchors[:, None]).min(1), (high - anchors[:, None]).max(1)
    # What flies apart would leave a picture in which nothing can be seen before it did.
    room = _ROOM * max(float(model.stat.extent), float((high - low)[0].max()))
    lowest, highest = np.maximum(low.min(0), low[0] - room), np.minimum(high.max(0), high[0] + room)
    width, depth, height = highest - lowest
    flat = height < _FLAT * max(width, depth)
    elevation = _ABOVE if flat else _SIDE
    seen = _MARGIN * max((depth if flat else height) / (1.0 - _CAPTION), width / aspect)
    distance = seen / (2.0 * np.tan(np.radians(float(model.vis.global_.fovy)) / 2.0)) + (0.0 if flat else depth / 2.0)
    slope = np.radians(elevation)
    targets = anchors + (lowest + highest) / 2.0 + _CAPTION / 2.0 * seen * np.array([0, -np.sin(slope), np.cos(slope)])
    cameras: list[Any] = [mujoco.MjvCamera() for _ in targets]
    for camera, target in zip(cameras, targets, strict=True):
        camera.lookat, camera.distance = target, distance
        camera.azimuth, camera.elevation = 90.0, elevation
    return tuple(cameras)


def _extents(model: Any, positions: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lowest and highest corners of boxes around G shapes, [S, G, 3] each, and the first body's places."""
    import mujoco

    data: Any = mujoco.MjData(model)
    center, half = model.geom_aabb[shapes, :3], model.geom_aabb[shapes, 3:]
    found = []
    for moment in positions:
        data.qpos = moment
        mujoco.mj_kinematics(model, data)
        turn = data.geom_xmat[shapes].reshape(-1, 3, 3)
        middle = data.geom_xpos[shapes] + np.einsum("gij,gj->gi", turn, center)
        reach = np.einsum("gij,gj->gi", np.abs(turn), half)
        found.append((middle - reach, middle + reach, data.xpos[1].copy()))
    low, high, anchors = map(np.array, zip(*found, strict=True))
    return low, high, anchors
