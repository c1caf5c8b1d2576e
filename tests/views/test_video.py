"""Videos: which episodes, when each frame is, and what can be seen in the file."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.drawing import PENDULUM, PERIOD, model_of, recording_of, reddish, renderer, state, task_of
from trpo_brax.errors import ConfigError, UserError
from trpo_brax.views.video import (
    HOLD_SECONDS,
    VideoOptions,
    captioned,
    choose_episodes,
    ending,
    film,
    frame_rate,
    frame_steps,
    write_video,
)

STEPS = 100


class TestChoice:
    @pytest.mark.parametrize(
        ("returns", "worst", "median", "best"),
        [
            ([3.0, 1.0, 2.0], 1, 2, 0),
            ([3.0, 1.0, 2.0, 4.0], 1, 2, 3),
            ([7.0], 0, 0, 0),
            ([5.0, 5.0, 5.0, 5.0, 5.0], 0, 2, 0),
            ([9.0, -1.0, 9.0, -1.0, 4.0, 4.0], 1, 4, 0),
        ],
    )
    def test_the_first_of_equals_and_the_lower_median(
        self, returns: list[float], worst: int, median: int, best: int
    ) -> None:
        assert choose_episodes(np.array(returns, np.float32)) == {"worst": worst, "median": median, "best": best}

    def test_the_worst_is_shown_first(self) -> None:
        assert next(iter(choose_episodes(np.arange(3.0)))) == "worst"


class TestTiming:
    @pytest.mark.parametrize(
        ("period", "rate"),
        [
            (0.02, Fraction(25)),
            (0.05, Fraction(20)),
            (0.008, Fraction(25)),
            (float(np.float32(0.008)), Fraction(25)),
            (1 / 30, Fraction(30)),
            (0.015, Fraction(200, 9)),
            (0.5, Fraction(2)),
        ],
    )
    def test_every_kth_step_is_a_frame_and_a_second_has_at_most_30(self, period: float, rate: Fraction) -> None:
        assert frame_rate(period) == rate
        steps = frame_steps(60, period, rate)
        assert len(set(np.diff(steps[:-1]))) == 1

    def test_a_rate_that_was_asked_for(self) -> None:
        assert frame_rate(0.02, 12.5) == Fraction(25, 2)

    @pytest.mark.parametrize(
        ("length", "period", "rate", "steps"),
        [
            (6, 0.02, 25, [0, 2, 4, 6]),
            (5, 0.02, 25, [0, 2, 4, 5]),
            (10, 0.03, 10, [0, 3, 7, 10]),
            (2, 0.5, 4, [0, 0, 1, 2, 2]),
            (0, 0.02, 25, [0]),
        ],
    )
    def test_by_hand(self, length: int, period: float, rate: int, steps: list[int]) -> None:
        chosen = frame_steps(length, period, Fraction(rate))
        if period == 0.5:  # halfway between two states either is the nearest
            chosen[[1, 3]] = 0, 2
        assert chosen.tolist() == steps

    @pytest.mark.parametrize("rate", [Fraction(25), Fraction(7), Fraction(200, 9), Fraction(100)])
    @pytest.mark.parametrize("length", [1, 99, 1000])
    def test_time_passes_as_it_did_and_the_end_is_there(self, length: int, rate: Fraction) -> None:
        steps = frame_steps(length, 0.02, rate)
        duration = length * 0.02 * float(rate)
        assert len(steps) == int(np.ceil(duration - 1e-6)) + 1
        assert steps[0] == 0 and steps[-1] == length
        shown = steps[:-1] * 0.02
        assert np.abs(shown - np.arange(len(shown)) / float(rate)).max() <= 0.01 + 1e-9


class TestWords:
    def test_how_it_ended(self) -> None:
        two = [state(0.0, 0.0)] * 2
        assert ending(recording_of(two, terminated=True).episode) == "terminated after 1 step"
        assert ending(recording_of(two * 1000, nonfinite=True).episode) == "not finite after 1,999 steps"
        assert ending(recording_of(two * 2).episode) == "time limit after 3 steps"

    @pytest.mark.parametrize("shade", [0, 128, 255])
    @pytest.mark.parametrize(("width", "height"), [(640, 480), (320, 240), (480, 640)])
    def test_text_is_white_on_dark_on_any_ground(self, shade: int, width: int, height: int) -> None:
        """Bands are dark, at most a fifth of the picture together, and the widest caption ends before the picture."""
        ground = np.full((height, width, 3), shade, np.uint8)
        title, caption = "median of 10,000   seed 4294967295, episode 9999", "time 1000.00 s   return -100,000.00"
        blank = captioned(ground, ["", ""], "").astype(int)
        picture = captioned(ground, [title, caption], "time limit after 1,000 steps").astype(int)
        banded = np.abs(blank - ground).max((1, 2)) > 0 if shade else np.arange(height) < 0
        assert blank[banded].max(initial=0) <= 110
        assert banded.mean() < 0.25 and not banded[height // 4 : height * 3 // 4].any()
        written = np.abs(picture - blank).max(-1) > 0
        assert written.mean() > 0.01
        assert (picture - blank)[written].max() >= 145
        assert not written[:, -2:].any() and not written[height // 5 : height * 4 // 5].any()
        foot = slice(height * 9 // 10, None)
        assert written[foot].any()
        assert np.array_equal(captioned(ground, [title, caption])[foot], ground[foot])


@dataclasses.dataclass(frozen=True)
class Played:
    """A file as a player sees it."""

    frames: list[np.ndarray]
    rate: Any
    seconds: float
    codec: str
    pixels: str


def played(path: Path) -> Played:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        seconds = float(stream.duration * stream.time_base)  # type: ignore[operator]
        context = stream.codec_context
        return Played(frames, stream.average_rate, seconds, context.name, str(context.pix_fmt))


def carts_and_angles() -> Iterator[tuple[float, float]]:
    """Yield two seconds of a cart that goes from -0.5 m to 0.5 m, while its pole swings from side to side once."""
    for step in range(STEPS + 1):
        yield step / STEPS - 0.5, 0.6 * np.sin(2 * np.pi * step / STEPS)


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "worst.mp4"
    recording = recording_of([state(*one) for one in carts_and_angles()], terminated=True)
    done: list[int] = []

    @contextlib.contextmanager
    def counting(frames: int) -> Iterator[Callable[[int], None]]:
        yield done.append
        assert done == list(range(1, frames + 1))

    film(
        recording,
        task_of(model_of(PENDULUM)),
        "worst of 2",
        path,
        control_period=PERIOD,
        options=VideoOptions(),
        platform=renderer(),
        counting=counting,
    )
    return path


@pytest.fixture(scope="module")
def shown(pendulum: Path) -> Played:
    return played(pendulum)


class TestTheFile:
    def test_size_rate_duration_and_codec(self, shown: Played) -> None:
        """Two seconds at 25 frames a second, with both ends, and then the last one held."""
        assert shown.frames[0].shape == (480, 640, 3)
        assert (shown.rate, shown.codec, shown.pixels) == (25, "h264", "yuv420p")
        assert len(shown.frames) == 51 + round(25 * HOLD_SECONDS)
        assert shown.seconds == pytest.approx(len(shown.frames) / 25)

    def test_it_is_small_and_begins_before_it_is_loaded(self, pendulum: Path) -> None:
        content = pendulum.read_bytes()
        assert content.index(b"moov") < content.index(b"mdat")
        assert len(content) < 100_000
        assert [file.name for file in pendulum.parent.iterdir()] == ["worst.mp4"]

    def test_the_pole_is_where_it_was(self, shown: Played) -> None:
        """The pole's middle is at cart + 0.3 sin(angle); a fixed camera keeps the scale.

        Seen along y, columns are linear in x at one depth: two frames give the scale, the others have to fit it.
        """
        wanted = [cart + 0.3 * np.sin(angle) for cart, angle in carts_and_angles()][::2]
        seen = [float(np.nonzero(reddish(frame))[1].mean()) for frame in shown.frames[: len(wanted)]]
        scale, offset = np.polyfit(wanted, seen, 1)
        assert scale > 100
        # The cart hides the pole's foot, so that what is seen of it lies up to a tenth of its lean further out.
        assert np.abs(np.polyval([scale, offset], wanted) - seen).max() < 0.05 * scale

    def test_the_pole_leans_as_it_did(self, shown: Played) -> None:
        angles = [angle for _, angle in carts_and_angles()][::2]
        for frame, angle in zip(shown.frames, angles, strict=False):
            rows, columns = np.nonzero(reddish(frame))
            lean = np.arctan(-np.polyfit(rows, columns, 1)[0])
            assert lean == pytest.approx(angle, abs=0.06)

    def test_time_and_return_run_and_the_end_is_written_and_held(self, shown: Played) -> None:
        band, foot = slice(0, 60), slice(450, 480)
        assert np.abs(shown.frames[0][band].astype(int) - shown.frames[50][band]).max() > 60
        assert shown.frames[50][foot].max() > 200 and shown.frames[49][foot].max() < 230
        assert np.median(shown.frames[50][foot]) < np.median(shown.frames[49][foot]) - 40
        assert np.abs(shown.frames[50].astype(int) - shown.frames[-1]).mean() < 2

    def test_what_fails_halfway_leaves_nothing(self, tmp_path: Path) -> None:
        def pictures() -> Iterator[np.ndarray]:
            yield np.zeros((64, 64, 3), np.uint8)
            raise KeyboardInterrupt

        (tmp_path / "worst.mp4").write_text("the one before")
        with pytest.raises(KeyboardInterrupt):
            write_video(tmp_path / "worst.mp4", pictures(), Fraction(25), 64, 64)
        assert [file.name for file in tmp_path.iterdir()] == ["worst.mp4"]
        assert (tmp_path / "worst.mp4").read_text() == "the one before"

    def test_a_link_at_the_temporary_name_is_not_written_through(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("mine")
        (tmp_path / "worst.tmp").symlink_to(tmp_path / "mine")
        write_video(tmp_path / "worst.mp4", [np.zeros((64, 64, 3), np.uint8)], Fraction(25), 64, 64)
        assert (tmp_path / "mine").read_text() == "mine"
        assert len(played(tmp_path / "worst.mp4").frames) == 1

    def test_where_no_file_can_be_is_one_sentence(self, tmp_path: Path) -> None:
        picture = np.zeros((64, 64, 3), np.uint8)
        with pytest.raises(UserError, match=r"worst\.mp4 cannot be written: No such file or directory\."):
            write_video(tmp_path / "nowhere" / "worst.mp4", [picture], Fraction(25), 64, 64)
        (tmp_path / "folder.mp4").mkdir()
        with pytest.raises(UserError, match=r"folder\.mp4 cannot be written: Is a directory\."):
            write_video(tmp_path / "folder.mp4", [picture], Fraction(25), 64, 64)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 641}, "width must be an even number from 64 to 4096, not 641"),
        ({"height": 0}, "height must be an even number from 64 to 4096, not 0"),
        ({"fps": 0.0}, "fps must be from 1 to 240, not 0"),
        ({"fps": float("nan")}, "fps must be from 1 to 240, not nan"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        VideoOptions(**options)
