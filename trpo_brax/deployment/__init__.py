"""Exported policies, and their verification against the run they came from."""

from trpo_brax.deployment.artifact import Artifact
from trpo_brax.deployment.description import ArtifactError, Description
from trpo_brax.deployment.exporting import export
from trpo_brax.deployment.findings import Verification
from trpo_brax.deployment.verification import verify

__all__ = ["Artifact", "ArtifactError", "Description", "Verification", "export", "verify"]
