"""A roofline on paper: what one iteration costs by XLA's own count, and what that allows on a stated GPU.

    python experiments/roofline.py --tasks ant humanoid

Computed, not measured: no GPU is needed, and none is used. An iteration is taken apart into pieces without loops. Each
is lowered on abstract shapes, never compiled, and XLA's cost analysis counts its program before optimisation; the
pieces are then multiplied by how often an iteration takes them. Results go to experiments/results/roofline.csv, and
tables to standard output.

- XLA counts a loop's body once, whatever the trip count. Brax's control step is a scan over `n_frames` simulator steps,
  so one simulator step is counted by itself and taken T x n_frames times, and the control step around it without it.
- Operations: of every type, comparisons included, a transcendental function as one. Random numbers, the critic at the
  few observations that ended something and the starting states that an iteration draws for resets are left out.
- Bytes, least: what a piece reads and gives moves once, and nothing in between does.
- Bytes, unfused: every operation reads and writes memory, as in the program before optimisation. Far too many.
- Time, least: the larger of operations / peak and least bytes / bandwidth, piece by piece. Only a program that keeps
  arrays in caches between pieces could be faster.
- Launches, an assumption: each matrix product, reduction, scatter and sort starts a kernel of its own, all else is
  fused into these, and no kernel takes less than `launch_microseconds`. The time with launches is the larger one.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jax.flatten_util import ravel_pytree

from trpo_brax.algorithm import (
    PolicyBatch,
    UnitGaussian,
    ValueBatch,
    evaluator,
    fit_by_gauss_newton,
    generalized_advantage_estimation,
    sample_weights,
    standardize,
)
from trpo_brax.benchmark.flops import counting_device
from trpo_brax.benchmark.update import chained_products, of_vector, surrogate_gradient
from trpo_brax.config import Config, override
from trpo_brax.environments import Task, VectorizedEnvironment, brax_task
from trpo_brax.environments.vectorized import POOL_SIZE
from trpo_brax.learner.program import policy_specification
from trpo_brax.learner.steps import policy_batch, value_batch
from trpo_brax.policy import DiagonalGaussian, Networks, ObservationStatistics
from trpo_brax.presets import preset

RESULTS = Path(__file__).parent / "results" / "roofline.csv"
PHYSICS, ACTING, LEARNING = "physics", "acting", "learning"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A roofline on paper: what one iteration costs by XLA's own count, and what that allows on a stated GPU."""

    tasks: tuple[str, ...] = ("ant", "humanoid")
    """Tasks, with their presets."""
    num_envs: int = 4096
    """Environments."""
    line_search_trials: int = 1
    """Candidates evaluated in an iteration; conjugate gradient is taken to need all its iterations."""
    gpu: str = "NVIDIA H100 SXM"
    """Whose figures the next two are, by the vendor's data sheet."""
    peak_teraflops: float = 67.0
    """Float32 operations, in 10^12 a second, without tensor cores: the learner asks for full float32 precision."""
    bandwidth_terabytes: float = 3.35
    """Memory traffic, in 10^12 bytes a second."""
    launch_microseconds: float = 3.0
    """Assumed least time of a kernel, in microseconds."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one execution of a piece takes."""

    operations: float
    bytes_least: float
    bytes_unfused: float
    kernels: int

    def __sub__(self, other: Cost) -> Cost:
        """Return what is left without `other`."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(ours - theirs for ours, theirs in pairs))


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of the iteration."""

    name: str
    part: str
    """physics, acting or learning."""
    count: int
    """Executions in one iteration."""
    cost: Cost

    def seconds(self, arguments: Arguments) -> float:
        """Return the least seconds in one iteration."""
        return self.count * max(self._computing(arguments), self._moving(arguments))

    def bound(self, arguments: Arguments) -> str:
        """Return what bounds it."""
        return "arithmetic" if self._computing(arguments) > self._moving(arguments) else "memory"

    def seconds_with_launches(self, arguments: Arguments) -> float:
        """Return the seconds in one iteration if every kernel takes at least the assumed time."""
        return max(self.seconds(arguments), self.count * self.cost.kernels * arguments.launch_microseconds * 1e-6)

    def _computing(self, arguments: Arguments) -> float:
        return self.cost.operations / (arguments.peak_teraflops * 1e12)

    def _moving(self, arguments: Arguments) -> float:
        return self.cost.bytes_least / (arguments.bandwidth_terabytes * 1e12)


# Counting


