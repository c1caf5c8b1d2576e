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
    observed_range,
)
from trpo_brax.certification.perturbing import World, certify_worlds, perturbed_worlds
from trpo_brax.certification.settings import Certification, Listener
from trpo_brax.certification.training_runs import training_runs_statement
from trpo_brax.environments import Task, known_returns
from trpo_brax.errors import ConfigError, RunFolderError
from trpo_brax.evaluation import Episodes, Failure, Watcher, summarize
from trpo_brax.host.paths import user_path
from trpo_brax.policy import Policy
from trpo_brax.randomness import Stream
from trpo_brax.runs.certificates import CERTIFICATE, read_certificate
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.files import check_writable, write_json, written
from trpo_brax.runs.provenance import package_version
from trpo_brax.runs.run import Run

if TYPE_CHECKING:
    from brax.envs import Env

FORMAT = 1
_PILOT_EPISODES = 1000
_VERSIONS = ("trpo-brax", "jax", "brax", "mujoco", "numpy", "scipy")


def certify(
    run: Run | str | os.PathLike[str],
    settings: Certification | None = None,
    *,
    checkpoint: str | int = "latest",
    policy_seed: int | None = None,
    environment: Env | Task | None = None,
    output: str | os.PathLike[str] | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """State what a policy will do, from episodes drawn for nothing else; write certificate.json.

    What is stated is declared, and written to certificate.declared.json, before the first of those episodes is drawn.

    Args:
        run: the run, or its folder.
        settings: what to state.
        checkpoint: `latest`, `best` or an iteration; not used where `settings.choose` is.
        policy_seed: whose policy, in a run of several seeds; by default the first one's.
        environment: for a run on an environment of the user's own, that environment.
        output: folder of certificate.json, made where it is not there; by default the run's.
        listener: told what goes on.

    Returns:
        What certificate.json holds.

    Raises:
        UserError: the run, checkpoint or environment cannot be used, or the file cannot be written.
        EvaluationStopped: the listener said so.
    """
    run = Run.load(run)
    if not isinstance(settings, Certification | None):
        raise ConfigError(f"settings must be a Certification, not {settings!r:.40}.")
    if not isinstance(output, str | os.PathLike | None):
        raise ConfigError(f"output must be a path, not {output!r:.40}.")
    return _Certifier(
        run,
        settings or Certification(),
        checkpoint,
        run.config.check_seed(policy_seed),
        run.task(environment),
        run.path if output is None else user_path(output),
        listener or Listener(),
    ).certificate()


@dataclasses.dataclass
class _Certifier:
    run: Run
    settings: Certification
    checkpoint: str | int
    seed: int
    task: Task
    output: Path
    listener: Listener

    def __post_init__(self) -> None:
        self.failure = Failure(self.settings.failure)
        self.file = self.output / CERTIFICATE
        self.declared_file = self.file.with_suffix(".declared.json")
        # What cannot be written is said before anything is drawn.
        for file in (self.file, self.declared_file):
            check_writable(file, makes_folders=True)
        self.episodes_a_seed = min(self.settings.episodes, self.settings.choice_episodes)
        if self.settings.choose != "no":
            self.checkpoint = self.choose()
        self.evaluator = Evaluator(
            self.run,
            episodes=self.settings.episodes,
            checkpoint=self.checkpoint,
            policy_seeds=[self.seed],
            environment=self.task,
        )

    def certificate(self) -> dict[str, Any]:
        settings = self.settings
        pilot_episodes = min(settings.choice_episodes, _PILOT_EPISODES)
        pilot = self.draw("Looking at what returns there are", Stream.CHOICE, pilot_episodes)
        declaration = self.declaration(pilot)
        worlds = perturbed_worlds(settings, self.evaluator.task) if settings.perturb else ()
        certificate = self.identity() | {"declared": self.declared(declaration, worlds)}
        self.write(self.declared_file, certificate)
        episodes = self.draw("Drawing the episodes", Stream.CERTIFICATION, settings.episodes)
        statements = certify_episodes(episodes, declaration)
        certificate |= {
            "episodes": settings.episodes,
            "confidence": settings.confidence,
            **{statement.name: statement.bound for statement in statements},
            "statements": [dataclasses.asdict(statement) for statement in statements],
            "observed": summarize(episodes, declaration.failure).to_dict(),
            "training_runs": None,
            "perturbations": None,
        }
        # What follows may take long or be stopped; what has been stated stays.
        self.finish(certificate)
        certificate["training_runs"] = self.training_runs(declaration)
        if worlds:
            certificate["perturbations"] = self.perturbations(declaration, worlds)
        self.finish(certificate)
        self.declared_file.unlink(missing_ok=True)
        return certificate

    def choose(self) -> int:
        """Return the checkpoint that does best on episodes that the certificate will not see."""
        run, settings, found = self.run, self.settings, {}
        # One program for all: they differ by their parameters alone.
        evaluator = Evaluator(run, episodes=settings.choice_episodes, policy_seeds=[self.seed], environment=self.task)
        for iteration in run.checkpoints.iterations():
            policy = run.policy(iteration, policy_seed=self.seed)
            what = f"Choosing: checkpoint {iteration}"
            episodes = self.draw(what, Stream.CHOICE, settings.choice_episodes, evaluator, policy=policy)
            found[iteration] = getattr(summarize(episodes), settings.choose)
        chosen = max(found, key=lambda iteration: (found[iteration], iteration))
        self.listener.note(f"Chosen by {settings.choose}: checkpoint {chosen} of {', '.join(map(str, found))}")
        return chosen

    def draw(
        self,
        what: str,
        stream: Stream,
        episodes: int,
        evaluator: Evaluator | None = None,
        *,
        policy_seed: int | None = None,
        policy: Policy | None = None,
    ) -> Episodes:
        drawing, seed = evaluator or self.evaluator, self.settings.seed
        with self.listener.counting(what, episodes) as progress:
            watcher = Watcher(self.listener.stopped, progress)
            return drawing.run(
                episodes, seed=seed, stream=stream, policy_seed=policy_seed, policy=policy, watcher=watcher
            )

    def declaration(self, pilot: Episodes) -> Declaration:
        settings = self.settings
        given = (settings.return_floor, settings.return_cap)
        returns = observed_range(pilot.returns.astype(np.float64), given, known_returns(self.run.config))
        if settings.return_cap is not None and settings.return_cap <= returns.floor:
            raise ConfigError(
                f"return_cap must be greater than the floor, not {settings.return_cap:g}: no return is taken to be "
                f"below {returns.floor:g} ({returns.floor_source})."
            )
        return Declaration(settings.episodes, settings.confidence, settings.alpha, self.failure, returns)

    def identity(self) -> dict[str, Any]:
        """Return what the statements are about, by hashes where there are some."""
        run, iteration = self.run, self.evaluator.iterations[self.seed]
        rollout = run.config.rollout
        policy_sha256 = self.evaluator.policies[self.seed].fingerprint()
        return {
            "format": FORMAT,
            "task": run.config.environment or run.config.task,
            "backend": None if run.config.environment else rollout.backend,
            "episode_length": rollout.episode_length,
            "action_repeat": rollout.action_repeat,
            "acting": "mean action",
            "policy_seed": self.seed,
            "checkpoint": iteration,
            "checkpoint_sha256": run.checkpoints.hash(iteration),
            "policy_sha256": policy_sha256,
            "earlier_certificates": self.earlier(policy_sha256),
            "versions": {name: package_version(name) for name in _VERSIONS},
        }

    def declared(self, declaration: Declaration, worlds: Sequence[World]) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        settings, config = self.settings, self.run.config
        seeds = {"seeds": config.num_seeds, "episodes": self.episodes_a_seed, "stream": Stream.CHOICE.name.lower()}
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

    def earlier(self, policy_sha256: str) -> int:
        """Return how many certificates of the same policy there were before, by the one there is."""
        try:
            there = read_certificate(self.file.parent)
        except RunFolderError as error:
            self.listener.note(f"{error} A new one takes its place.")
            return 0
        if there is None or there.get("policy_sha256") != policy_sha256:
            return 0
        count = there.get("earlier_certificates")
        return count + 1 if isinstance(count, int) and 0 <= count < 10**6 else 1

    def training_runs(self, declaration: Declaration) -> dict[str, Any] | None:
        """Return what the run's seeds say about the next one, each by its mean return over the same episodes."""
        run, settings, episodes = self.run, self.settings, self.episodes_a_seed
        if run.config.num_seeds < 2:
            return None
        which = self.checkpoint if settings.choose == "no" else "latest"
        evaluator = Evaluator(run, episodes=episodes, checkpoint=which, environment=self.task)
        figures = []
        for seed in run.config.seeds:
            drawn = self.draw(f"Seed {seed}", Stream.CHOICE, episodes, evaluator, policy_seed=seed)
            figures.append(float(counted_returns(drawn, declaration).mean()))
        statement = training_runs_statement(figures, settings.confidence)
        return {
            "figure": f"mean return over {episodes:,} episodes of checkpoint {which}",
            "figures": figures,
            **dataclasses.asdict(statement),
            "sentences": list(statement.sentences()),
        }

    def perturbations(self, declaration: Declaration, worlds: Sequence[World]) -> dict[str, Any]:
        settings = self.settings
        total = settings.perturb_episodes * len(worlds)
        with self.listener.counting(f"Perturbing the world in {len(worlds) - 1} ways", total) as progress:
            return certify_worlds(
                self.run,
                worlds,
                declaration,
                settings,
                checkpoint=self.evaluator.iterations[self.seed],
                policy_seed=self.seed,
                task=self.task,
                watcher=Watcher(self.listener.stopped, progress),
            )

    def finish(self, certificate: dict[str, Any]) -> None:
        self.write(self.file, certificate)
        self.listener.written(certificate)

    def write(self, file: Path, content: dict[str, Any]) -> None:
        with written(file):
            self.output.mkdir(parents=True, exist_ok=True)
            write_json(file, content)
