"""Finding an OpenGL that draws without a display."""

from __future__ import annotations

import os
import subprocess
import sys

from trpo_brax.errors import UserError

_PROBE_SECONDS = 120
_PROBE = """
import importlib, os, sys
context = importlib.import_module(f"mujoco.{sys.argv[1]}").GLContext(64, 64)
context.make_current()
import mujoco
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 100)
os._exit(0)
"""
_LIBRARIES = "the Debian packages libegl1, libgl1 and libgl1-mesa-dri, or libosmesa6"
_LEFT_OPEN = ("", "1", "true", "on", "enable", "enabled")
"""Values of MUJOCO_GL by which MuJoCo takes its own default; on Linux that one needs a display."""


class RenderingError(UserError):
    """There is no renderer here, or no picture of this environment."""


def choose_platform() -> str:
    """Return the OpenGL platform to draw with: MUJOCO_GL's where that is set, else the first of EGL and OSMesa to work.

    Each is tried in a process of its own: one that fails may take its process with it, and no process can use two.

    Raises:
        RenderingError: none works.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    if asked in _LEFT_OPEN:
        candidates: tuple[str, ...] = ("cgl", "glfw") if sys.platform == "darwin" else ("egl", "osmesa")
        refusal = f"there is no renderer here: install {_LIBRARIES}, or name another one by MUJOCO_GL."
    else:
        candidates = ("glfw" if asked == "glx" else asked,)
        remedy = f"unset it, or set it to egl or osmesa and install {_LIBRARIES}."
        refusal = f"MuJoCo cannot draw with MUJOCO_GL={asked}: {remedy}"
    for platform in candidates:
        if _draws(platform):
            return platform
    raise RenderingError(refusal)


def _draws(platform: str) -> bool:
    """Return whether MuJoCo can make a drawing surface with this platform, as a child process found."""
    command = [sys.executable, "-P", "-c", _PROBE, platform]
    environment = {**os.environ, "MUJOCO_GL": platform}
    try:
        tried = subprocess.run(command, env=environment, capture_output=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return tried.returncode == 0
