"""Drawing: links where the physics has them, and a camera that keeps them in the picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.drawing import PENDULUM, ball, ball_state, model_of, pendulum_state, reddish, renderer, state
from trpo_brax.views.camera import frame, model_camera
from trpo_brax.views.opengl import RenderingError
from trpo_brax.views.rendering import Canvas, Motion, drawable_model, motion_of, place

WIDTH, HEIGHT = 160, 120

FLAT_ARM = """
<mujoco>
  <worldbody>
    <body pos="0 0 0.05">
      <joint type="hinge" axis="0 0 1"/>
      <geom type="capsule" fromto="0 0 0 0.5 0 0" size="0.02" rgba="1 0 0 1"/>
    </body>
  </worldbody>
</mujoco>
"""
TREE = """
<mujoco>
  <worldbody>
    <geom type="box" size="1 1 1" pos="3 4 5" euler="10 20 30"/>
    <body pos="1 2 3" euler="0 40 0">
      <freejoint/>
      <geom type="capsule" fromto="0 0 0 0.3 0.2 0.6" size="0.1"/>
      <site name="mark" pos="0.1 0.2 0.3" euler="5 6 7"/>
      <camera name="eye" pos="0.4 0 0.2" euler="80 0 0"/>
      <light name="lamp" pos="0 0.3 0.5" dir="0 1 0"/>
      <body pos="0.5 0 0" euler="0 0 70">
        <joint type="ball"/>
        <geom type="ellipsoid" size="0.1 0.2 0.3" pos="0.3 0.1 0" euler="15 25 35" mass="2"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


def seen(xml: str, states: list[Any], camera: str | None = None) -> list[np.ndarray]:
    """Return the pictures of some states, by the camera that follows from them."""
    model, platform = model_of(xml), renderer()
    motion = motion_of(model, states, "seen")
    cameras = frame(model, motion, WIDTH / HEIGHT)
    if camera is not None:
        cameras = (model_camera(model, camera),) * len(states)
    with Canvas(model, platform, width=WIDTH, height=HEIGHT) as canvas:
        moments = zip(motion.positions, motion.rotations, cameras, strict=True)
        return [canvas.draw(*moment) for moment in moments]


def middle(picture: np.ndarray) -> tuple[float, float]:
    """Return row and column of the middle of what is red, as shares of the picture."""
    rows, columns = np.nonzero(reddish(picture))
    return float(rows.mean()) / HEIGHT, float(columns.mean()) / WIDTH


class TestPlaces:
    def test_all_that_is_fixed_to_a_body_goes_where_mujocos_own_kinematics_has_it(self) -> None:
        """Where links and joints agree both ways are one; the joint positions are arbitrary."""
        model = model_of(TREE)
        theirs, ours = mujoco.MjData(model), mujoco.MjData(model)
        theirs.qpos = [
            0.5,
            -0.3,
            2.0,
            *Rotation.random(random_state=1).as_quat(),
            *Rotation.random(random_state=2).as_quat(),
        ]
        mujoco.mj_forward(model, theirs)
        for _ in range(2):
            place(model, ours, theirs.xpos[1:], theirs.xquat[1:])
        for name in ("geom", "site", "cam"):
            for part in ("xpos", "xmat"):
                assert np.allclose(getattr(ours, f"{name}_{part}"), getattr(theirs, f"{name}_{part}"), atol=1e-12), name
        assert np.allclose(ours.light_xpos, theirs.light_xpos) and np.allclose(ours.light_xdir, theirs.light_xdir)
        assert np.allclose(ours.subtree_com, theirs.subtree_com)

    def test_links_that_have_come_apart_are_drawn_apart(self) -> None:
        """The pole's foot stands 0.5 m beside the cart that it is fastened to: a spring that gave way."""
        together, apart = pendulum_state(0.0, 0.0), state([[0, 0, 0], [0.5, 0, 0]], [[1, 0, 0, 0]] * 2)
        first, second = seen(PENDULUM, [together, apart])
        blue = [np.nonzero(picture[..., 2].astype(int) > 2 * picture[..., 0])[1].mean() for picture in (first, second)]
        assert blue[0] == pytest.approx(blue[1], abs=0.5)
        assert middle(second)[1] - middle(first)[1] > 0.1


