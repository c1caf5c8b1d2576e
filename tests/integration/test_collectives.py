"""What crosses devices inside the update's loops, read off the compiled programs: one reduction of what has to be."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from trpo_brax.algorithm import CriticFit, TrustRegionStep, fit_by_gauss_newton, fit_by_minibatches, successor_values
from trpo_brax.config import NetworkConfig, TrustRegionConfig
from trpo_brax.learner.steps import policy_batch, policy_step, value_batch
from trpo_brax.policy import ActionBounds, Networks

NETWORKS = Networks.build(
    NetworkConfig(policy_hidden_sizes=(8,), critic_hidden_sizes=(8,)), 3, ActionBounds((-1, -1), (1, 1))
)
KEY = jax.random.PRNGKey(0)
N, T = 8, 12


@pytest.fixture(scope="module")
def samples() -> dict[str, jax.Array]:
    """Arrays [8, 12, ...] whose environments are shared out over four devices."""
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()[:4]), ("envs",)), PartitionSpec("envs"))
    shapes = {"observations": (N, T, 3), "actions": (N, T, 2), "values": (N, T)}
    arrays = {name: jax.random.normal(KEY, shape) for name, shape in shapes.items()}
    arrays |= {"weights": jnp.full((N, T), 1 / (N * T)), "dones": arrays["values"] > 1, "valid": arrays["values"] < 3}
    return {name: jax.device_put(array, sharding) for name, array in arrays.items()}


def collectives_in_loops(compiled: Any) -> list[list[tuple[str, int]]]:
    """Return, for each innermost loop, its collectives as (kind, how many numbers); condition and body together."""
    computations: dict[str, list[str]] = {}
    for line in compiled.as_text().splitlines():
        if head := re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computations[head[1]] = lines = []
        elif line.startswith("  "):
            lines.append(line)
    loops = []
    for lines in computations.values():
        for line in lines:
            if parts := re.search(r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)", line):
                inside = computations[parts[1]] + computations[parts[2]]
                if not any(" while(" in one for one in inside):
                    loops.append([found for one in inside if (found := collective(one))])
    return loops


def collective(line: str) -> tuple[str, int] | None:
    """Return a line's collective and how many numbers it moves, None if it is none."""
    found = re.search(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", line)
    if found is None:
        return None
    shapes = re.findall(r"(?:f32|s32|pred|u32)\[([\d,]*)\]", found[1])
    return found[2], sum(int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes)


def test_a_critic_update_reduces_its_gradient_and_its_loss_once(samples: dict[str, jax.Array]) -> None:
    critic = NETWORKS.initial_critic(KEY).network
    optimizer = optax.flatten(optax.adam(1e-3))

    def fit(*given: jax.Array) -> Any:
        state = optimizer.init(critic)
        return fit_by_minibatches(NETWORKS.normalized_value, optimizer, critic, state, *given, epochs=2, minibatches=3)

    compiled = jax.jit(fit).lower(samples["observations"], samples["values"], samples["valid"]).compile()
    assert collectives_in_loops(compiled) == [[("all-reduce", ravel_pytree(critic)[0].size + 1)]]


def test_a_gauss_newton_iteration_reduces_one_product(samples: dict[str, jax.Array]) -> None:
    """And a line-search trial three numbers: two means that decide, and the largest change."""
    critic = NETWORKS.initial_critic(KEY).network

    def fit(*given: jax.Array) -> CriticFit:
        settings = {"steps": 2, "damping": 1e-3, "cg_iterations": 5, "cg_tolerance": 1e-10}
        return fit_by_gauss_newton(NETWORKS.normalized_value, critic, value_batch(*given, 0.25), **settings)

    given = [samples[name] for name in ("observations", "values", "weights")]
    loops = collectives_in_loops(jax.jit(fit).lower(*given).compile())
    assert {kind for loop in loops for kind, _ in loop} == {"all-reduce"}
    assert sorted(sum(count for _, count in loop) for loop in loops) == [3, ravel_pytree(critic)[0].size]


def test_a_conjugate_gradient_iteration_reduces_one_product(samples: dict[str, jax.Array]) -> None:
    """And a line-search trial four numbers: two means that decide, the mean ratio and the largest KL."""
    policy = NETWORKS.initial_policy(KEY)
    settings = TrustRegionConfig(fisher_fraction=0.25)

    def step(*given: jax.Array) -> TrustRegionStep:
        return policy_step(
            NETWORKS.distribution, policy, policy_batch(*given, settings.fisher_fraction), settings, max_kl=0.01
        )

    given = [samples[name] for name in ("observations", "actions", "values", "weights")]
    loops = collectives_in_loops(jax.jit(step).lower(*given).compile())
    assert {kind for loop in loops for kind, _ in loop} == {"all-reduce"}
    # The shared log std needs no sum over states, so its part of the product crosses nothing.
    size = ravel_pytree(policy)[0].size
    assert sorted(sum(count for _, count in loop) for loop in loops) == [4, size - 2]
    assert all(len(loop) <= 2 for loop in loops)


def test_evaluating_successors_reduces_nothing(samples: dict[str, jax.Array]) -> None:
    def evaluate(*given: jax.Array) -> jax.Array:
        return successor_values(lambda ended: jnp.sum(ended, axis=-1), *given)

    compiled = jax.jit(evaluate).lower(samples["values"], samples["observations"], samples["dones"]).compile()
    assert collectives_in_loops(compiled) == [[]]
