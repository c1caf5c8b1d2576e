"""From a run to an exported policy, checked against the policy it was made of before it is called one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.deployment.artifact import Artifact, check_output, sha256, write_artifact
from trpo_brax.deployment.description import MODELS, ArtifactError, Description, Format
from trpo_brax.deployment.findings import finite_or_none
from trpo_brax.deployment.formats import Act, actor, convert, policy_act, require
from trpo_brax.deployment.names import action_names, observation_names
from trpo_brax.deployment.observations import (
    BATCHES,
    action_range,
    clip_limits,
    compare_actions,
    corner_observations,
    visited_observations,
)
from trpo_brax.environments import Task
from trpo_brax.host.paths import user_path
from trpo_brax.policy import Policy
from trpo_brax.randomness import Stream
from trpo_brax.runs.certificates import CERTIFICATE, is_finished
from trpo_brax.runs.certificates import read_certificate as read
from trpo_brax.runs.evaluator import Evaluator, episode_key
from trpo_brax.runs.provenance import package_version
from trpo_brax.runs.run import Run

if TYPE_CHECKING:
    from brax.envs import Env

TOLERANCE = 1e-5
"""Largest action difference, in units of the action range."""
_PACKAGES = ("trpo-brax", "jax", "jaxlib", "brax", "mujoco", "flax", "numpy", "jax2onnx", "onnx", "onnxruntime")
_VISITED, _CORNERS = 32, 32
"""Golden pairs, the visited ones out of as many episodes and steps as the next line says."""
_EPISODES, _STEPS = 8, 100
_CHECKED_CORNERS = 1000


def export(
    run: Run | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    format: Format = "onnx",
    checkpoint: str | int = "latest",
    policy_seed: int | None = None,
    environment: Env | Task | None = None,
) -> Artifact:
    """Write a trained policy as one model that a computer without this package can run.

    The model maps observations float32 [batch, observation], as the environment gives them, to actions [batch, A], as
    its step takes them: normalisation, the mean action and its bounds are inside. Beside it stand its description,
    `policy.json`, and for ONNX a `verify.py` that needs NumPy and onnxruntime alone.

    Args:
        run: the run, or its folder.
        output: folder to make; by default `export` in the run folder, `export-stablehlo` for StableHLO. An earlier
            export of the same format is replaced.
        format: onnx, or stablehlo for JAX on a CPU or an NVIDIA GPU.
        checkpoint: `latest`, `best` or an iteration.
        policy_seed: whose policy, in a run of several seeds; by default the first one's.
        environment: for a run on an environment of the user's own, that environment.

    Raises:
        ArtifactError: a package is missing, the output is used otherwise, or the model is not the policy.
        UserError: the run, checkpoint or environment cannot be used.
    """
    run = Run.load(run)
    require(format)
    default = run.path / ("export" if format == "onnx" else f"export-{format}")
    folder = default if output is None else user_path(output)
    check_output(folder, format)
    seed = run.config.check_seed(policy_seed)
    evaluator = Evaluator(run, episodes=_EPISODES, checkpoint=checkpoint, policy_seeds=[seed], environment=environment)
    policy, iteration, task = evaluator.policies[seed], evaluator.iterations[seed], evaluator.task
    reference = policy_act(policy)
    visited = visited_observations(evaluator, reference, _VISITED, episodes=_EPISODES, most_steps=_STEPS)
    observations = np.concatenate([visited, corner_observations(policy, _CORNERS)])
    actions = reference(observations)
    model = convert(policy, format)
    _check(policy, actor(model, format), observations)
    fingerprint, rollout = policy.fingerprint(), run.config.rollout
    certificate, notes = read_certificate(run, fingerprint)
    description = Description(
        format=format,
        artifact=MODELS[format],
        artifact_sha256=sha256(model),
        policy_sha256=fingerprint,
        task=task.name,
        environment=run.config.environment,
        backend=str(getattr(task.environment, "backend", "unknown")) if run.config.environment else rollout.backend,
        **_components(evaluator, policy),
        action_range=tuple(action_range(policy, actions).tolist()),
        control_period_seconds=_control_period(task, rollout.action_repeat),
        action_repeat=rollout.action_repeat,
        checkpoint_iteration=iteration,
        checkpoint_sha256=run.checkpoints.hash(iteration),
        policy_seed=seed,
        versions={package: package_version(package) for package in _PACKAGES},
        golden_observations=observations,
        golden_actions=actions,
        certificate=certificate,
    )
    standalone = (Path(__file__).parent / "standalone_verify.py").read_bytes() if format == "onnx" else None
    write_artifact(folder, description, model, standalone)
    return Artifact(folder, description, notes)


def read_certificate(run: Run, fingerprint: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the run's certificate if it is this policy's, and a sentence where it has one that is not.

    Raises:
        RunFolderError: what stands in its place cannot be read.
    """
    file = run.path / CERTIFICATE
    certificate = read(run.path)
    if certificate is None:
        return None, ()
    if certificate.get("policy_sha256") != fingerprint:
        return None, (f"{file} is left out: it is the certificate of another policy.",)
    if not is_finished(certificate):
        return None, (f"{file} is left out: it is not finished.",)
    return certificate, ()


def _check(policy: Policy, act: Act, observations: np.ndarray) -> None:
    """Compare a model with its policy at several batch sizes.

    Raises:
        ArtifactError: they differ.
    """
    compared = {"golden": observations, "corner": corner_observations(policy, _CHECKED_CORNERS)}
    batches = (*BATCHES, _CHECKED_CORNERS)
    finding = compare_actions(act, policy_act(policy), policy, compared, batches).finding(TOLERANCE)
    if not finding.passed:
        raise ArtifactError(f"the exported model is not the policy: {finding.sentence}.")


def _components(evaluator: Evaluator, policy: Policy) -> dict[str, Any]:
    bounds, starts = policy.specification.bounds, evaluator.runner.starts(episode_key(0, Stream.EVALUATION))
    limits = {
        "observation": (observation_names(evaluator.task, starts), *clip_limits(policy)),
        "action": (action_names(evaluator.task), bounds.low, bounds.high),
    }
    return {
        what: tuple(
            {"name": name, "low": finite_or_none(float(low)), "high": finite_or_none(float(high))}
            for name, low, high in zip(*parts, strict=True)
        )
        for what, parts in limits.items()
    }


def _control_period(task: Task, action_repeat: int) -> float | None:
    step = getattr(task.environment, "dt", None)
    return None if step is None else round(float(step) * action_repeat, 9)