def cost_of(function: Callable[..., Any], *shapes: Any, loops: bool = False) -> Cost:
    """Count one execution of `function` at abstract arguments.

    Raises:
        ValueError: there is a loop of more than one trip in it, and `loops` does not say that its body counts once.
    """
    with jax.default_device(counting_device()):
        traced = jax.jit(function).trace(*shapes)
        analysis: Any = traced.lower().cost_analysis()
    jaxpr = traced.jaxpr.jaxpr
    for equation in () if loops else _equations(jaxpr):
        if equation.primitive.name == "while" or equation.params.get("length", 1) > 1:
            raise ValueError(f"a loop within {function}, of which XLA would count one trip.")
    read = {variable for equation in jaxpr.eqns for variable in equation.invars if not hasattr(variable, "val")}
    given = set(jaxpr.invars)
    moved = [variable for variable in jaxpr.invars if variable in read]
    moved += [variable for variable in jaxpr.outvars if not hasattr(variable, "val") and variable not in given]
    return Cost(
        operations=float(analysis["flops"]) + float(analysis.get("transcendentals", 0.0)),
        bytes_least=_bytes([variable.aval for variable in moved]),
        bytes_unfused=float(analysis["bytes accessed"]),
        kernels=max(1, sum(_starts_a_kernel(equation.primitive.name) for equation in _equations(jaxpr))),
    )


