"""Small systems to be drawn, states of them made by hand, and a renderer to draw them with."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest

from trpo_brax.environments import Task
from trpo_brax.evaluation import Episodes, Recording
from trpo_brax.views.opengl import RenderingError, choose_platform

PERIOD = 0.02
POLE = 0.6

PENDULUM = f"""
<mujoco>
  <asset><texture type="skybox" builtin="flat" rgb1="1 1 1" width="8" height="8"/></asset>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1"/>
    <geom name="rail" type="capsule" fromto="-1 0 0 1 0 0" size="0.02" rgba="1 1 1 1"/>
    <body name="cart">
      <joint type="slide" axis="1 0 0" range="-1 1" limited="true"/>
      <geom type="box" size="0.1 0.1 0.05" rgba="0 0 1 1"/>
      <body name="pole">
        <joint type="hinge" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 {POLE}" size="0.04" rgba="1 0 0 1"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


def ball(limited: bool) -> str:
    """Return a system of one red ball on slides along x and z, over a plane; it stops at 1 m or goes anywhere."""
    return f"""
<mujoco>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1"/>
    <geom type="plane" size="100 100 0.1"/>
    <camera name="side" pos="0 -3 0.3" xyaxes="1 0 0 0 0 1"/>
    <body pos="0 0 0.2">
      <joint type="slide" axis="1 0 0" range="-1 1" limited="{str(limited).lower()}"/>
      <joint type="slide" axis="0 0 1" range="0 100" limited="true"/>
      <geom type="sphere" size="0.2" rgba="1 0 0 1"/>
    </body>
  </worldbody>
</mujoco>
"""


def model_of(xml: str) -> Any:
    return mujoco.MjModel.from_xml_string(xml)


def task_of(model: Any, name: str = "drawn") -> Task:
    environment: Any = SimpleNamespace(sys=SimpleNamespace(mj_model=model), dt=PERIOD)
    return Task(name, environment, (-1.0,), (1.0,))


def state(*positions: float) -> Any:
    """Return a simulator's state with these joint positions."""
    return SimpleNamespace(q=np.array(positions, float))


def ball_state(x: float, z: float = 0.2) -> Any:
    return state(x, z - 0.2)


def recording_of(states: Sequence[Any], *, terminated: bool = False, nonfinite: bool = False) -> Recording:
    """Return an episode of these states that is paid 1 a step."""
    length = len(states) - 1
    counted = Episodes(
        np.array([length], np.float32), np.array([length], np.int32), np.array([terminated]), np.array([nonfinite])
    )
    return Recording(tuple(states), np.arange(length + 1, dtype=np.float32), counted)


def renderer() -> str:
    """Return an OpenGL platform, or skip the test."""
    try:
        return choose_platform()
    except RenderingError as error:
        pytest.skip(str(error))


def reddish(picture: np.ndarray) -> np.ndarray:
    """Return where a picture is red, bool [height, width]: nothing else in these systems is, nor is the text."""
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return (red > 60) & (red > 2 * green) & (red > 2 * blue)
