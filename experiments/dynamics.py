"""What each part of the learning dynamics is worth: one change at a time against the presets, five seeds a run.

    python experiments/dynamics.py --tasks inverted_pendulum reacher --variants presets adam batch_units

A change is a setting, or a few lines that stand in for the package's. The presets were chosen on seeds 100 and up, as
all of these are; what the README reports is of others. A run that is there is not repeated, so the script can be
started again at any time. Results go to experiments/results/dynamics/: runs.csv, a row a seed (the last policy acting
by its mean action, 1,000 episodes), and summary.csv, a row a task and change.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree
from optax.tree_utils import tree_where

import trpo_brax as tb
from experiments.seeds import Row, over_seeds, read, seed_rows, short, trained, with_those_of, write
from trpo_brax.algorithm import (
    ConjugateGradientResult,
    Distribution,
    Evaluation,
    FullStep,
    PolicyBatch,
    StepOutcome,
    evaluator,
    fisher_product,
    to_the_edge,
    to_the_minimum,
    trust_region_step,
)
from trpo_brax.algorithm import line_search as line_search_module
from trpo_brax.config import Config
from trpo_brax.evaluation.interquartile import interquartile_mean
from trpo_brax.learner.iteration import Iteration, Judgement
from trpo_brax.learner.state import TrainState
from trpo_brax.learner.steps import policy_step
from trpo_brax.policy import DiagonalGaussian, ObservationStatistics
from trpo_brax.policy.networks import Networks

RESULTS = Path(__file__).parent / "results" / "dynamics"
STEPS = {
    "inverted_pendulum": 2_400_000,
    "inverted_double_pendulum": 2_400_000,
    "reacher": 1_000_000,
    "hopper": 2_500_000,
    "walker2d": 5_000_000,
    "halfcheetah": 4_000_000,
}
"""Control steps of a run, over which the trust region shrinks."""
THRESHOLDS = {
    "inverted_pendulum": 950.0,
    "inverted_double_pendulum": 9000.0,
    "reacher": -100.0,
    "hopper": 1000.0,
    "walker2d": 1000.0,
    "halfcheetah": 3000.0,
}
"""Mean return by sampled actions, for the steps that it took to get there."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What each part of the learning dynamics is worth: one change at a time against the presets."""

    tasks: tuple[str, ...] = tuple(STEPS)
    """Tasks."""
    variants: tuple[str, ...] = ()
    """Changes; by default all of them."""
    seed: int = 100
    """First seed of each run."""
    num_seeds: int = 5
    """Seeds of each run, trained in one program."""
    runs_dir: Path = Path("runs/dynamics")
    """Where the run folders are kept."""
    cpu_devices: int | None = None
    """As of trpo-brax train; 1 to run two of these scripts side by side."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One change."""

    told: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stand_in: Callable[[], AbstractContextManager[Any]] = nullcontext
    trained_as: str | None = None
    """The change whose runs these are, where it makes a difference to evaluations alone."""


# Lines that stand in for the package's


def iteration_of(cls: type[Iteration]) -> Callable[[], AbstractContextManager[Any]]:
    """Return what lets programs be made of another iteration."""
    return lambda: mock.patch("trpo_brax.learner.program.Iteration", cls)


@contextmanager
def batch_units() -> Iterator[None]:
    """The critic's units are those of the last batch alone."""
    with (
        mock.patch("trpo_brax.learner.iteration._UNITS_RATE", 1.0),
        mock.patch("trpo_brax.policy.networks._LEAST_SPREAD", 0.0),
    ):
        yield


def mode() -> AbstractContextManager[Any]:
    """What acts is the mean, as it was before clipping."""
    return mock.patch.object(DiagonalGaussian, "mean_within", lambda self, bounded: self.mean)


