"""Is the exported policy still the policy, observation by observation and episode by episode?"""

from __future__ import annotations

import math
import os
from decimal import ROUND_CEILING, Context
from typing import TYPE_CHECKING

import numpy as np

from trpo_brax.certification.settings import Listener
from trpo_brax.deployment.artifact import Artifact, sha256
from trpo_brax.deployment.comparison import (
    Interval,
    cvar_difference,
    episodes_for_failure_margin,
    failure_rate_difference,
    least_failure_margin,
    mean_difference,
)
from trpo_brax.deployment.description import ArtifactError
from trpo_brax.deployment.exporting import TOLERANCE, read_certificate
from trpo_brax.deployment.findings import ClosedLoop, Finding, Verification
from trpo_brax.deployment.formats import Act, actor, policy_act
from trpo_brax.deployment.observations import compare_actions, corner_observations, visited_observations
from trpo_brax.deployment.statements import Certified
from trpo_brax.environments import Task
from trpo_brax.errors import ConfigError
from trpo_brax.evaluation import DEFAULT_FAILURE, Episodes, Failure, Watcher
from trpo_brax.randomness import Stream
from trpo_brax.runs.evaluator import MOST_EPISODES, Evaluator, check_episodes, episode_key
from trpo_brax.runs.run import Run

if TYPE_CHECKING:
    from brax.envs import Env

CONFIDENCE = 0.95
"""Two-sided, of the intervals of differences."""
_EPISODES = 1000
_VISITING_EPISODES = 128
_ALPHA = 0.05


