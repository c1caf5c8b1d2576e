"""trpo-brax render."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial

from trpo_brax.cli.command import Answer, command
from trpo_brax.cli.opening import EpisodeArguments
from trpo_brax.errors import UserError
from trpo_brax.host.console import Console
from trpo_brax.host.paths import user_path
from trpo_brax.views.video import VideoOptions, choose_episodes, ending, film


@dataclass(frozen=True)
class RenderArguments(EpisodeArguments):
    """Make videos of the worst, the median and the best of many episodes of a trained policy."""

    episodes: int = 128
    """How many to choose the three from."""
    output: str | None = None
    """Folder to write worst.mp4, median.mp4 and best.mp4 to; by default videos in the run folder."""
    video: VideoOptions = field(default_factory=VideoOptions)


@command(RenderArguments)
def render(arguments: RenderArguments) -> Answer:
    """Run `trpo-brax render`."""
    console = Console(sys.stderr)
    from trpo_brax.evaluation import Watcher
    from trpo_brax.runs.evaluator import check_episodes
    from trpo_brax.runs.files import check_writable, written
    from trpo_brax.views.camera import model_camera
    from trpo_brax.views.opengl import choose_platform
    from trpo_brax.views.rendering import drawable_model

    # What cannot work is said before anything slow is begun; MuJoCo itself cannot be imported with some MUJOCO_GL.
    check_episodes(arguments.episodes, arguments.seed)
    drawing = choose_platform()
    run, task = arguments.open(arguments.episodes, console)
    model = drawable_model(task.environment, task.name)
    if arguments.video.camera is not None:
        model_camera(model, arguments.video.camera)
    folder = run.path / "videos" if arguments.output is None else user_path(arguments.output)
    if arguments.output is None and folder.is_symlink():
        raise UserError(f"{folder} is a link, and nothing is written through it: name a folder by --output.")
    for which in ("worst", "median", "best"):
        check_writable(folder / f"{which}.mp4", makes_folders=True)
    evaluator = arguments.evaluator(run, task)
    with console.counting("Evaluating", arguments.episodes) as progress:
        episodes = evaluator.run(arguments.episodes, seed=arguments.seed, watcher=Watcher(progress=progress))
    chosen = choose_episodes(episodes.returns)
    with console.stage("Recording the worst, the median and the best"):
        recordings = evaluator.record(arguments.episodes, sorted(set(chosen.values())), seed=arguments.seed)
    with written(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)
    period = float(task.environment.dt) * run.config.rollout.action_repeat
    lines = []
    for which, index in chosen.items():
        recording, file = recordings[index], folder / f"{which}.mp4"
        title = f"{which} of {arguments.episodes:,}   seed {arguments.seed}, episode {index}"
        film(
            recording,
            task,
            title,
            file,
            control_period=period,
            options=arguments.video,
            platform=drawing,
            counting=partial(console.counting, f"Drawing the {which}", unit="frames"),
        )
        reached = f"return {recording.episode.returns[0]:,.4g}, {ending(recording.episode)}"
        lines.append(f"{which:8}{reached}, episode {index}: {file}")
    return Answer([*lines, "The worst one is the one to watch: an average does not show it."])
