"""What whoever runs an exported policy has to know of it: the content of `policy.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trpo_brax.errors import UserError

Format = Literal["onnx", "stablehlo"]
MODELS: dict[Format, str] = {"onnx": "policy.onnx", "stablehlo": "policy.stablehlo"}
INPUT, OUTPUT = "observation", "action"
_FORMAT_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtifactError(UserError):
    """A policy cannot be exported, or an exported one cannot be read."""


@dataclass(frozen=True)
class Description:
    """What whoever runs an exported policy has to know of it: the content of `policy.json`."""

    format: Format
    artifact: str
    """File name of the model."""
    artifact_sha256: str
    policy_sha256: str
    """`Policy.fingerprint` of the policy it was made of."""
    task: str
    environment: str | None
    """package.module:Class, for a policy trained on an environment of the user's own."""
    backend: str
    """Physics that it was trained in."""
    observation: tuple[Mapping[str, Any], ...]
    """Name, low and high of each component, in order; beyond low or high it is taken as if it were there."""
    action: tuple[Mapping[str, Any], ...]
    """Name, low and high of each component, in order, as the environment's step takes it; None: no bound."""
    action_range: tuple[float, ...]
    """The units of action differences: high - low, or of an unbounded component what the golden actions span."""
    control_period_seconds: float | None
    """Time from one action to the next; None where the environment does not tell its time step."""
    action_repeat: int
    """Steps of the environment that one action was held for."""
    checkpoint_iteration: int
    checkpoint_sha256: str
    """Of the checkpoint's manifest, which holds the SHA-256 of each of its files."""
    policy_seed: int
    versions: Mapping[str, str | None]
    golden_observations: np.ndarray
    """float32 [G, observation]"""
    golden_actions: np.ndarray
    """float32 [G, A], of the policy that was exported."""
    certificate: Mapping[str, Any] | None
    """The whole certificate of this very policy, where there is one."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `policy.json`."""
        return {
            "format_version": _FORMAT_VERSION,
            "how_to_run": _HOW_TO_RUN[self.format],
            "input": {"name": INPUT, "dtype": "float32", "shape": ["batch", len(self.observation)]},
            "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", len(self.action)]},
            **{name: getattr(self, name) for name in _PLAIN},
            "observation": list(self.observation),
            "action": list(self.action),
            "golden": {
                "observations": self.golden_observations.astype(float).tolist(),
                "actions": self.golden_actions.astype(float).tolist(),
            },
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Description:
        """Return what `to_dict` wrote.

        Raises:
            ArtifactError: it is something else; the sentence names `where`.
        """
        try:
            if data["format_version"] != _FORMAT_VERSION:
                raise ValueError("another format")
            description = cls(
                **{name: read(data[name]) for name, read in _PLAIN.items()},
                observation=tuple(map(dict, data["observation"])),
                action=tuple(map(dict, data["action"])),
                golden_observations=np.asarray(data["golden"]["observations"], np.float32),
                golden_actions=np.asarray(data["golden"]["actions"], np.float32),
            )
            sizes = (len(description.observation), len(description.action))
            golden = (description.golden_observations, description.golden_actions)
            if [one.shape for one in golden] != [(len(golden[0]), size) for size in sizes]:
                raise ValueError("golden pairs of other sizes")
            hashes = (description.artifact_sha256, description.policy_sha256, description.checkpoint_sha256)
            if description.artifact != MODELS[description.format] or not all(map(_SHA256.fullmatch, hashes)):
                raise ValueError("names that no export has")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(f"{where} is not the description of an exported policy.") from error
        return description


def _maybe(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "format": str,
    "artifact": str,
    "artifact_sha256": str,
    "policy_sha256": str,
    "task": str,
    "environment": _maybe(str),
    "backend": str,
    "control_period_seconds": _maybe(float),
    "action_repeat": int,
    "action_range": lambda values: tuple(map(float, values)),
    "checkpoint_iteration": int,
    "checkpoint_sha256": str,
    "policy_seed": int,
    "versions": dict,
    "certificate": _maybe(dict),
}
"""Field that stands in JSON as it is -> what reads it back."""

_HOW_TO_RUN: dict[Format, str] = {
    "onnx": (
        "import onnxruntime; session = onnxruntime.InferenceSession('policy.onnx'); "
        "action, = session.run(['action'], {'observation': observation})  # verify.py checks the golden pairs"
    ),
    "stablehlo": (
        "import jax; policy = jax.export.deserialize(bytearray(open('policy.stablehlo', 'rb').read())); "
        "action = jax.jit(policy.call)(observation)  # lowered for cpu and cuda"
    ),
}