def _bytes(arrays: Iterable[Any]) -> float:
    return float(sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Return all equations, a loop's once."""
    for equation in jaxpr.eqns:
        yield equation
        values = itertools.chain.from_iterable(
            value if isinstance(value, (tuple, list)) else (value,) for value in equation.params.values()
        )
        for value in values:
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _starts_a_kernel(primitive: str) -> bool:
    return primitive in ("dot_general", "sort") or primitive.startswith(("reduce_", "scatter", "cum", "arg"))


# The pieces


def pieces_of(config: Config, arguments: Arguments) -> list[Piece]:
    """Return the pieces of one iteration."""
    task = brax_task(config.task, config.rollout.backend)
    return [*_physics(config, task), *_learner(config, task, arguments.line_search_trials)]


def _physics(config: Config, task: Task) -> list[Piece]:
    rollout = config.rollout
    if rollout.action_repeat != 1:
        raise ValueError("action_repeat is a loop of its own, which is not counted here.")
    num_envs, length, brax = rollout.num_envs, rollout.unroll_length, task.environment
    environment = VectorizedEnvironment(task, episode_length=rollout.episode_length)
    keys, actions = _array(num_envs, 2, dtype=jnp.uint32), _array(num_envs, len(task.action_low))
    start = jax.eval_shape(environment.reset, keys)
    pool = jax.eval_shape(environment.starting_pool, keys)
    system = brax.sys
    simulate = brax._pipeline.step
    simulator_step = cost_of(
        jax.vmap(lambda state, action: simulate(system, state, action)), start.state.pipeline_state, actions
    )
    looped = cost_of(jax.vmap(brax.pipeline_step), start.state.pipeline_state, actions, loops=True)
    control_step = cost_of(environment.step, start, actions, pool, _array(num_envs, dtype=jnp.int32), loops=True)
    # Of its starting states every environment reads one.
    unread = (1 - 1 / POOL_SIZE) * _bytes(jax.tree.leaves(pool))
    around = dataclasses.replace(control_step - looped, bytes_least=control_step.bytes_least - unread)
    frames = int(brax._n_frames)
    return [
        Piece("simulator step", PHYSICS, length * frames, simulator_step),
        Piece("control step around it", PHYSICS, length, around),
    ]


def _learner(config: Config, task: Task, trials: int) -> list[Piece]:
    num_envs, length = config.rollout.num_envs, config.rollout.unroll_length
    specification = policy_specification(config, task)
    networks, bounds = specification.networks(), specification.bounds
    observation, action = task.observation_size, bounds.size
    clip = config.network.observation_clip
    policy = networks.initial_policy(jax.random.PRNGKey(0))
    critic = networks.initial_critic(jax.random.PRNGKey(0))
    statistics = ObservationStatistics.empty(observation)
    settings = config.trust_region
    theta, of_theta = of_vector(networks.distribution, policy)

    def act(moments: ObservationStatistics, observations: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        raw = networks.distribution(policy, moments.normalize(observations, clip)).shifted(noise)
        return raw, bounds.to_environment(raw)

    def judge(moments: ObservationStatistics, observations: jax.Array) -> jax.Array:
        return networks.value(critic, moments.normalize(observations, clip))

    def estimate(rewards: jax.Array, values: jax.Array, following: jax.Array, ends: jax.Array, dones: jax.Array) -> Any:
        return generalized_advantage_estimation(
            rewards,
            values,
            following,
            ends,
            dones,
            discount=settings.discount,
            trace_decay=settings.trace_decay,
        )

    def evaluate(vector: jax.Array, old_mean: jax.Array, old_log_std: jax.Array, batch: PolicyBatch) -> Any:
        return evaluator(DiagonalGaussian(old_mean, old_log_std), batch)(of_theta(vector, batch.inputs))

    samples = (_array(num_envs, length, observation), _array(num_envs, length, action), *[_array(num_envs, length)] * 2)
    batch = jax.eval_shape(functools.partial(policy_batch, fisher_fraction=settings.fisher_fraction), *samples)
    vector = _array(theta.size)
    shared = (vector, batch.fisher_inputs, batch.fisher_weights, vector)
    one, two = (cost_of(chained_products(of_theta, settings.damping, count), *shared) for count in (1, 2))
    # Everything but the state of the direction is read by each product again.
    product = dataclasses.replace(two - one, bytes_least=one.bytes_least)
    observations, row = _array(num_envs, length, observation), _array(1, num_envs)
    flag = _array(1, num_envs, dtype=jnp.bool_)
    critic_step, critic_product = _critic_costs(config, networks, critic.network)
    return [
        Piece(
            "policy", ACTING, length, cost_of(act, statistics, _array(num_envs, observation), _array(num_envs, action))
        ),
        Piece("critic", LEARNING, 1, cost_of(judge, statistics, observations)),
        # Loops of one trip are counted right. Once for the step, and once for how much the critic explains.
        Piece("advantages of one step", LEARNING, 2 * length, cost_of(estimate, row, row, row, flag, flag)),
        Piece(
            "advantages standardised",
            LEARNING,
            1,
            cost_of(
                lambda advantages, valid: standardize(advantages, sample_weights(valid)),
                _array(num_envs, length),
                _array(num_envs, length, dtype=jnp.bool_),
            ),
        ),
        Piece("policy gradient", LEARNING, 1, cost_of(functools.partial(surrogate_gradient, of_theta), vector, batch)),
        Piece("Fisher linearisation", LEARNING, 1, dataclasses.replace(one - product, bytes_least=one.bytes_least)),
        Piece("Fisher product", LEARNING, settings.cg_iterations, product),
        Piece(
            "line search evaluation",
            LEARNING,
            trials,
            cost_of(evaluate, vector, _array(num_envs * length, action), _array(action), batch),
        ),
        Piece("critic step with one product", LEARNING, config.critic.critic_steps, critic_step),
        Piece(
            "further Gauss-Newton product",
            LEARNING,
            config.critic.critic_steps * (config.critic.critic_cg_iterations - 1),
            critic_product,
        ),
        Piece(
            "observation statistics",
            LEARNING,
            1,
            cost_of(
                lambda moments, seen, valid: moments.updated(seen, valid),
                statistics,
                observations,
                _array(num_envs, length, dtype=jnp.bool_),
            ),
        ),
    ]


def _critic_costs(config: Config, networks: Networks, network: Any) -> tuple[Cost, Cost]:
    """Count a Gauss-Newton step of the critic that takes one product, and a product."""
    settings, (num_envs, length) = config.critic, (config.rollout.num_envs, config.rollout.unroll_length)

    def step(parameters: Any, batch: ValueBatch) -> Any:
        return fit_by_gauss_newton(
            networks.normalized_value,
            parameters,
            batch,
            steps=1,
            damping=settings.critic_damping,
            cg_iterations=1,
            cg_tolerance=0.0,
        ).parameters

    batch = jax.eval_shape(
        functools.partial(value_batch, fraction=settings.critic_fraction),
        _array(num_envs, length, networks.observation_size),
        *[_array(num_envs, length)] * 2,
    )
    vector, as_tree = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), network))

    def value(candidate: jax.Array, inputs: jax.Array) -> Any:
        return UnitGaussian(networks.normalized_value(as_tree(candidate), inputs)[..., None])

    direction = _array(vector.size)
    shared = (direction, batch.fisher_inputs, batch.fisher_weights, direction)
    one, two = (cost_of(chained_products(value, settings.critic_damping, count), *shared) for count in (1, 2))
    return cost_of(step, network, batch, loops=True), dataclasses.replace(two - one, bytes_least=one.bytes_least)