class OtherTimeSteps(Iteration):
    """Fisher and Gauss-Newton products see other time steps in each iteration."""

    def _turned(self, state: TrainState, judgement: Judgement) -> Judgement:
        """Every k-th time step of what is turned is another one, and for all else the order does not matter."""

        def turn(leaf: jax.Array) -> jax.Array:
            return jnp.roll(leaf, state.iteration, axis=1) if leaf.ndim > 1 else leaf

        return jax.tree.map(turn, judgement)

    def improve(self, state: TrainState, judgement: Judgement) -> Any:
        """Of the policy."""
        return super().improve(state, self._turned(state, judgement))

    def fit(self, state: TrainState, judgement: Judgement) -> Any:
        """Of the critic."""
        return super().fit(state, self._turned(state, judgement))


def halves(self: PolicyBatch, old: Distribution) -> Callable[[Distribution], Evaluation]:
    """The gradient is of the first half of the environments, what is accepted is judged on the second."""
    first = jnp.arange(self.weights.size) < self.weights.size // 2

    def of(part: jax.Array) -> Callable[[Distribution], Evaluation]:
        weights = jnp.where(part, self.weights, 0.0)
        return evaluator(old, self._replace(weights=weights / jnp.maximum(jnp.sum(weights), 1e-9)))

    learned, judged = of(first), of(~first)

    def evaluate(new: Distribution) -> Evaluation:
        ours, theirs = learned(new), judged(new)
        gradient_of_ours = ours.improvement - jax.lax.stop_gradient(ours.improvement)
        return theirs._replace(improvement=jax.lax.stop_gradient(theirs.improvement) + gradient_of_ours)

    return evaluate


@contextmanager
def no_warm_up() -> Iterator[None]:
    """Parameters learn from raw observations, and do not follow their first statistics either."""
    following = Networks.following

    def follow(self: Networks, policy: Any, critic: Any, old: ObservationStatistics, new: ObservationStatistics) -> Any:
        return tree_where(old.count > 0, following(self, policy, critic, old, new), (policy, critic))

    with mock.patch.object(ObservationStatistics, "ready", True), mock.patch.object(Networks, "following", follow):
        yield


def moved_functions() -> AbstractContextManager[Any]:
    """Parameters stay as they are when observation statistics move, and policy and critic become other functions."""
    return mock.patch.object(Networks, "following", lambda self, policy, critic, old, new: (policy, critic))


def retreat_by_kl(*given: Any, max_kl: Any, **named: Any) -> Any:
    """A trial that the KL refused is followed by one at 0.95 of where the KL would be `max_kl`."""
    search = line_search_module.backtracking_line_search

    def retreating(evaluate: Any, parameters: Any, full: Any, accept: Any, *, max_trials: int, **factor: Any) -> Any:
        first = search(evaluate, parameters, full, accept, max_trials=1, **factor)
        kl = evaluate(parameters + full.step).kl_mean
        refused = first.outcome == StepOutcome.KL_EXCEEDED
        shorter = jnp.where(refused, jnp.clip(0.95 * jnp.sqrt(max_kl / kl), 0.1, 0.95), factor["backtrack_factor"])
        again = full._replace(step=shorter * full.step, predicted_improvement=shorter * full.predicted_improvement)
        second = search(evaluate, parameters, again, accept, max_trials=max_trials - 1, **factor)
        second = second._replace(trials=second.trials + 1, fraction=second.fraction * shorter)
        return jax.tree.map(lambda a, b: jnp.where(first.outcome == StepOutcome.ACCEPTED, a, b), first, second)

    with mock.patch("trpo_brax.algorithm.trust_region.backtracking_line_search", retreating):
        return policy_step(*given, max_kl=max_kl, **named)


def relative_damping(model: Any, parameters: Any, batch: Any, *, damping: Any, **rest: Any) -> Any:
    """Damping is a share of the Fisher matrix's size along the gradient, g.Fg / g.g, which grows as 1 / sigma^2."""
    theta, as_tree = ravel_pytree(parameters)

    def at(inputs: jax.Array) -> Callable[[jax.Array], Any]:
        return lambda candidate: model(as_tree(candidate), inputs)

    evaluate = batch.against(model(parameters, batch.inputs))
    gradient = jax.grad(lambda candidate: evaluate(at(batch.inputs)(candidate)).improvement)(theta)
    product = fisher_product(at(batch.fisher_inputs), theta, batch.fisher_weights)
    size = jnp.vdot(gradient, product(gradient)) / jnp.maximum(jnp.vdot(gradient, gradient), 1e-30)
    return trust_region_step(model, parameters, batch, damping=damping * size, **rest)


