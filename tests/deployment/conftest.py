"""A tiny run whose policy meets its action bounds, and its exports, made once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.references import mean_of_clipped
from tests.tiny_environments import History
from tests.tiny_runs import TINY, train_tiny
from trpo_brax.config import override
from trpo_brax.deployment import Artifact, export
from trpo_brax.deployment.artifact import sha256
from trpo_brax.policy import Policy
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.run import Run

_TRAINED: list[Run] = []
_EXPORTED: list[Artifact] = []
_EVALUATORS: dict[tuple[str, int, bool], Evaluator] = {}

CONFIG = override(TINY, policy_output_scale=3.0, action_low=-0.25, action_high=0.5, action_repeat=2)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run; tests that touch it copy it."""
    return trained(tmp_path_factory)


@pytest.fixture(scope="session")
def policy(run: Run) -> Policy:
    return run.policy()


@pytest.fixture(scope="session")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return the run exported as ONNX; tests that touch it copy it."""
    return exported(tmp_path_factory)


@pytest.fixture(scope="session")
def stablehlo(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Return the run exported as StableHLO."""
    return export(run, tmp_path_factory.mktemp("stablehlo") / "out", format="stablehlo", environment=History())


@pytest.fixture
def changed(onnx: Artifact, tmp_path: Path) -> Callable[..., Artifact]:
    """Return what writes a copy of the ONNX export with another model, its SHA-256 corrected, or other fields."""

    def change(model: bytes | None = None, **fields: Any) -> Artifact:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(onnx.folder, folder)
        data = json.loads((folder / "policy.json").read_text())
        if model is not None:
            (folder / "policy.onnx").write_bytes(model)
            data["artifact_sha256"] = sha256(model)
        (folder / "policy.json").write_text(json.dumps(data | fields))
        return Artifact.load(folder)

    return change


def trained(factory: pytest.TempPathFactory) -> Run:
    """Return the run, trained once in a process whichever folder of tests asks for it."""
    if not _TRAINED:
        _TRAINED.append(train_tiny(factory.mktemp("deployment") / "run", config=CONFIG))
    return _TRAINED[0]


def exported(factory: pytest.TempPathFactory) -> Artifact:
    """Return the run as ONNX, exported once in a process."""
    if not _EXPORTED:
        _EXPORTED.append(export(trained(factory), factory.mktemp("onnx") / "out", environment=History()))
    return _EXPORTED[0]


def compiled_once(run: Run, *, episodes: int, checkpoint: str | int = "latest", **options: Any) -> Evaluator:
    """Return an evaluator, the same one for every copy of a run's checkpoint: compiling takes most of its time."""
    key = run.checkpoints.hash(run.checkpoints.resolve(checkpoint)), episodes, options.get("environment") is None
    if key not in _EVALUATORS:
        _EVALUATORS[key] = Evaluator(run, episodes=episodes, checkpoint=checkpoint, **options)
    return _EVALUATORS[key]


def by_hand(policy: Policy, observations: np.ndarray) -> np.ndarray:
    """Return a policy's actions in float64 NumPy, layer by layer, for tanh networks of any depth."""
    statistics = policy.statistics
    mean, squares, count = (
        np.asarray(part, np.float64) for part in (statistics.mean, statistics.squares, statistics.count)
    )
    clip = policy.specification.network.observation_clip
    with np.errstate(over="ignore"):
        hidden = np.clip(
            (observations.astype(np.float64) - mean) / np.sqrt(np.maximum(squares / count, 1e-8)), -clip, clip
        )
    parameters = jax.tree.map(np.float64, policy.parameters["params"])
    layers = parameters["MultilayerPerceptron_0"]
    for index in range(len(policy.specification.network.policy_hidden_sizes)):
        dense = layers[f"Dense_{index}"]
        hidden = np.tanh(hidden @ dense["kernel"] + dense["bias"])
    mean = np.tanh(hidden @ layers["output"]["kernel"] + layers["output"]["bias"])
    raw = mean_of_clipped(mean, np.exp(parameters["log_std"]))
    low, high = (np.asarray(bound) for bound in (policy.specification.bounds.low, policy.specification.bounds.high))
    return np.clip((low + high) / 2 + (high - low) / 2 * raw, low, high)


def with_specification(policy: Policy, **changes: Any) -> Policy:
    """Return the policy with another specification."""
    return dataclasses.replace(policy, specification=dataclasses.replace(policy.specification, **changes))
