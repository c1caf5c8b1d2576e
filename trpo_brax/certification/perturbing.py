"""A certificate's statements repeated in worlds that differ from the training's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trpo_brax.certification.certificate import Declaration, certify_episodes
from trpo_brax.certification.settings import Certification
from trpo_brax.environments import Task
from trpo_brax.environments.perturbed import BODILY, Perturbation, applicable, perturbed_task
from trpo_brax.evaluation import Watcher, summarize
from trpo_brax.randomness import Stream
from trpo_brax.runs.evaluator import Evaluator
from trpo_brax.runs.run import Run


@dataclasses.dataclass(frozen=True)
class World:
    """One world to certify in."""

    perturbation: str | None
    """A field of `Perturbation`; None: the world of the training."""
    strength: float
    """Its value."""


def perturbed_worlds(settings: Certification, task: Task) -> tuple[World, ...]:
    """Return the worlds to certify in: that of the training, and each perturbation that the task allows by itself."""
    strengths: Mapping[str, Sequence[float]] = {"observation_noise": settings.noise, "delay": settings.delays}
    perturbed = ((name, sorted(set(strengths.get(name, settings.factors)))) for name in applicable(task))
    return (World(None, 1.0), *(World(name, float(strength)) for name, each in perturbed for strength in each))


def certify_worlds(
    run: Run,
    worlds: Sequence[World],
    declaration: Declaration,
    settings: Certification,
    *,
    checkpoint: int,
    policy_seed: int,
    task: Task,
    watcher: Watcher,
) -> dict[str, Any]:
    """Return the four statements in every world, all of them together at the declared confidence.

    All worlds meet the same starting states, and are one compiled program.
    """
    repeat = run.config.rollout.action_repeat
    evaluator = Evaluator(
        run,
        episodes=settings.perturb_episodes,
        checkpoint=checkpoint,
        policy_seeds=[policy_seed],
        environment=task,
        worlds=lambda task, world: perturbed_task(task, world[0], world[1], repeat),
    )
    std = evaluator.policies[policy_seed].statistics.std()
    declaration = dataclasses.replace(declaration, episodes=settings.perturb_episodes, worlds=len(worlds))
    rows = []
    for place, world in enumerate(worlds):
        drawn = evaluator.run(
            settings.perturb_episodes,
            seed=settings.seed,
            stream=Stream.PERTURBATION,
            world=(_perturbation(world), std),
            watcher=Watcher(watcher.stopped, _further(watcher.progress, place * settings.perturb_episodes)),
        )
        report = summarize(drawn, declaration.failure)
        rows.append(
            {
                **dataclasses.asdict(world),
                "return_mean": report.return_mean,
                "failure_rate": report.failure_rate,
                **{statement.name: statement.bound for statement in certify_episodes(drawn, declaration)},
            }
        )
    names = applicable(evaluator.task)
    return {
        "episodes": settings.perturb_episodes,
        "confidence": settings.confidence,
        "confidence_each": declaration.confidence_each,
        "not_applicable": [name for name in BODILY if name not in names],
        "worlds": rows,
    }


def _perturbation(world: World) -> Perturbation:
    return Perturbation.none() if world.perturbation is None else Perturbation.of(world.perturbation, world.strength)


def _further(progress: Callable[[int], None], done: int) -> Callable[[int], None]:
    return lambda ended: progress(done + ended)
