"""What a certificate promises, asked of the episodes of the exported policy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trpo_brax.certification.certificate import STATEMENTS, Declaration, ReturnRange, certify_episodes
from trpo_brax.deployment.description import ArtifactError
from trpo_brax.deployment.findings import Finding
from trpo_brax.errors import ConfigError
from trpo_brax.evaluation import Episodes, Failure
from trpo_brax.runs.certificates import is_finished

_ALWAYS = " or non-finite"
"""What a failure says of itself at the end, and need not be told."""


@dataclass(frozen=True)
class Certified:
    """The bounds of a certificate, and what was declared of the episodes they came from."""

    declaration: Declaration
    seed: int
    bounds: Mapping[str, float]
    """Name -> bound, without those that the certificate could not give."""

    @classmethod
    def read(cls, certificate: Mapping[str, Any] | None) -> Certified | None:
        """Return what a certificate says, None where there is none, or one that is declared and not yet finished.

        Raises:
            ArtifactError: it is none.
        """
        if certificate is None or not is_finished(certificate):
            return None
        try:
            declared = certificate["declared"]
            returns = ReturnRange(
                float(declared["return_floor"]),
                declared["return_floor_source"],
                float(declared["return_cap"]),
                declared["return_cap_source"],
            )
            read = cls(
                Declaration(
                    int(declared["episodes"]),
                    float(declared["confidence"]),
                    float(declared["alpha"]),
                    Failure(str(declared["failure"]).removesuffix(_ALWAYS)),
                    returns,
                ),
                int(declared["seed"]),
                {name: float(certificate[name]) for name in STATEMENTS if certificate[name] is not None},
            )
            shares = (read.declaration.confidence, read.declaration.alpha)
            ordered = -math.inf < returns.floor <= returns.cap < math.inf
            if read.declaration.episodes < 1 or not 0 <= read.seed < 2**32 or not ordered:
                raise ValueError("episodes that nobody can run")
            if not all(0 < share < 1 for share in shares):
                raise ValueError("shares that are none")
        except (KeyError, TypeError, ValueError, OverflowError, ConfigError) as error:
            raise ArtifactError("the certificate of this policy lacks what a verification needs of it.") from error
        return read

    def checks(self, episodes: Episodes) -> tuple[Finding, ...]:
        """Return each bound beside what these episodes come to, by the certificate's own definitions."""
        declaration = dataclasses.replace(self.declaration, episodes=len(episodes.returns))
        measured = {statement.name: statement.observed for statement in certify_episodes(episodes, declaration)}
        return tuple(_check(name, bound, measured[name]) for name, bound in self.bounds.items())


def _check(name: str, bound: float, measured: float) -> Finding:
    """Return one bound of a certificate, held against the same quantity of the exported policy's episodes."""
    is_upper = name.endswith("_upper")
    return Finding(
        name,
        measured <= bound if is_upper else measured >= bound,
        f"certified at {'most' if is_upper else 'least'} {bound:.6g}, and the exported policy's episodes have "
        f"{measured:.6g}",
        {"certified": bound, "measured": measured},
    )
