"""What an iteration's time goes to, part by part."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from trpo_brax.benchmark.timing import Samples, interleave
from trpo_brax.benchmark.update import full_step, line_search, of_vector, repeated_products, surrogate_gradient
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.learner.steps import policy_batch

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
"""Products in one timed call: one alone would be lost in the call's own cost."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """Seconds of each of `PARTS`, and what an iteration took of them."""

    times: dict[str, Samples]
    """By name, in the order of `PARTS`."""
    call: Samples
    """Of a call that does nothing: every part but the product was timed as a call of its own, this much too long."""
    cg_iterations: int
    """Products that conjugate gradient took."""
    line_search_trials: int
    """Candidates that the line search evaluated."""
    fisher_samples: int
    """S: states that a Fisher product reads."""


def measure_parts(bench: Workbench, repeats: int) -> Parts:
    """Time the parts in turn, each a program of its own on what the ones before it made of a first iteration.

    An iteration is one program, in which the compiler may join parts: their sum is near it, and not equal to it.
    """
    iteration, state, settings = bench.program.iteration, bench.state, bench.config.trust_region
    _, trajectory = bench.gather(state)
    judge = jax.jit(iteration.judge)
    judgement = judge(state, trajectory)
    theta, policy = of_vector(iteration.networks.distribution, state.policy)
    samples = (judgement.observations, judgement.actions, judgement.advantages, judgement.weights)
    batch = jax.jit(functools.partial(policy_batch, fisher_fraction=settings.fisher_fraction))(*samples)
    gradient_of = jax.jit(functools.partial(surrogate_gradient, policy))
    products = jax.jit(functools.partial(repeated_products, policy, damping=settings.damping, count=_IN_A_LOOP))

    solve = jax.jit(functools.partial(full_step, policy, settings))
    search = jax.jit(functools.partial(line_search, policy, settings))
    gradient = gradient_of(theta, batch)
    full, solved = solve(theta, batch, gradient)
    searched = search(theta, batch, full)
    improve, fit = jax.jit(iteration.improve), jax.jit(iteration.fit)
    fold_in = jax.jit(lambda statistics, observations, valid: statistics.updated(observations, valid))
    nothing = jax.jit(lambda values: values + 1)
    pieces: dict[str, Callable[[], Any]] = {
        "rollout": lambda: bench.gather(state),
        "advantages": lambda: judge(state, trajectory),
        "gradient": lambda: gradient_of(theta, batch),
        "fisher_product": lambda: products(theta, batch),
        "conjugate_gradient": lambda: solve(theta, batch, gradient),
        "line_search": lambda: search(theta, batch, full),
        "trust_region_step": lambda: improve(state, judgement),
        "critic": lambda: fit(state, judgement),
        "statistics": lambda: fold_in(state.statistics, trajectory.observations, trajectory.transitions.valid),
        "call": lambda: nothing(state.iteration),
    }
    times = interleave(pieces, repeats)
    times["fisher_product"] = times["fisher_product"].each(_IN_A_LOOP)
    return Parts(
        times={name: times[name] for name in PARTS},
        call=times["call"],
        cg_iterations=int(solved.iterations),
        line_search_trials=int(searched.trials),
        fisher_samples=batch.fisher_weights.size,
    )
