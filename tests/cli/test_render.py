"""trpo-brax render: three videos of a run whose environment has a model, and one sentence for what cannot be."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import av
import jax
import jax.numpy as jnp
import pytest
from flax import struct

from tests.drawing import PERIOD, ball, model_of, renderer
from tests.tiny_environments import ZERO, TinyEnvironment, unit, whole
from tests.tiny_runs import HISTORY, TINY, train_tiny
from trpo_brax.cli.render import render
from trpo_brax.config import override
from trpo_brax.environments.quiet import quiet
from trpo_brax.errors import UserError
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.run import Run

with quiet():
    from brax.envs import State

PUSHED = "tests.cli.test_render:Pushed"


@struct.dataclass
class Physics:
    """Where the ball is."""

    q: jax.Array
    left: jax.Array


class Pushed(TinyEnvironment):
    """A ball on a slide that an action pushes; it ends after 2 to 7 steps, and pays how far the ball is."""

    sys = SimpleNamespace(mj_model=model_of(ball(limited=True)))
    dt = PERIOD

    def reset(self, rng: jax.Array) -> State:
        position = unit(rng)[:1]
        return State(self._physics(position[0], whole(rng[1], 2, 7)), position, ZERO, ZERO, {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        position = state.obs + action / 8
        physics = self._physics(position[0], state.pipeline_state.left - 1)
        done = jnp.where(physics.left <= 0, 1.0, 0.0)
        return state.replace(pipeline_state=physics, obs=position, reward=position[0], done=done)

    def _physics(self, position: jax.Array, left: jax.Array) -> Physics:
        return Physics(jnp.stack([position, jnp.zeros(())]), left)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = override(TINY, environment=PUSHED, total_steps=64)
    return train_tiny(tmp_path_factory.mktemp("pushed") / "run", environment=Pushed(), config=config)


def test_the_worst_the_median_and_the_best(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Their returns and lengths are those of `evaluate`'s episodes, and each video lasts as long."""
    renderer()
    size = ["--width", "160", "--height", "96"]
    assert render([str(run.path), "--environment", PUSHED, "--episodes", "9", "--seed", "3", *size]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    episodes = Evaluator(run, episodes=9, environment=Pushed()).run(9, seed=3)
    order = sorted(episodes.returns.tolist())
    for line, which, value in zip(lines, ("worst", "median", "best"), (order[0], order[4], order[8]), strict=False):
        found = re.fullmatch(rf"{which} +return (\S+), terminated after (\d+) steps, episode (\d): (.*)", line)
        assert found is not None, line
        index, file = int(found[3]), Path(found[4])
        assert float(found[1]) == pytest.approx(value, rel=1e-3)
        assert episodes.returns[index] == value and episodes.lengths[index] == int(found[2])
        assert file == run.path / "videos" / f"{which}.mp4"
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height) == (160, 96)
            assert stream.average_rate is not None and float(stream.average_rate) == 25
            assert stream.frames == -(-int(found[2]) // 2) + 1 + round(1.5 * 25)
    assert "worst" in lines[3] and len(lines) == 4
    assert "Drawing the worst" in told.err


def test_the_options_reach_the_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renderer()
    folder = tmp_path / "new" / "folder"
    words = [str(run.path), "--environment", PUSHED, "--episodes", "4", "--output", str(folder), "--fps", "50"]
    assert render([*words, "--camera", "side", "--stochastic", "--checkpoint", "1", "--policy-seed", "0"]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["best.mp4", "median.mp4", "worst.mp4"]
    with av.open(str(folder / "best.mp4")) as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None and float(rate) == 50


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--width", "99"], "width must be an even number"),
        (["--episodes", "0"], "episodes must be at least 1"),
        (["--camera", "front"], "no camera 'front', only side"),
        (["--output", "{run}/config.json"], "config.json/worst.mp4 cannot be written: Not a directory"),
        (["--checkpoint", "7", "--output", "{run}/new"], "7"),
    ],
)
def test_what_cannot_be_is_one_sentence(words: list[str], sentence: str, run: Run) -> None:
    renderer()
    words = [word.format(run=run.path) for word in words]
    with pytest.raises(UserError, match=re.escape(sentence)) as raised:
        render([str(run.path), "--environment", PUSHED, *words])
    assert "\n" not in str(raised.value) and not (run.path / "new").exists()


def test_nothing_is_written_through_a_link_in_a_run_folder(run: Run, tmp_path: Path) -> None:
    renderer()
    videos = run.path / "videos"
    moved = videos.rename(tmp_path / "moved") if videos.is_dir() else tmp_path
    videos.symlink_to(tmp_path)
    try:
        with pytest.raises(UserError, match=r"videos is a link, and nothing is written through it: .* --output\."):
            render([str(run.path), "--environment", PUSHED])
        assert not list(tmp_path.glob("*.mp4"))
    finally:
        videos.unlink()
        if moved != tmp_path:
            moved.rename(videos)


def test_no_renderer_is_said_before_anything_slow(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(UserError, match=r"MUJOCO_GL=nonsense.*libegl1.*libosmesa6"):
        render([str(run.path), "--environment", PUSHED])


def test_an_environment_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    renderer()
    history = train_tiny(tmp_path / "run", config=override(TINY, total_steps=64))
    with pytest.raises(UserError, match=rf"environment {HISTORY} cannot be drawn: .*sys\.mj_model"):
        render([str(history.path), "--environment", HISTORY])
    assert not (history.path / "videos").exists()
