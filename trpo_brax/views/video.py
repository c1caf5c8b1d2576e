"""Videos of evaluated episodes: which ones, what is written on them, and the file."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.errors import ConfigError
from trpo_brax.runs.files import write_bytes, written
from trpo_brax.views.camera import frame, model_camera
from trpo_brax.views.rendering import drawable_model, joint_positions, pictures

if TYPE_CHECKING:
    from trpo_brax.environments import Task
    from trpo_brax.evaluation import Episodes, Recording

MOST_FRAMES_PER_SECOND = 30.0
HOLD_SECONDS = 1.5
"""How long the last frame stays, to be read."""
_QUALITY = "28"
"""H.264's constant rate factor: 0 loses nothing, 51 is worst."""


@dataclasses.dataclass(frozen=True)
class VideoOptions:
    """How an episode is shown."""

    width: int = 640
    """Pixels, an even number."""
    height: int = 480
    """Pixels, an even number."""
    fps: float | None = None
    """Frames per second; by default as many as show every k-th control step and are no more than 30. The time shown is
    that of the physics either way."""
    camera: str | None = None
    """Name of one of the model's cameras; by default one that keeps what moves in the picture."""

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if not 64 <= value <= 4096 or value % 2:  # H.264's colours are those of two by two pixels
                raise ConfigError(f"{name} must be an even number from 64 to 4096, not {value}.")
        if self.fps is not None and not 1.0 <= self.fps <= 240.0:
            raise ConfigError(f"fps must be from 1 to 240, not {self.fps:g}.")


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


def film(
    recording: Recording,
    task: Task,
    title: str,
    path: Path,
    *,
    control_period: float,
    options: VideoOptions,
    platform: str,
    counting: Callable[[int], AbstractContextManager[Callable[[int], None]]] = lambda frames: nullcontext(
        lambda done: None
    ),
) -> None:
    """Write an episode, in the time that it took, as an MP4 that any browser plays.

    Args:
        recording: the episode.
        task: whose.
        title: drawn above it.
        path: where to; the file is there whole or not at all.
        control_period: seconds of a control step.
        options: how it is shown.
        platform: `choose_platform`'s.
        counting: a block in which so many frames are counted.

    Raises:
        UserError: the environment cannot be drawn, or has not the camera asked for, or the file cannot be written.
    """
    model = drawable_model(task.environment, task.name)
    rate = frame_rate(control_period, options.fps)
    steps = frame_steps(len(recording.physics) - 1, control_period, rate)
    positions = joint_positions(model, [recording.physics[step] for step in steps], task.name)
    if options.camera is None:
        cameras = frame(model, positions, options.width / options.height)
    else:
        cameras = (model_camera(model, options.camera),) * len(steps)
    held = round(HOLD_SECONDS * rate)

    def frames(progress: Callable[[int], None]) -> Iterator[np.ndarray]:
        drawn = pictures(model, platform, positions, cameras, width=options.width, height=options.height)
        for done, (picture, step) in enumerate(zip(drawn, steps, strict=True), 1):
            caption = f"time {step * control_period:.2f} s   return {recording.returns[step]:,.2f}"
            shown = captioned(picture, [title, caption], ending(recording.episode) if done == len(steps) else None)
            yield shown
            progress(done)
        for done in range(len(steps) + 1, len(steps) + held + 1):
            yield shown
            progress(done)

    with counting(len(steps) + held) as progress:
        write_video(path, frames(progress), rate, options.width, options.height)


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


def write_video(path: Path, frames: Iterable[np.ndarray], rate: Fraction, width: int, height: int) -> None:
    """Write frames, uint8 [height, width, 3], as H.264 in an MP4 that begins to play before it is loaded.

    Raises:
        UserError: the file cannot be written.
    """
    import av

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": _QUALITY})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for picture in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        with written(path):
            write_bytes(path, file.read_bytes())