def _array(*shape: int, dtype: Any = jnp.float32) -> Any:
    """Return an array's shape and dtype, for whoever takes the array itself."""
    return jax.ShapeDtypeStruct(shape, dtype)


# What it says


def main(arguments: Arguments) -> None:
    """Count, write and print."""
    jax.config.update("jax_platforms", "cpu")
    rows, lines = [], []
    for task in arguments.tasks:
        config = override(preset(task), num_envs=arguments.num_envs)
        pieces = pieces_of(config, arguments)
        rows += [_row(task, piece, arguments) for piece in pieces]
        lines.append(_summary(task, config, pieces, arguments))
        _print_pieces(task, config, pieces, arguments)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    gpu = f"{arguments.gpu}, {arguments.peak_teraflops:g} Tflop/s, {arguments.bandwidth_terabytes:g} TB/s"
    print(f"\nComputed, not measured; {arguments.num_envs:,} environments; {gpu}.\n")
    _print_table(
        (
            "task",
            "Gflop / iteration",
            "least GB",
            "learning, of operations",
            "least time",
            "steps / s at most",
            "learning, of that time",
            f"steps / s with {arguments.launch_microseconds:g} µs a kernel (assumed)",
            "learning, of that time",
        ),
        lines,
    )


def _row(task: str, piece: Piece, arguments: Arguments) -> dict[str, str | int]:
    cost = piece.cost
    return {
        "basis": "computed, not measured",
        "gpu": arguments.gpu,
        "task": task,
        "num_envs": arguments.num_envs,
        "piece": piece.name,
        "part": piece.part,
        "count": piece.count,
        "operations_each": f"{cost.operations:.6g}",
        "bytes_least_each": f"{cost.bytes_least:.6g}",
        "bytes_unfused_each": f"{cost.bytes_unfused:.6g}",
        "bound_by": piece.bound(arguments),
        "milliseconds_least": f"{1e3 * piece.seconds(arguments):.4g}",
        "kernels_each_assumed": cost.kernels,
        "milliseconds_with_launches_assumed": f"{1e3 * piece.seconds_with_launches(arguments):.4g}",
    }


def _summary(task: str, config: Config, pieces: list[Piece], arguments: Arguments) -> tuple[str, ...]:
    def share(amount: Callable[[Piece], float]) -> tuple[float, str]:
        total = sum(amount(piece) for piece in pieces)
        learning = sum(amount(piece) for piece in pieces if piece.part == LEARNING)
        return total, f"{100 * learning / total:.0f} %"

    operations, of_operations = share(lambda piece: piece.count * piece.cost.operations)
    least, _ = share(lambda piece: piece.count * piece.cost.bytes_least)
    seconds, of_time = share(lambda piece: piece.seconds(arguments))
    launched, of_launched = share(lambda piece: piece.seconds_with_launches(arguments))
    steps = config.steps_per_iteration
    return (
        task,
        f"{operations / 1e9:,.0f}",
        f"{least / 1e9:,.1f}",
        of_operations,
        f"{1e3 * seconds:.1f} ms",
        f"{steps / seconds / 1e6:,.1f} million",
        of_time,
        f"{steps / launched / 1e6:,.2f} million",
        of_launched,
    )


def _print_pieces(task: str, config: Config, pieces: list[Piece], arguments: Arguments) -> None:
    print(f"\n{task}, {arguments.num_envs:,} environments x {config.rollout.unroll_length} steps, one iteration:\n")
    _print_table(
        (
            "piece",
            "part",
            "count",
            "Mflop",
            "least MB",
            "unfused MB",
            "bound by",
            "least ms",
            "kernels",
            "ms with launches",
        ),
        [
            (
                piece.name,
                piece.part,
                f"{piece.count:,}",
                f"{piece.cost.operations / 1e6:,.1f}",
                f"{piece.cost.bytes_least / 1e6:,.1f}",
                f"{piece.cost.bytes_unfused / 1e6:,.0f}",
                piece.bound(arguments),
                f"{1e3 * piece.seconds(arguments):.3f}",
                str(piece.cost.kernels),
                f"{1e3 * piece.seconds_with_launches(arguments):.2f}",
            )
            for piece in pieces
        ],
    )


def _print_table(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> None:
    for line in (header, ("---",) * len(header), *lines):
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
