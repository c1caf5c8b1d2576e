"""Runs of four short iterations on a tiny environment, and what tests of run folders look at."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any, get_args, get_origin

import jax
import numpy as np

from tests.tiny_environments import History, PointMass, TinyEnvironment
from tests.tiny_programs import assert_bit_identical, shared_program
from trpo_brax.config import Config, override
from trpo_brax.environments import own_task
from trpo_brax.host.console import Console
from trpo_brax.learner.program import Program
from trpo_brax.learner.state import TrainState
from trpo_brax.runs.checkpoints import Checkpoints
from trpo_brax.runs.run import Run
from trpo_brax.training.loop import train

HISTORY = "tests.tiny_environments:History"

TINY = override(
    Config(),
    environment=HISTORY,
    num_envs=8,
    unroll_length=8,
    episode_length=16,
    total_steps=4 * 64,
    policy_hidden_sizes=(8,),
    critic_hidden_sizes=(8,),
    critic_fraction=1.0,
    critic_damping=0.1,
    checkpoint_every=2,
    eval_every=0,
    final_evaluation_episodes=0,
)
"""Checkpoints at iterations 2 and 4; episodes of at most 7 steps, so that some end in every iteration."""


def train_tiny(folder: Path, environment: TinyEnvironment | None = None, config: Config = TINY, **options: Any) -> Run:
    """Train `config` in `folder`, quietly."""
    console = Console(io.StringIO())
    return train(config, environment=environment or History(), run_dir=folder, console=console, **options)


def without_clock(run: Run) -> list[dict[str, Any]]:
    """Return a run's records but for what the clock says."""
    clock = ("wall_time_s", "steps_per_second")
    return [{name: value for name, value in row.items() if name not in clock} for row in run.metrics()]


def last_state(run: Run) -> Any:
    """Return the whole TrainState of the last checkpoint of a run on `PointMass`."""
    program = shared_program(run.config, own_task(PointMass(), run.config.rollout), jax.devices()[:1])
    checkpoints = Checkpoints(run.path / "checkpoints", run.config)
    state = checkpoints.restore(checkpoints.resolve("latest"), program.abstract_state, program.shardings)
    return jax.device_get(state)


def killed_copy(run: Run, folder: Path) -> Path:
    """Return a copy of a finished run that looks killed after its last checkpoint."""
    shutil.copytree(run.path, folder)
    (folder / "summary.json").unlink()
    return folder


def resume_tiny(folder: Path, config: Config = TINY) -> tuple[Run, str]:
    """Resume, and return the run and what was told."""
    told = io.StringIO()
    run = train(config, environment=History(), run_dir=folder, resume=True, console=Console(told))
    return run, told.getvalue()


def assert_same_run(ours: Run, theirs: Run) -> None:
    """Compare records, but for the clock's, and the last policy bit for bit."""
    assert without_clock(ours) == without_clock(theirs)
    assert_bit_identical(ours.policy(4).parameters, theirs.policy(4).parameters)
    assert_bit_identical(ours.policy(4).statistics, theirs.policy(4).statistics)


def tiny_program(config: Config = TINY) -> Program:
    """Return the program of a tiny run over two devices."""
    return shared_program(config, own_task(History(), config.rollout), jax.devices()[:2])


def arbitrary_state(program: Program, seed: int) -> TrainState:
    """Return a state of the right shapes, dtypes and placement with arbitrary bits in it, NaN among the floats."""
    generator = np.random.default_rng(seed)

    def leaf(shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
        if shape.dtype == bool:
            values = generator.random(shape.shape) < 0.5
        else:
            data = generator.integers(0, 256, (*shape.shape, shape.dtype.itemsize), np.uint8)
            values = data.view(shape.dtype)[..., 0]
        return jax.device_put(values, sharding)

    return jax.tree.map(leaf, program.abstract_state, program.shardings)


def contents(folder: Path) -> dict[str, str]:
    """Return a folder's files by hash, its links by target and its folders, however deep."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link to {path.readlink()}"
        elif path.is_dir():
            what = "folder"
        else:
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = what
    return found


def another(name: str, value: Any, hint: Any) -> Any:
    """Return an allowed value of a configuration field that is not its present one."""
    special = {"task": "ant", "environment": "package.module:Class", "compilation_cache": "none"}
    special |= {"environment_arguments": '{"goal": 2}'}
    special |= {"eval_every": 1, "final_max_kl": 1e-3, "final_log_std": -3.0, "anneal_steps": 1000}
    special |= {"final_discount": 0.999}
    special |= {"action_low": -3.0, "action_high": 3.0, "cpu_devices": 1}
    special |= {"coordinator": "127.0.0.1:1", "num_processes": 2, "process_id": 1}
    if name in special:
        return special[name]
    while get_args(hint) and get_origin(hint) is not tuple and isinstance(value, str):
        if all(isinstance(word, str) for word in get_args(hint)):
            return next(word for word in get_args(hint) if word != value)
        hint = get_args(hint)[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (3, 5)
    return value + 1 if isinstance(value, int) else value / 2