def verify(
    artifact: Artifact | str | os.PathLike[str],
    run: Run | str | os.PathLike[str],
    *,
    episodes: int | None = None,
    margin: float = 0.05,
    failure_margin: float = 0.01,
    tolerance: float = TOLERANCE,
    checkpoint: str | int | None = None,
    environment: Env | Task | None = None,
    observations: int = 100_000,
    listener: Listener | None = None,
) -> Verification:
    """Hold an exported policy against the run that it came from.

    Open loop, its actions are compared with those of the run's own policy over observations that this policy meets and
    over corners. Closed loop, it acts in the environment itself, and its episodes are compared with those of the run's
    policy on the same seeds. Where the policy has a certificate, the episodes are the certificate's, and where all of
    them are run each of its statements has to hold of them. Of fewer, a statement's figure is too uncertain to be held
    against a bound that comes of them all: it is then noted that the statements were not checked.

    Args:
        artifact: the exported policy, or its folder.
        run: the run it was exported from, or its folder.
        episodes: how many in closed loop; by default the certificate's, else 1,000. Never more than the certificate's.
        margin: how far mean return and CVaR may be off, as a share of the reference's absolute mean return.
        failure_margin: how far the failure rate may be off. Episodes that never fail still leave a doubt of
            z^2 / (episodes + z^2) about it, so that 0.01 takes 381 of them.
        tolerance: how far an action may be off, in units of the action range.
        checkpoint: which one of the run; by default that of the artifact.
        environment: for a run on an environment of the user's own, that environment.
        observations: how many in open loop, half of them corners; 2 at least.
        listener: told what goes on.

    Raises:
        ArtifactError: it is not an exported policy, or one of another policy than the run's.
        ConfigError: a number cannot work, or there are too few episodes for `failure_margin` whatever they come to.
        UserError: the run, checkpoint or environment cannot be used.
        EvaluationStopped: the listener said so.
    """
    artifact, run, listener = Artifact.load(artifact), Run.load(run), listener or Listener()
    _check_positive(margin=margin, failure_margin=failure_margin, tolerance=tolerance)
    description = artifact.description
    seed = run.config.check_seed(description.policy_seed)
    which = description.checkpoint_iteration if checkpoint is None else checkpoint
    policy = run.policy(which, policy_seed=seed)
    fingerprint = policy.fingerprint()
    if description.policy_sha256 != fingerprint:
        raise ArtifactError(
            f"{artifact.file} was exported from another policy than that of checkpoint {which} of {run.path}."
        )
    certified = _certified(artifact, run, fingerprint)
    if episodes is not None:
        check_episodes(episodes)
    most = None if certified is None else certified.declaration.episodes
    count = min(filter(None, (episodes, most)), default=_EPISODES)
    _check_enough(count, failure_margin, certified)
    model = artifact.model()
    act, reference = actor(model, description.format), policy_act(policy)
    evaluator = Evaluator(run, episodes=count, checkpoint=which, policy_seeds=[seed], environment=environment)

    listener.note(f"Comparing actions over {observations:,} observations")
    visited = visited_observations(evaluator, reference, observations // 2, episodes=min(count, _VISITING_EPISODES))
    corners = corner_observations(policy, observations - observations // 2)
    open_loop = compare_actions(act, reference, policy, {"visited": visited, "corner": corners})
    hash_holds = sha256(model) == description.artifact_sha256
    findings = [
        Finding(
            "artifact_sha256",
            hash_holds,
            f"the model is {'the' if hash_holds else 'not the'} file that was exported",
        ),
        open_loop.finding(tolerance),
    ]
    if open_loop.refused:
        findings.append(Finding("closed_loop", False, "not run, as the model cannot act on every batch"))
        return Verification(artifact, open_loop, None, tuple(findings))
    closed_loop = _closed_loop(evaluator, act, reference, count, certified, margin, failure_margin, listener)
    findings += [*closed_loop.comparisons, *closed_loop.statements]
    return Verification(artifact, open_loop, closed_loop, tuple(findings))


def _certified(artifact: Artifact, run: Run, fingerprint: str) -> Certified | None:
    """Return what is certified of this policy: by the run's own certificate, or by the one exported with it."""
    certificate, _ = read_certificate(run, fingerprint)
    carried = artifact.description.certificate
    if certificate is None and carried is not None and carried.get("policy_sha256") == fingerprint:
        certificate = dict(carried)
    return Certified.read(certificate)


def compare_episodes(
    reference: Episodes, exported: Episodes, failure: Failure, alpha: float, margin: float, failure_margin: float
) -> tuple[Finding, ...]:
    """Return mean return, failure rate and CVaR compared, episode by episode.

    Args:
        reference: episodes of the policy itself.
        exported: the same episodes with the exported policy.
        failure: what counts as a failed one.
        alpha: share of the worst episodes that CVaR is the mean of.
        margin: as a share of the reference's absolute mean return.
        failure_margin: of the failure rate.
    """
    ours, theirs = reference.returns.astype(np.float64), exported.returns.astype(np.float64)
    of_return = margin * abs(float(ours.mean()))
    return (
        _within("return_mean", mean_difference(ours, theirs, CONFIDENCE), of_return),
        _within(
            "failure_rate", failure_rate_difference(failure(reference), failure(exported), CONFIDENCE), failure_margin
        ),
        _within("return_cvar", cvar_difference(ours, theirs, alpha, CONFIDENCE), of_return),
    )


def _within(name: str, interval: Interval, margin: float) -> Finding:
    """Return whether the whole interval of a difference, exported - reference, lies inside the margin."""
    return Finding(
        name,
        interval.within(margin),
        f"exported less reference is {interval.difference:.4g}, at {CONFIDENCE:.0%} confidence between "
        f"{interval.low:.4g} and {interval.high:.4g}; the margin is {margin:.4g}",
        {**vars(interval), "margin": margin},
    )


def _closed_loop(
    evaluator: Evaluator,
    act: Act,
    reference: Act,
    episodes: int,
    certified: Certified | None,
    margin: float,
    failure_margin: float,
    listener: Listener,
) -> ClosedLoop:
    seed, stream, failure, alpha = 0, Stream.VERIFICATION, DEFAULT_FAILURE, _ALPHA
    if certified is not None:
        seed, stream = certified.seed, Stream.CERTIFICATION
        failure, alpha = certified.declaration.failure, certified.declaration.alpha

    def drawn(acting: Act, what: str) -> Episodes:
        with listener.counting(f"Running episodes of the {what} policy", episodes) as progress:
            watcher = Watcher(listener.stopped, progress)
            key = episode_key(seed, stream)
            return evaluator.runner.run_by_host(acting, key, episodes=episodes, watcher=watcher)

    ours, theirs = drawn(reference, "run's own"), drawn(act, "exported")
    statements: tuple[Finding, ...] = ()
    note = None
    if certified is not None and episodes == certified.declaration.episodes:
        statements = certified.checks(theirs)
    elif certified is not None:
        note = (
            f"not checked: the certificate's statements come of {certified.declaration.episodes:,} episodes, and "
            f"{episodes:,} were run"
        )
    return ClosedLoop(
        ours,
        theirs,
        compare_episodes(ours, theirs, failure, alpha, margin, failure_margin),
        statements,
        note,
    )


def _check_enough(episodes: int, failure_margin: float, certified: Certified | None) -> None:
    """Refuse episodes so few that even the policy itself would fail.

    Raises:
        ConfigError: they are.
    """
    if episodes < 2:
        raise ConfigError(
            f"episodes must be at least 2, not {episodes}: one does not tell how far two policies differ."
        )
    least = least_failure_margin(episodes, CONFIDENCE)
    if least <= failure_margin:
        return
    # Rounded up: what the sentence asks for has to be enough.
    shown = Context(prec=3, rounding=ROUND_CEILING).create_decimal(least)
    needed = episodes_for_failure_margin(failure_margin, CONFIDENCE)
    can_have = needed <= (MOST_EPISODES if certified is None else certified.declaration.episodes)
    remedy = f"give {f'--episodes at least {needed:,} or ' if can_have else ''}--failure-margin at least {shown}"
    raise ConfigError(
        f"{episodes:,} episodes are too few for --failure-margin {failure_margin:g}, as even without a failure they "
        f"leave a doubt of {shown} about the failure rate: {remedy}."
    )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be greater than 0, not {value:g}.")