class TestCamera:
    @pytest.mark.parametrize("far", [3.0, 60.0])
    def test_it_follows_what_can_go_anywhere(self, far: float) -> None:
        pictures = seen(ball(limited=False), [ball_state(x) for x in np.linspace(0.0, far, 5)])
        sizes = [reddish(picture).sum() for picture in pictures]
        assert min(sizes) > 0.02 * WIDTH * HEIGHT and np.ptp(sizes) <= 0.1 * max(sizes)
        for picture in pictures:
            assert middle(picture)[1] == pytest.approx(0.5, abs=0.02)

    def test_it_stands_still_where_there_is_an_end_and_shows_both(self) -> None:
        pictures = seen(ball(limited=True), [ball_state(x) for x in (-1.0, 0.0, 1.0)])
        columns = [middle(picture)[1] for picture in pictures]
        assert columns[1] == pytest.approx(0.5, abs=0.02)
        assert columns[0] == pytest.approx(1.0 - columns[2], abs=0.02)
        assert columns[2] - columns[0] > 0.5
        for picture in pictures:
            assert not reddish(picture)[:, [0, -1]].any()

    def test_a_jump_is_seen_and_a_flight_is_followed(self) -> None:
        """A hop of half its height moves it in the picture; one of a hundred times does not lose it."""
        hop = seen(ball(limited=False), [ball_state(0.0), ball_state(0.0, 0.35)])
        assert middle(hop[1])[0] < middle(hop[0])[0] - 0.1
        for picture in (*hop, *seen(ball(limited=False), [ball_state(0.0), ball_state(0.0, 40.0)])):
            rows = np.nonzero(reddish(picture))[0]
            assert rows.min() > 0.14 * HEIGHT and rows.max() < HEIGHT - 1
            assert len(rows) > 0.01 * WIDTH * HEIGHT

    @pytest.mark.parametrize("xml", [PENDULUM, PENDULUM.replace('limited="true"', 'limited="false"')])
    def test_what_flies_apart_in_the_end_can_be_seen_before(self, xml: str) -> None:
        flown = state([[0, 0, 0], [-3e6, 0, 4e6]], [[1, 0, 0, 0]] * 2)
        calm, before, _ = seen(xml, [pendulum_state(0.0, 0.0), pendulum_state(0.3, 0.2), flown])
        assert min(reddish(calm).sum(), reddish(before).sum()) >= 4
        assert middle(before)[1] > middle(calm)[1]

    def test_what_turns_in_a_plane_is_seen_from_above(self) -> None:
        """An arm that points away from the camera is as good as hidden from the side."""
        half = np.pi / 4
        away = state([[0, 0, 0.05]], [[np.cos(half), 0, 0, np.sin(half)]])
        across = state([[0, 0, 0.05]], [[1, 0, 0, 0]])
        pictures = seen(FLAT_ARM, [across, away])
        rows = np.nonzero(reddish(pictures[1]))[0]
        columns = np.nonzero(reddish(pictures[0]))[1]
        assert np.ptp(rows) > 0.5 * np.ptp(columns) > 10

    def test_the_models_own_camera_can_be_asked_for(self) -> None:
        """It stands at x = 0 and does not follow."""
        pictures = seen(ball(limited=False), [ball_state(0.0), ball_state(0.8), ball_state(30.0)], camera="side")
        assert middle(pictures[0])[1] == pytest.approx(0.5, abs=0.02)
        assert middle(pictures[1])[1] > 0.6
        assert not reddish(pictures[2]).any()
        with pytest.raises(RenderingError, match=r"no camera 'front', only side\."):
            model_camera(model_of(ball(limited=True)), "front")
        with pytest.raises(RenderingError, match=r"no camera 'front', nor any other with a name\."):
            model_camera(model_of(PENDULUM), "front")

    def test_no_part_of_the_picture_is_black_and_the_model_is_left_as_it_was(self) -> None:
        model = model_of(PENDULUM)
        before = mujoco.mj_sizeModel(model), model.vis.global_.offwidth, model.light_bodyid.tolist()
        motion = motion_of(model, [pendulum_state(0.0, 0.3)], "seen")
        with Canvas(model, renderer(), width=800, height=64) as canvas:
            picture = canvas.draw(motion.positions[0], motion.rotations[0], frame(model, motion, 800 / 64)[0])
        assert picture.shape == (64, 800, 3)
        assert np.median(picture) > 150 and (picture.max(-1) > 20).all()
        assert before == (mujoco.mj_sizeModel(model), model.vis.global_.offwidth, model.light_bodyid.tolist())


class TestStates:
    def test_what_is_not_finite_is_drawn_as_the_last_that_was(self) -> None:
        states = [ball_state(0.1), ball_state(0.2), ball_state(np.nan), ball_state(np.inf)]
        motion = motion_of(model_of(ball(limited=True)), states, "ball")
        assert motion.positions[:, 0, 0].tolist() == [0.1, 0.2, 0.2, 0.2]

    def test_rotations_are_of_length_one(self) -> None:
        """Brax's may start at another length: its ant's do."""
        long = state([[0, 0, 0.2]], [[2.0, 0, 0, 0]])
        motion = motion_of(model_of(ball(limited=True)), [long], "ball")
        assert motion.rotations.tolist() == [[[1.0, 0.0, 0.0, 0.0]]]

    @pytest.mark.parametrize(
        "environment",
        [
            SimpleNamespace(),
            SimpleNamespace(sys=SimpleNamespace(), dt=0.1),
            SimpleNamespace(sys=SimpleNamespace(mj_model=None), dt=0.1),
            SimpleNamespace(sys=SimpleNamespace(mj_model=object())),
        ],
    )
    def test_an_environment_without_a_model_is_one_sentence(self, environment: Any) -> None:
        with pytest.raises(RenderingError, match=r"environment mine cannot be drawn: .*sys\.mj_model.* dt\.$"):
            drawable_model(environment, "mine")

    @pytest.mark.parametrize(
        "physics",
        [None, np.zeros(3), SimpleNamespace(x=None), pendulum_state(0.0, 0.0)],
        ids=["none", "array", "no x", "other"],
    )
    def test_a_state_that_does_not_say_where_the_bodies_are_is_one_sentence(self, physics: Any) -> None:
        with pytest.raises(RenderingError, match=r"environment mine cannot be drawn: .* each of the 1 bodies"):
            motion_of(model_of(ball(limited=True)), [ball_state(0.0), physics], "mine")


def test_what_has_no_shape_is_one_sentence() -> None:
    body = '<body><freejoint/><inertial mass="1" pos="0 0 0" diaginertia="1 1 1"/></body>'
    model = model_of(f"<mujoco><worldbody>{body}</worldbody></mujoco>")
    with pytest.raises(RenderingError, match=r"nothing to draw: the model has no shape that moves\."):
        frame(model, motion_of(model, [ball_state(0.0)], "point"), 1.0)


def test_one_moment_is_enough() -> None:
    motion = Motion(np.zeros((1, 1, 3)), np.array([[[1.0, 0.0, 0.0, 0.0]]]))
    assert len(frame(model_of(ball(limited=False)), motion, 1.0)) == 1