def within_a_region(solved: ConjugateGradientResult, gradient: jax.Array) -> FullStep:
    """The critic's step ends where its model of (V_new - V)^2 / 2 is 0.01 (Schulman et al. 2016, section 5)."""
    edge, minimum = to_the_edge(0.01)(solved, gradient), to_the_minimum(solved, gradient)
    return tree_where(jnp.linalg.norm(edge.step) < jnp.linalg.norm(minimum.step), edge, minimum)


def region(max_kl: float) -> Variant:
    """Return another trust region, which shrinks to a tenth as the presets' do."""
    return Variant(f"a trust region of {max_kl:g} nats", {"max_kl": max_kl, "final_max_kl": max_kl / 10})


VARIANTS = {
    "presets": Variant("the presets as they are"),
    "adam": Variant("critic by ten passes of Adam", {"critic": "adam", "critic_epochs": 10, "critic_minibatches": 8}),
    "one_critic_step": Variant("one Gauss-Newton step an iteration", {"critic_steps": 1}),
    "two_critic_steps": Variant("two Gauss-Newton steps an iteration", {"critic_steps": 2}),
    "tenth_for_critic": Variant("Gauss-Newton products see a tenth of the time steps", {"critic_fraction": 0.1}),
    "value_region": Variant(
        "a trust region for the critic in place of damping",
        {"critic_damping": 1e-6},
        lambda: mock.patch("trpo_brax.algorithm.critic.to_the_minimum", within_a_region),
    ),
    "batch_units": Variant("critic in units of the last batch's targets", stand_in=batch_units),
    "moved_functions": Variant("statistics that move also move the functions", stand_in=moved_functions),
    "no_warm_up": Variant("a step in iteration 1, on raw observations", stand_in=no_warm_up),
    "unbounded_means": Variant("means of actions without bounds", {"bounded_means": False}),
    "bounded_means": Variant("means of actions within their bounds", {"bounded_means": True}),
    "learned_spread": Variant("the standard deviation is learned", {"final_log_std": None}),
    "mode": Variant("the mode acts instead of the mean action", stand_in=mode, trained_as="presets"),
    "constant_region": Variant("the trust region does not shrink", {"final_max_kl": None}),
    "region_of_001": region(0.001),
    "region_of_003": region(0.003),
    "region_of_01": region(0.01),
    "region_of_02": region(0.02),
    "region_of_04": region(0.04),
    "region_of_1": region(0.1),
    "long_unrolls": Variant("unrolls of 256 steps, so batches two to four times as large", {"unroll_length": 256}),
    "swish": Variant("swish in the hidden layers instead of tanh", {"activation": "swish"}),
    "relu": Variant("relu in the hidden layers instead of tanh", {"activation": "relu"}),
    "large_last_layer": Variant("the policy's last layer starts 100 times as large", {"policy_output_scale": 1.0}),
    "more_noise": Variant("the standard deviation starts at 1", {"initial_log_std": 0.0}),
    "less_noise": Variant("the standard deviation starts at 0.37", {"initial_log_std": -1.0}),
    "wide_clip": Variant("observations clipped at 100 instead of 10", {"observation_clip": 100.0}),
    "short_traces": Variant("trace decay 0.95", {"trace_decay": 0.95}),
    "long_traces": Variant("trace decay 0.995", {"trace_decay": 0.995}),
    "every_time_step": Variant("Fisher products see every time step", {"fisher_fraction": 1.0}),
    "more_products": Variant("30 products of conjugate gradient, damping 0.01", {"cg_iterations": 30, "damping": 0.01}),
    "relative_damping": Variant(
        "damping relative to the Fisher matrix along the gradient",
        {"damping": 0.01},
        lambda: mock.patch("trpo_brax.learner.steps.trust_region_step", relative_damping),
    ),
    "other_time_steps": Variant("products see other time steps each iteration", stand_in=iteration_of(OtherTimeSteps)),
    "halves": Variant(
        "acceptance on environments that the gradient did not see",
        stand_in=lambda: mock.patch.object(PolicyBatch, "against", halves),
    ),
    "retreat_by_kl": Variant(
        "second trial where the KL says",
        stand_in=lambda: mock.patch("trpo_brax.learner.iteration.policy_step", retreat_by_kl),
    ),
}


