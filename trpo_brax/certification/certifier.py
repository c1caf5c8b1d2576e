"""Certifying a run's policy: choose, declare, draw, state, in this order, each on episodes of its own."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.certification.certificate import (
    Declaration,
    certify_episodes,
    counted_returns,
    empirical_bernstein,
    observed_range,
)
from trpo_brax.certification.perturbing import World, certify_worlds, perturbed_worlds
from trpo_brax.certification.settings import Certification, Listener
from trpo_brax.certification.training_runs import training_runs_statement
from trpo_brax.environments import return_bounds
from trpo_brax.errors import ConfigError, RunFolderError, UserError
from trpo_brax.evaluation import Episodes, Failure, Watcher, summarize
from trpo_brax.policy import Policy
from trpo_brax.randomness import Stream
from trpo_brax.runs.certificates import CERTIFICATE, read_certificate
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.files import write_json
from trpo_brax.runs.provenance import package_version
from trpo_brax.runs.run import Run

if TYPE_CHECKING:
    from brax.envs import Env

FORMAT = 1
_PILOT_EPISODES = 1000
_VERSIONS = ("trpo-brax", "jax", "brax", "mujoco", "numpy", "scipy")


def certify(
    run: Run,
    settings: Certification | None = None,
    *,
    checkpoint: str | int = "latest",
    policy_seed: int | None = None,
    environment: Env | None = None,
    output: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """State what a policy will do, from episodes drawn for nothing else; write certificate.json.

    What is stated is declared, and written to certificate.declared.json, before the first of those episodes is drawn.

    Args:
        run: the run.
        settings: what to state.
        checkpoint: `latest`, `best` or an iteration; not used where `settings.choose` is.
        policy_seed: whose policy, in a run of several seeds; by default the first one's.
        environment: for a run on an environment of the user's own, that environment.
        output: folder of certificate.json, which must be there; by default the run's.
        listener: told what goes on.

    Returns:
        What certificate.json holds.

    Raises:
        UserError: the run, checkpoint or environment cannot be used, or the file cannot be written.
        EvaluationStopped: the listener said so.
    """
    return _Certifier(
        run,
        settings or Certification(),
        checkpoint,
        run.check_seed(policy_seed),
        environment,
        run.path if output is None else Path(output),
        listener or Listener(),
    ).certificate()


class _Certifier:
    def __init__(
        self,
        run: Run,
        settings: Certification,
        checkpoint: str | int,
        policy_seed: int,
        environment: Env | None,
        output: Path,
        listener: Listener,
    ) -> None:
        self._run, self._settings, self._seed = run, settings, policy_seed
        self._environment, self._listener = environment, listener
        self._failure = Failure(settings.failure)
        self._file = output / CERTIFICATE
        self._declared_file = self._file.with_suffix(".declared.json")
        self._episodes_a_seed = min(settings.episodes, settings.choice_episodes)
        self._checkpoint = checkpoint if settings.choose == "no" else self._choose()
        self._evaluator = Evaluator(
            run,
            episodes=settings.episodes,
            checkpoint=self._checkpoint,
            policy_seeds=[policy_seed],
            environment=environment,
        )

    def certificate(self) -> dict[str, Any]:
        settings = self._settings
        pilot_episodes = min(settings.choice_episodes, _PILOT_EPISODES)
        pilot = self._draw("Looking at what returns there are", Stream.CHOICE, pilot_episodes)
        declaration = self._declaration(pilot)
        worlds = perturbed_worlds(settings, self._evaluator.task) if settings.perturb else ()
        certificate = self._identity() | {"declared": self._declared(declaration, worlds)}
        self._write(self._declared_file, certificate)
        episodes = self._draw("Drawing the episodes", Stream.CERTIFICATION, settings.episodes)
        statements = certify_episodes(episodes, declaration)
        certificate |= {
            "episodes": settings.episodes,
            "confidence": settings.confidence,
            **{statement.name: statement.bound for statement in statements},
            "statements": [dataclasses.asdict(statement) for statement in statements],
            "return_mean_lower_empirical_bernstein": empirical_bernstein(episodes, declaration),
            "observed": summarize(episodes, declaration.failure).to_dict(),
            "training_runs": None,
            "perturbations": None,
        }
        # What follows may take long or be stopped; what has been stated stays.
        self._finish(certificate)
        certificate["training_runs"] = self._training_runs(declaration)
        if worlds:
            certificate["perturbations"] = self._perturbations(declaration, worlds)
        self._finish(certificate)
        self._declared_file.unlink(missing_ok=True)
        return certificate

    def _choose(self) -> int:
        """Return the checkpoint that does best on episodes that the certificate will not see."""
        run, settings, found = self._run, self._settings, {}
        # One program for all: they differ by their parameters alone.
        evaluator = Evaluator(
            run, episodes=settings.choice_episodes, policy_seeds=[self._seed], environment=self._environment
        )
        for iteration in run.checkpoints():
            policy = run.policy(iteration, policy_seed=self._seed)
            what = f"Choosing: checkpoint {iteration}"
            episodes = self._draw(what, Stream.CHOICE, settings.choice_episodes, evaluator, policy=policy)
            found[iteration] = getattr(summarize(episodes), settings.choose)
        chosen = max(found, key=lambda iteration: (found[iteration], iteration))
        self._listener.note(f"Chosen by {settings.choose}: checkpoint {chosen} of {', '.join(map(str, found))}")
        return chosen

    def _draw(
        self,
        what: str,
        stream: Stream,
        episodes: int,
        evaluator: Evaluator | None = None,
        *,
        policy_seed: int | None = None,
        policy: Policy | None = None,
    ) -> Episodes:
        with self._listener.counting(what, episodes) as progress:
            watcher = Watcher(self._listener.stopped, progress)
            drawing = evaluator or self._evaluator
            return drawing.run(
                episodes,
                seed=self._settings.seed,
                stream=stream,
                policy_seed=policy_seed,
                policy=policy,
                watcher=watcher,
            )

    def _declaration(self, pilot: Episodes) -> Declaration:
        settings, rollout = self._settings, self._run.config.rollout
        known: tuple[float | None, float | None] = (None, None)
        if self._run.config.environment is None:
            known = return_bounds(self._run.config.task, rollout.episode_length * rollout.action_repeat)
        given = (settings.return_floor, settings.return_cap)
        returns = observed_range(pilot.returns.astype(np.float64), given, known)
        if settings.return_cap is not None and settings.return_cap <= returns.floor:
            raise ConfigError(
                f"return_cap must be greater than the floor, not {settings.return_cap:g}: no return is taken to be "
                f"below {returns.floor:g} ({returns.floor_source})."
            )
        return Declaration(settings.episodes, settings.confidence, settings.alpha, self._failure, returns)

    def _identity(self) -> dict[str, Any]:
        """Return what the statements are about, by hashes where there are some."""
        run, iteration = self._run, self._evaluator.iterations[self._seed]
        rollout = run.config.rollout
        policy_sha256 = self._evaluator.policies[self._seed].fingerprint()
        return {
            "format": FORMAT,
            "task": run.config.environment or run.config.task,
            "backend": None if run.config.environment else rollout.backend,
            "episode_length": rollout.episode_length,
            "action_repeat": rollout.action_repeat,
            "acting": "mode",
            "policy_seed": self._seed,
            "checkpoint": iteration,
            "checkpoint_sha256": run.checkpoint_hash(iteration),
            "policy_sha256": policy_sha256,
            "earlier_certificates": self._earlier(policy_sha256),
            "versions": {name: package_version(name) for name in _VERSIONS},
        }

    def _declared(self, declaration: Declaration, worlds: Sequence[World]) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        settings, config = self._settings, self._run.config
        seeds = {"seeds": config.num_seeds, "episodes": self._episodes_a_seed, "stream": Stream.CHOICE.name.lower()}
        perturbations = {
            "episodes": settings.perturb_episodes,
            "stream": Stream.PERTURBATION.name.lower(),
            "worlds": [dataclasses.asdict(world) for world in worlds],
        }
        return declaration.to_dict() | {
            "at": now,
            "seed": settings.seed,
            "stream": Stream.CERTIFICATION.name.lower(),
            "chosen_by": None if settings.choose == "no" else settings.choose,
            "training_runs": seeds if config.num_seeds > 1 else None,
            "perturbations": perturbations if worlds else None,
        }

    def _earlier(self, policy_sha256: str) -> int:
        """Return how many certificates of the same policy there were before, by the one there is."""
        try:
            there = read_certificate(self._file.parent)
        except RunFolderError as error:
            self._listener.note(f"{error} A new one takes its place.")
            return 0
        if there is None or there.get("policy_sha256") != policy_sha256:
            return 0
        count = there.get("earlier_certificates")
        return count + 1 if isinstance(count, int) and 0 <= count < 10**6 else 1

    def _training_runs(self, declaration: Declaration) -> dict[str, Any] | None:
        """Return what the run's seeds say about the next one, each by its mean return over the same episodes."""
        run, settings, episodes = self._run, self._settings, self._episodes_a_seed
        if run.config.num_seeds < 2:
            return None
        which = self._checkpoint if settings.choose == "no" else "latest"
        evaluator = Evaluator(run, episodes=episodes, checkpoint=which, environment=self._environment)
        figures = []
        for seed in run.config.seeds:
            drawn = self._draw(f"Seed {seed}", Stream.CHOICE, episodes, evaluator, policy_seed=seed)
            figures.append(float(counted_returns(drawn, declaration).mean()))
        statement = training_runs_statement(figures, settings.confidence)
        return {
            "figure": f"mean return over {episodes:,} episodes of checkpoint {which}",
            "figures": figures,
            **dataclasses.asdict(statement),
            "sentences": list(statement.sentences()),
        }

    def _perturbations(self, declaration: Declaration, worlds: Sequence[World]) -> dict[str, Any]:
        settings = self._settings
        total = settings.perturb_episodes * len(worlds)
        with self._listener.counting(f"Perturbing the world in {len(worlds) - 1} ways", total) as progress:
            return certify_worlds(
                self._run,
                worlds,
                declaration,
                settings,
                checkpoint=self._evaluator.iterations[self._seed],
                policy_seed=self._seed,
                environment=self._environment,
                watcher=Watcher(self._listener.stopped, progress),
            )

    def _finish(self, certificate: dict[str, Any]) -> None:
        self._write(self._file, certificate)
        self._listener.written(certificate)

    def _write(self, file: Path, content: dict[str, Any]) -> None:
        try:
            write_json(file, content)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}.") from error
