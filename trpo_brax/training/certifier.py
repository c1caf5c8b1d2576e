"""Certifying a run's policy: choose, declare, draw, state, in this order, each on episodes of its own."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.environments import return_bounds
from trpo_brax.environments.perturbed import BODILY, Perturbation, applicable, perturbed_task
from trpo_brax.errors import RunFolderError, UserError
from trpo_brax.evaluation import Episodes, Failure, Watcher, summarize
from trpo_brax.evaluation.certificate import (
    Declaration,
    Statement,
    certify_episodes,
    empirical_bernstein,
    observed_range,
)
from trpo_brax.evaluation.training_runs import training_runs_statement
from trpo_brax.training.certification import CERTIFICATE, Certification, Listener, read_certificate
from trpo_brax.training.evaluator import Evaluator
from trpo_brax.training.files import write_json
from trpo_brax.training.run import Run
from trpo_brax.training.streams import Stream

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
    output: Path | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """State what a policy will do, from episodes drawn for nothing else, and write certificate.json.

    What is stated is declared, and written, before the first of those episodes is drawn.

    Args:
        run: the run.
        settings: what to state.
        checkpoint: `latest`, `best` or an iteration; not used where `settings.choose` is.
        policy_seed: whose policy, in a run of several seeds; by default the first one's.
        environment: for a run on an environment of the user's own, that environment.
        output: folder of certificate.json; by default the run's.
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
        run.path if output is None else output,
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
        pilot = self._draw(
            "Looking at what returns there are", Stream.CHOICE, min(settings.choice_episodes, _PILOT_EPISODES)
        )
        declaration = self._declaration(pilot)
        certificate = self._identity() | {"declared": self._declared(declaration)}
        self._write(certificate)
        episodes = self._draw("Drawing the episodes", Stream.CERTIFICATION, settings.episodes)
        statements = certify_episodes(episodes, declaration)
        certificate |= {
            "episodes": settings.episodes,
            "confidence": settings.confidence,
            **{statement.name: statement.bound for statement in statements},
            "statements": [dataclasses.asdict(statement) for statement in statements],
            "return_mean_lower_empirical_bernstein": empirical_bernstein(episodes, declaration),
            "observed": summarize(episodes, declaration.failure).to_dict(),
            "training_runs": self._training_runs(),
            "perturbations": self._perturbations(declaration) if settings.perturb else None,
        }
        self._write(certificate)
        return certificate

    def _choose(self) -> int:
        """Return the checkpoint that does best on episodes that the certificate will not see."""
        settings, found = self._settings, {}
        for iteration in self._run.checkpoints():
            evaluator = Evaluator(
                self._run,
                episodes=settings.choice_episodes,
                checkpoint=iteration,
                policy_seeds=[self._seed],
                environment=self._environment,
            )
            with self._listener.counting(f"Choosing: checkpoint {iteration}", settings.choice_episodes) as progress:
                watcher = Watcher(self._listener.stopped, progress)
                episodes = evaluator.run(
                    settings.choice_episodes, seed=settings.seed, stream=Stream.CHOICE, watcher=watcher
                )
            found[iteration] = getattr(summarize(episodes), settings.choose)
        chosen = max(found, key=lambda iteration: (found[iteration], iteration))
        self._listener.note(f"Chosen by {settings.choose}: checkpoint {chosen} of {', '.join(map(str, found))}")
        return chosen

    def _draw(self, what: str, stream: Stream, episodes: int) -> Episodes:
        with self._listener.counting(what, episodes) as progress:
            watcher = Watcher(self._listener.stopped, progress)
            return self._evaluator.run(episodes, seed=self._settings.seed, stream=stream, watcher=watcher)

    def _declaration(self, pilot: Episodes) -> Declaration:
        settings, rollout = self._settings, self._run.config.rollout
        known: tuple[float | None, float | None] = (None, None)
        if self._run.config.environment is None:
            known = return_bounds(self._run.config.task, rollout.episode_length * rollout.action_repeat)
        given = (settings.return_floor, settings.return_cap)
        returns = observed_range(pilot.returns.astype(np.float64), given, known)
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
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        }

    def _declared(self, declaration: Declaration) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        settings = self._settings
        return declaration.to_dict() | {
            "at": now,
            "seed": settings.seed,
            "stream": Stream.CERTIFICATION.name.lower(),
            "chosen_by": None if settings.choose == "no" else settings.choose,
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

    def _training_runs(self) -> dict[str, Any] | None:
        """Return what the run's seeds say about the next one, each by its mean return over the same episodes."""
        run, settings = self._run, self._settings
        if run.config.num_seeds < 2:
            return None
        episodes = min(settings.episodes, settings.choice_episodes)
        which = self._checkpoint if settings.choose == "no" else "latest"
        evaluator = Evaluator(run, episodes=episodes, checkpoint=which, environment=self._environment)
        figures = []
        for seed in run.config.seeds:
            with self._listener.counting(f"Seed {seed}", episodes) as progress:
                watcher = Watcher(self._listener.stopped, progress)
                drawn = evaluator.run(
                    episodes, seed=settings.seed, stream=Stream.CHOICE, policy_seed=seed, watcher=watcher
                )
            figures.append(float(drawn.returns.mean(dtype=np.float64)))
        statement = training_runs_statement(figures, settings.confidence)
        return {
            "figure": f"mean return over {episodes:,} episodes of checkpoint {which}",
            "figures": figures,
            **dataclasses.asdict(statement),
            "sentences": list(statement.sentences()),
        }

    def _perturbations(self, declaration: Declaration) -> dict[str, Any]:
        """Return the four statements in every perturbed world, all of them together at the stated confidence."""
        settings = self._settings
        evaluator = Evaluator(
            self._run,
            episodes=settings.perturb_episodes,
            checkpoint=self._checkpoint,
            policy_seeds=[self._seed],
            environment=self._environment,
            worlds=lambda task, world: perturbed_task(task, *world),
        )
        std = evaluator.policies[self._seed].statistics.std()
        names = applicable(evaluator.task)
        worlds = [(None, 1.0), *_worlds(settings, names)]
        declaration = dataclasses.replace(declaration, episodes=settings.perturb_episodes, worlds=len(worlds))
        rows = []
        total = settings.perturb_episodes * len(worlds)
        with self._listener.counting(f"Perturbing the world in {len(worlds) - 1} ways", total) as progress:
            for place, (name, strength) in enumerate(worlds):
                done = place * settings.perturb_episodes
                watcher = Watcher(self._listener.stopped, functools.partial(_further, progress, done))
                drawn = evaluator.run(
                    settings.perturb_episodes,
                    seed=settings.seed,
                    stream=Stream.PERTURBATION,
                    world=(Perturbation.none() if name is None else Perturbation.of(name, strength), std),
                    watcher=watcher,
                )
                rows.append(_row(name, strength, drawn, certify_episodes(drawn, declaration), declaration))
        return {
            "episodes": settings.perturb_episodes,
            "confidence": settings.confidence,
            "confidence_each": declaration.confidence_each,
            "not_applicable": [name for name in BODILY if name not in names],
            "worlds": rows,
        }

    def _write(self, certificate: dict[str, Any]) -> None:
        try:
            write_json(self._file, certificate)
        except OSError as error:
            raise UserError(f"{self._file} cannot be written: {error.strerror}.") from error


def _further(progress: Callable[[int], None], done: int, ended: int) -> None:
    progress(done + ended)


def _worlds(settings: Certification, names: Sequence[str]) -> Iterator[tuple[str, float]]:
    for name in names:
        strengths: Sequence[float] = settings.factors
        if name == "observation_noise":
            strengths = settings.noise
        elif name == "delay":
            strengths = settings.delays
        yield from ((name, float(strength)) for strength in sorted(set(strengths)))


def _row(
    name: str | None,
    strength: float,
    episodes: Episodes,
    statements: Sequence[Statement],
    declaration: Declaration,
) -> dict[str, Any]:
    report = summarize(episodes, declaration.failure)
    return {
        "perturbation": name,
        "strength": strength,
        "return_mean": report.return_mean,
        "failure_rate": report.failure_rate,
        **{statement.name: statement.bound for statement in statements},
    }