def config_of(task: str, variant: Variant, arguments: Arguments) -> Config:
    """Return the configuration of a run."""
    return tb.override(
        tb.preset(task),
        **{
            "seed": arguments.seed,
            "num_seeds": arguments.num_seeds,
            "total_steps": STEPS[task],
            "anneal_steps": STEPS[task],
            "eval_every": 0,
            "final_evaluation_episodes": 0,
            "cpu_devices": arguments.cpu_devices,
            **variant.settings,
        },
    )


def no_change(task: str, name: str, arguments: Arguments) -> bool:
    """Return whether a change is what the task's preset does anyway."""
    as_it_is, variant = VARIANTS["presets"], VARIANTS[name]
    same = config_of(task, variant, arguments) == config_of(task, as_it_is, arguments)
    return same and bool(variant.settings) and variant.stand_in is nullcontext


def rows_of(task: str, name: str, arguments: Arguments) -> list[Row]:
    """Train, evaluate, and return a row a seed."""
    variant = VARIANTS[name]
    with variant.stand_in():
        run = trained(config_of(task, variant, arguments), arguments.runs_dir / f"{task}-{variant.trained_as or name}")
        rows = seed_rows(run, {"task": task, "variant": name})
    records = run.metrics()
    for row in rows:
        own = (record for record in records if record["seed"] == row["seed"])
        reached = (record for record in own if (record["episode_return_mean"] or -np.inf) >= THRESHOLDS[task])
        row["steps_to_threshold"] = next((record["env_steps"] for record in reached), "")
    return rows


def summary(rows: list[Row]) -> list[Row]:
    """Return a row a task and variant: worst seed, interquartile mean, failures, speed of learning."""
    told = []
    for key in dict.fromkeys((row["task"], row["variant"]) for row in rows):
        own = [row for row in rows if (row["task"], row["variant"]) == key]
        returns = np.array([float(row["return_mean"]) for row in own])
        median = statistics.median(float(row["steps_to_threshold"] or np.inf) for row in own)
        told.append(
            {
                "task": key[0],
                "variant": key[1],
                "change": VARIANTS[key[1]].told,
                "seeds": len(own),
                **over_seeds(own),
                "interquartile_mean": short(float(interquartile_mean(returns))),
                "steps_to_threshold_median": int(median) if np.isfinite(median) else "",
                "seconds_of_all_seeds": own[0]["seconds_of_all_seeds"],
            }
        )
    return told


def main(arguments: Arguments) -> None:
    """Go through tasks and variants, and write after each what there is."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    table = RESULTS / "runs.csv"
    for task in arguments.tasks:
        for name in arguments.variants or tuple(VARIANTS):
            if no_change(task, name, arguments):
                continue
            if any((row["task"], row["variant"]) == (task, name) for row in read(table)):
                continue
            mine = rows_of(task, name, arguments)
            rows = with_those_of(table, mine, ["task", "variant"])
            order = list(VARIANTS)
            rows.sort(key=lambda row: (row["task"], order.index(row["variant"]), int(row["seed"])))
            write(table, rows)
            write(RESULTS / "summary.csv", summary(rows))
            print(f"{task}, {VARIANTS[name].told}: {', '.join(row['return_mean'] for row in mine)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
