"""Videos of evaluated episodes: which ones, what is written on them, and the file."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.errors import ConfigError, UserError
from trpo_brax.evaluation.episodes import Episodes, Recording
from trpo_brax.views.camera import frame, model_camera
from trpo_brax.views.rendering import Canvas, Motion, drawable_model, motion_of

if TYPE_CHECKING:
    from mujoco import MjModel, MjvCamera

    from trpo_brax.environments import Task

MOST_FRAMES_PER_SECOND = 30.0
HOLD_SECONDS = 1.5
"""How long the last frame stays, to be read."""
_QUALITY = "28"
"""H.264's constant rate factor: 0 loses nothing, 51 is worst."""


@dataclasses.dataclass(frozen=True)
class VideoOptions:
    """How an episode is shown."""

    width: int = 640
    """Pixels; even, as H.264's colours need it."""
    height: int = 480
    """Pixels; even."""
    frames_per_second: float | None = None
    """By default as many as show every k-th control step and are no more than 30."""
    camera: str | None = None
    """Name of one of the model's cameras; by default one that keeps what moves in the picture."""

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if not 64 <= value <= 4096 or value % 2:
                raise ConfigError(f"{name} must be an even number from 64 to 4096, not {value}.")
        if self.frames_per_second is not None and not 1.0 <= self.frames_per_second <= 240.0:
            raise ConfigError(f"fps must be from 1 to 240, not {self.frames_per_second:g}.")


def choose_episodes(returns: np.ndarray) -> dict[str, int]:
    """Return the indices of the worst, the median and the best of E episodes; of equal ones, the first.

    The median of an even number of episodes is the lower one of the two in the middle.
    """
    order = np.argsort(returns, kind="stable")
    return {"worst": int(order[0]), "median": int(order[(len(order) - 1) // 2]), "best": int(np.argmax(returns))}


def frame_rate(control_period: float, wanted: float | None = None) -> Fraction:
    """Return the frames of a second: `wanted`, or so many that every k-th control step of so many seconds is one."""
    if wanted is not None:
        return Fraction(wanted).limit_denominator(1000)
    each = max(1, int(np.ceil(1.0 / (control_period * MOST_FRAMES_PER_SECOND) - 1e-6)))
    return Fraction(1.0 / (control_period * each)).limit_denominator(1000)


def frame_steps(length: int, control_period: float, rate: Fraction) -> np.ndarray:
    """Return which of the states 0 to `length` each frame shows, int [F]: time passes as it did; the last is the end.

    Frame k shows the state nearest to k / rate seconds, so that F is the duration times the rate, and one.
    """
    frames = int(np.floor(length * control_period * float(rate) + 1e-6)) + 1
    steps = np.rint(np.arange(frames) / (float(rate) * control_period)).astype(int)
    steps = np.minimum(steps, length)
    return steps if steps[-1] == length else np.append(steps, length)


def ending(episode: Episodes) -> str:
    """Return in words how one episode ended."""
    how = "terminated" if episode.terminated[0] else "time limit"
    steps = f"{episode.lengths[0]:,} step{'' if episode.lengths[0] == 1 else 's'}"
    return f"{'not finite' if episode.nonfinite[0] else how} after {steps}"


@dataclasses.dataclass(frozen=True)
class Clip:
    """An episode cut into frames, ready to be drawn."""

    model: MjModel
    motion: Motion
    cameras: tuple[MjvCamera, ...]
    captions: tuple[str, ...]
    """Under the title, one of each moment of the motion."""
    title: str
    ending: str
    """Drawn on the last frame, which is held."""
    rate: Fraction
    """Frames per second."""
    options: VideoOptions

    @property
    def frames(self) -> int:
        """How many there are, with those of the last one held."""
        return len(self.cameras) + self._held

    @property
    def _held(self) -> int:
        return round(HOLD_SECONDS * self.rate)

    def write(self, path: Path, platform: str, progress: Callable[[int], None] = lambda done: None) -> None:
        """Draw it and write it as an MP4 that any browser plays.

        Args:
            path: where to; the file is there whole or not at all.
            platform: `choose_platform`'s.
            progress: told how many frames are done.

        Raises:
            UserError: the file cannot be written.
        """
        make_folder(path.parent)
        write_video(path, self._pictures(platform, progress), self.rate, self.options.width, self.options.height)

    def _pictures(self, platform: str, progress: Callable[[int], None]) -> Iterator[np.ndarray]:
        last = len(self.cameras) - 1
        with Canvas(self.model, platform, width=self.options.width, height=self.options.height) as canvas:
            for moment, (camera, caption) in enumerate(zip(self.cameras, self.captions, strict=True)):
                drawn = canvas.draw(self.motion.positions[moment], self.motion.rotations[moment], camera)
                picture = captioned(drawn, [self.title, caption], self.ending if moment == last else None)
                yield picture
                progress(moment + 1)
        for held in range(self._held):
            yield picture
            progress(last + 2 + held)


def cut(recording: Recording, task: Task, title: str, *, control_period: float, options: VideoOptions) -> Clip:
    """Cut an episode into frames that show it in the time that it took.

    Args:
        recording: the episode.
        task: whose.
        title: drawn above it.
        control_period: seconds of a control step.
        options: how it is shown.

    Raises:
        UserError: the environment cannot be drawn, or has not the camera asked for.
    """
    model = drawable_model(task.environment, task.name)
    rate = frame_rate(control_period, options.frames_per_second)
    steps = frame_steps(len(recording.physics) - 1, control_period, rate)
    motion = motion_of(model, [recording.physics[step] for step in steps], task.name)
    if options.camera is None:
        cameras = frame(model, motion, options.width / options.height)
    else:
        cameras = (model_camera(model, options.camera),) * len(steps)
    captions = tuple(f"time {step * control_period:.2f} s   return {recording.returns[step]:,.2f}" for step in steps)
    return Clip(model, motion, cameras, captions, title, ending(recording.episode), rate, options)


def captioned(picture: np.ndarray, lines: list[str], ending: str | None = None) -> np.ndarray:
    """Return a picture with lines of text above, and one below: white on a dark band, to be read on any ground."""
    from PIL import Image, ImageDraw, ImageFont

    height, width, _ = picture.shape
    size = max(10, round(min(height / 26, width / 34)))
    font: Any = ImageFont.load_default(size)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    row = round(1.4 * size)

    def band(top: int, texts: list[str]) -> None:
        draw.rectangle((0, top, width, top + row * len(texts) + size // 2), fill=(0, 0, 0, 150))
        for number, text in enumerate(texts):
            draw.text((size // 2, top + size // 4 + row * number), text, font=font, fill=(255, 255, 255, 255))

    band(0, lines)
    if ending is not None:
        band(height - row - size // 2, [ending])
    return np.asarray(image)


def write_video(path: Path, pictures: Iterable[np.ndarray], rate: Fraction, width: int, height: int) -> None:
    """Write pictures, uint8 [height, width, 3], as H.264 in an MP4 that begins to play before it is loaded.

    Raises:
        UserError: the file cannot be written.
    """
    import av

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Not through a link that somebody left at the temporary name.
        temporary.unlink(missing_ok=True)
        temporary.touch(exist_ok=False)
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": _QUALITY})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def make_folder(path: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made: {error.strerror}.") from error
