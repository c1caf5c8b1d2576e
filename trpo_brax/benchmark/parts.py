"""What an iteration's time goes to, part by part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from trpo_brax.algorithm import PolicyBatch
from trpo_brax.benchmark.timing import Samples, interleave
from trpo_brax.benchmark.update import TimedUpdate
from trpo_brax.benchmark.workbench import Workbench

PARTS = (
    "rollout",
    "advantages",
    "gradient",
    "fisher_product",
    "conjugate_gradient",
    "line_search",
    "trust_region_step",
    "critic",
    "statistics",
)
"""In the order in which an iteration takes them; the Fisher product is one of those that conjugate gradient takes, and
the trust-region step is gradient, conjugate gradient and line search in one, with what prepares their samples."""
_IN_A_LOOP = 20
"""Products, or forward passes, in one timed call: one alone would be lost in the call's own cost."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """Seconds of each of `PARTS`, and of what they are told in."""

    times: dict[str, Samples]
    """By name, in the order of `PARTS`."""
    forward_pass: Samples
    """Of one forward pass of the policy over the Fisher samples, which one product is compared with."""
    call: Samples
    """Of a call that does nothing: every part but the product was timed as a call of its own, this much too long."""
    cg_iterations: int
    """Products that conjugate gradient took."""
    line_search_trials: int
    """Candidates that the line search evaluated."""
    fisher_samples: int
    """S: states that a Fisher product reads."""

    @property
    def product_in_forward_passes(self) -> float:
        """Time of one Fisher product in that of forward passes over the same samples."""
        return self.times["fisher_product"].over(self.forward_pass)


def measure_parts(bench: Workbench, repeats: int) -> Parts:
    """Time the parts in turn, each a program of its own on what the ones before it made of a first iteration.

    An iteration is one program, in which the compiler may join parts: their sum is near it, and not equal to it.
    """
    iteration, state = bench.iteration, bench.state
    _, trajectory = bench.gather(state)
    judge = jax.jit(iteration.judge)
    judgement = judge(state, trajectory)
    update = TimedUpdate(iteration.networks.distribution, state.policy, bench.config.trust_region)
    samples = jax.jit(update.samples)(
        PolicyBatch(judgement.observations, trajectory.actions, judgement.advantages, judgement.weights)
    )
    vector = update.vector
    gradient_of, solve, search = jax.jit(update.gradient), jax.jit(update.solve), jax.jit(update.search)
    gradient, old = gradient_of(vector, samples.batch)
    full = solve(vector, gradient, samples)
    searched = search(vector, full, old, samples.batch)
    products = jax.jit(update.products, static_argnums=2)
    forward_passes = jax.jit(update.forward_passes, static_argnums=2)
    improve, fit = jax.jit(iteration.improve), jax.jit(iteration.fit)
    fold_in = jax.jit(lambda statistics, observations, valid: statistics.updated(observations, valid))
    nothing = jax.jit(lambda values: values + 1)
    pieces: dict[str, Callable[[], Any]] = {
        "rollout": lambda: bench.gather(state),
        "advantages": lambda: judge(state, trajectory),
        "gradient": lambda: gradient_of(vector, samples.batch),
        "fisher_product": lambda: products(vector, samples, _IN_A_LOOP),
        "conjugate_gradient": lambda: solve(vector, gradient, samples),
        "line_search": lambda: search(vector, full, old, samples.batch),
        "trust_region_step": lambda: improve(state, trajectory, judgement),
        "critic": lambda: fit(state, trajectory, judgement),
        "statistics": lambda: fold_in(state.statistics, trajectory.observations, trajectory.transitions.valid),
        "forward_pass": lambda: forward_passes(vector, samples, _IN_A_LOOP),
        "call": lambda: nothing(state.iteration),
    }
    times = interleave(pieces, repeats)
    times["fisher_product"] = times["fisher_product"].each(_IN_A_LOOP)
    return Parts(
        times={name: times[name] for name in PARTS},
        forward_pass=times["forward_pass"].each(_IN_A_LOOP),
        call=times["call"],
        cg_iterations=int(full.cg_iterations),
        line_search_trials=int(searched.trials),
        fisher_samples=samples.fisher_weights.size,
    )
