"""Finding a renderer: MUJOCO_GL wins, then EGL, then OSMesa, and a sentence where there is none."""

from __future__ import annotations

import sys

import pytest

from trpo_brax.views import opengl
from trpo_brax.views.opengl import RenderingError, choose_platform


@pytest.fixture
def working(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the platforms that are said to work on this Linux machine; none at first."""
    found: set[str] = set()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(opengl, "_draws", lambda platform: platform in found)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    return found


@pytest.mark.parametrize(("there", "chosen"), [({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa")])
@pytest.mark.parametrize("named", ["", "on"])
def test_what_works_is_chosen(
    there: set[str], chosen: str, named: str, working: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    working |= there
    monkeypatch.setenv("MUJOCO_GL", named)
    assert choose_platform() == chosen


@pytest.mark.parametrize(
    ("named", "chosen"), [("osmesa", "osmesa"), (" EGL", "egl"), ("glfw", "glfw"), ("glx", "glfw")]
)
def test_the_users_choice_wins(named: str, chosen: str, working: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    working |= {"egl", "osmesa", "glfw"}
    monkeypatch.setenv("MUJOCO_GL", named)
    assert choose_platform() == chosen


def test_no_renderer_is_one_sentence_that_says_what_to_install(working: set[str]) -> None:
    with pytest.raises(RenderingError) as raised:
        choose_platform()
    said = str(raised.value)
    for word in ("libegl1", "libgl1", "libgl1-mesa-dri", "libosmesa6", "MUJOCO_GL"):
        assert word in said
    assert said.endswith(".") and ". " not in said and "\n" not in said


def test_another_platform_is_not_taken_instead_of_the_users(working: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    working |= {"egl"}
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(RenderingError, match=r"MUJOCO_GL=osmesa: unset it, or .* libosmesa6"):
        choose_platform()


def test_what_mujoco_refuses_to_be_imported_with_is_the_same_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """In earnest: a child process is started."""
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(RenderingError, match="MuJoCo cannot draw with MUJOCO_GL=nonsense"):
        choose_platform()
