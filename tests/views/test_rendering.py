"""Drawing: links where the joints have them, and a camera that keeps them in the picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest

from tests.drawing import PENDULUM, ball, ball_state, model_of, reddish, renderer, state
from trpo_brax.views.camera import frame, model_camera
from trpo_brax.views.opengl import RenderingError
from trpo_brax.views.rendering import drawable_model, joint_positions, pictures

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


def seen(xml: str, states: list[Any], camera: str | None = None) -> list[np.ndarray]:
    """Return the pictures of some states, by the camera that follows from them."""
    model, platform = model_of(xml), renderer()
    positions = joint_positions(model, states, "seen")
    cameras = frame(model, positions, WIDTH / HEIGHT)
    if camera is not None:
        cameras = (model_camera(model, camera),) * len(states)
    return list(pictures(model, platform, positions, cameras, width=WIDTH, height=HEIGHT))


def middle(picture: np.ndarray) -> tuple[float, float]:
    """Return row and column of the middle of what is red, as shares of the picture."""
    rows, columns = np.nonzero(reddish(picture))
    return float(rows.mean()) / HEIGHT, float(columns.mean()) / WIDTH


def test_links_are_where_the_joints_say() -> None:
    """Of the pole, 0.6 m long, the middle is 0.3 m from its foot, which stays with the cart."""
    upright, lying = seen(PENDULUM, [state(0.0, 0.0), state(0.0, np.pi / 2)])
    (row, column), (row_lying, column_lying) = middle(upright), middle(lying)
    moved = np.array([(column_lying - column) * WIDTH, (row_lying - row) * HEIGHT])
    assert moved[0] == pytest.approx(moved[1], rel=0.15) and moved[0] > 10


class TestCamera:
    @pytest.mark.parametrize("far", [3.0, 60.0])
    def test_it_follows_what_can_go_anywhere(self, far: float) -> None:
        drawn = seen(ball(limited=False), [ball_state(x) for x in np.linspace(0.0, far, 5)])
        sizes = [reddish(picture).sum() for picture in drawn]
        assert min(sizes) > 0.02 * WIDTH * HEIGHT and np.ptp(sizes) <= 0.1 * max(sizes)
        for picture in drawn:
            assert middle(picture)[1] == pytest.approx(0.5, abs=0.02)

    def test_it_stands_still_where_there_is_an_end_and_shows_both(self) -> None:
        drawn = seen(ball(limited=True), [ball_state(x) for x in (-1.0, 0.0, 1.0)])
        columns = [middle(picture)[1] for picture in drawn]
        assert columns[1] == pytest.approx(0.5, abs=0.02)
        assert columns[0] == pytest.approx(1.0 - columns[2], abs=0.02)
        assert columns[2] - columns[0] > 0.5
        for picture in drawn:
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
        flown = state(-3e6, 0.0)
        calm, before, _ = seen(xml, [state(0.0, 0.0), state(0.3, 0.2), flown])
        assert min(reddish(calm).sum(), reddish(before).sum()) >= 4
        assert middle(before)[1] > middle(calm)[1]

    def test_what_turns_in_a_plane_is_seen_from_above(self) -> None:
        """An arm that points away from the camera is as good as hidden from the side."""
        drawn = seen(FLAT_ARM, [state(0.0), state(np.pi / 2)])
        rows = np.nonzero(reddish(drawn[1]))[0]
        columns = np.nonzero(reddish(drawn[0]))[1]
        assert np.ptp(rows) > 0.5 * np.ptp(columns) > 10

    def test_the_models_own_camera_can_be_asked_for(self) -> None:
        """It stands at x = 0 and does not follow."""
        drawn = seen(ball(limited=False), [ball_state(0.0), ball_state(0.8), ball_state(30.0)], camera="side")
        assert middle(drawn[0])[1] == pytest.approx(0.5, abs=0.02)
        assert middle(drawn[1])[1] > 0.6
        assert not reddish(drawn[2]).any()
        with pytest.raises(RenderingError, match=r"no camera 'front', only side\."):
            model_camera(model_of(ball(limited=True)), "front")
        with pytest.raises(RenderingError, match=r"no camera 'front', nor any other with a name\."):
            model_camera(model_of(PENDULUM), "front")

    def test_no_part_of_the_picture_is_black_and_the_model_is_left_as_it_was(self) -> None:
        model = model_of(PENDULUM)
        before = mujoco.mj_sizeModel(model), model.vis.global_.offwidth, model.vis.headlight.ambient.tolist()
        positions = joint_positions(model, [state(0.0, 0.3)], "seen")
        cameras = frame(model, positions, 800 / 64)
        (picture,) = pictures(model, renderer(), positions, cameras, width=800, height=64)
        assert picture.shape == (64, 800, 3)
        assert np.median(picture) > 150 and (picture.max(-1) > 20).all()
        assert before == (mujoco.mj_sizeModel(model), model.vis.global_.offwidth, model.vis.headlight.ambient.tolist())


class TestStates:
    def test_what_is_not_finite_is_drawn_as_the_last_that_was(self) -> None:
        states = [ball_state(0.1), ball_state(0.2), ball_state(np.nan), ball_state(np.inf)]
        positions = joint_positions(model_of(ball(limited=True)), states, "ball")
        assert positions[:, 0].tolist() == [0.1, 0.2, 0.2, 0.2]

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
        [None, np.zeros(3), SimpleNamespace(q=None), state(0.0, 0.0, 0.0)],
        ids=["none", "array", "no q", "other"],
    )
    def test_a_state_that_does_not_say_where_the_joints_are_is_one_sentence(self, physics: Any) -> None:
        with pytest.raises(RenderingError, match=r"environment mine cannot be drawn: .* of the 2 degrees of freedom"):
            joint_positions(model_of(ball(limited=True)), [ball_state(0.0), physics], "mine")


def test_what_has_no_shape_is_one_sentence() -> None:
    body = '<body><freejoint/><inertial mass="1" pos="0 0 0" diaginertia="1 1 1"/></body>'
    model = model_of(f"<mujoco><worldbody>{body}</worldbody></mujoco>")
    with pytest.raises(RenderingError, match=r"nothing to draw: the model has no shape that moves\."):
        frame(model, np.zeros((1, model.nq)), 1.0)


def test_one_moment_is_enough() -> None:
    assert len(frame(model_of(ball(limited=False)), np.zeros((1, 2)), 1.0)) == 1
