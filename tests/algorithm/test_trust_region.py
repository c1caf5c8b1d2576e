"""The whole policy step against an independent one in NumPy, and what it does when something is wrong."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tests import references
from tests.algorithm.policies import (
    OBSERVATION,
    as_jax,
    bytes_of,
    gaussian_policy,
    policy_batch,
    random_batch,
    random_network,
    shared_gaussian_policy,
    to_numpy,
)
from tests.references import Array, GaussianBatch, Network
from trpo_brax.algorithm import (
    ConjugateGradientResult,
    FullStep,
    PolicyBatch,
    StepOutcome,
    TrustRegionStep,
    anywhere,
    conjugate_gradient,
    generalized_advantage_estimation,
    inside_the_region,
    sample_weights,
    standardize,
    to_the_edge,
    trust_region_step,
)
from trpo_brax.policy import DiagonalGaussian

NAN, INF = float("nan"), float("inf")


@struct.dataclass
class Settings:
    """`TrustRegionConfig`'s defaults as an argument of the compiled program: one program for many values."""

    max_kl: Any = 0.01
    damping: Any = 0.1
    cg_iterations: Any = 10
    cg_tolerance: Any = 1e-3
    line_search_steps: Any = 10
    backtrack_factor: Any = 0.7
    acceptance_ratio: Any = 0.1
    anywhere: bool = struct.field(pytree_node=False, default=False)

    def options(self) -> dict[str, Any]:
        """Return what `trust_region_step` takes by keyword."""
        return {
            "damping": self.damping,
            "cg_iterations": self.cg_iterations,
            "cg_tolerance": self.cg_tolerance,
            "scale": to_the_edge(self.max_kl),
            "accept": anywhere if self.anywhere else inside_the_region(self.max_kl, self.acceptance_ratio),
            "max_trials": 1 if self.anywhere else self.line_search_steps,
            "backtrack_factor": self.backtrack_factor,
        }


DEFAULT = Settings()
EXACT = Settings(cg_iterations=200, cg_tolerance=1e-13)


@jax.jit
def compiled(policy: Any, batch: PolicyBatch, settings: Settings) -> TrustRegionStep:
    return trust_region_step(gaussian_policy, policy, batch, **settings.options())


@jax.jit
def compiled_many(policies: Any, batches: PolicyBatch, settings: Settings) -> TrustRegionStep:
    step_of = functools.partial(trust_region_step, gaussian_policy, **settings.options())
    return jax.vmap(step_of)(policies, batches)


def problem(seed: int, length: int = 6, environments: int = 5) -> tuple[Network, GaussianBatch]:
    """Return a policy and a batch that it sampled."""
    rng = np.random.default_rng(seed)
    policy = random_network(rng)
    return policy, random_batch(rng, policy, length, environments)


def step(settings: Settings, policy: Network, batch: GaussianBatch, stride: int = 1) -> TrustRegionStep:
    return compiled(as_jax(policy), policy_batch(batch, stride), settings)


def stacked(problems: list[tuple[Network, GaussianBatch]]) -> tuple[Any, PolicyBatch]:
    """Return the problems side by side, for `compiled_many`."""
    policies = [as_jax(policy) for policy, _ in problems]
    batches = [policy_batch(batch) for _, batch in problems]
    stack = lambda *leaves: jnp.stack(leaves)
    return jax.tree.map(stack, *policies), jax.tree.map(stack, *batches)


def assert_kept(result: TrustRegionStep, policy: Network, outcome: StepOutcome) -> None:
    """The parameters are bit for bit the old ones, the outcome is this, and every figure is that of no step."""
    assert StepOutcome(int(result.taken.outcome)) is outcome
    assert bytes_of(result.parameters) == bytes_of(as_jax(policy))
    assert [float(value) for value in result.taken.evaluation] == [0.0] * 4
    assert float(result.taken.fraction) == 0.0
    assert float(result.taken.predicted_improvement) == 0.0


# Against the reference


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("settings", "cg_iterations", "stride"),
    [
        (EXACT, 200, 1),
        (dataclasses.replace(EXACT, cg_iterations=5), 5, 1),
        (dataclasses.replace(EXACT, damping=0.0, max_kl=0.2), 200, 1),
        (dataclasses.replace(EXACT, damping=1e-3), 200, 3),
    ],
    ids=["converged", "five iterations", "undamped and long", "every third time step"],
)
def test_agrees_with_the_reference(
    float64: None, settings: Settings, cg_iterations: int, stride: int, seed: int
) -> None:
    policy, batch = problem(seed)
    expected = references.trust_region_step(
        policy, batch, max_kl=settings.max_kl, damping=settings.damping, cg_iterations=cg_iterations, stride=stride
    )
    result = step(settings, policy, batch, stride)
    assert expected.accepted
    assert result.taken.outcome == StepOutcome.ACCEPTED
    assert result.taken.trials == expected.trials
    assert float(result.taken.fraction) == pytest.approx(expected.fraction, rel=1e-12)
    taken = references.flatten(to_numpy(result.parameters)) - references.flatten(policy)
    wanted = references.flatten(expected.parameters) - references.flatten(policy)
    np.testing.assert_allclose(taken, wanted, atol=1e-8 * np.abs(wanted).max())
    evaluation = [float(value) for value in result.taken.evaluation[:3]]
    np.testing.assert_allclose(evaluation, [expected.improvement, expected.kl_mean, expected.kl_max], rtol=1e-7)
    assert float(result.taken.predicted_improvement) == pytest.approx(
        expected.fraction * expected.predicted_improvement, rel=1e-8
    )


def test_the_reference_backtracks_in_these_cases() -> None:
    # Otherwise the comparison above would say nothing about the line search.
    trials = set()
    for seed in range(3):
        policy, batch = problem(seed)
        for settings in ({"max_kl": 0.01, "damping": 0.1}, {"max_kl": 0.2, "damping": 0.0}):
            trials.add(references.trust_region_step(policy, batch, cg_iterations=200, **settings).trials)
    assert 1 in trials
    assert max(trials) > 1


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_reference_in_single_precision(seed: int) -> None:
    policy, batch = problem(seed)
    expected = references.trust_region_step(policy, batch, max_kl=0.01, damping=0.1, cg_iterations=200)
    result = step(dataclasses.replace(DEFAULT, cg_iterations=60, cg_tolerance=1e-6), policy, batch)
    assert result.taken.outcome == StepOutcome.ACCEPTED
    assert result.taken.trials == expected.trials
    taken = references.flatten(to_numpy(result.parameters)) - references.flatten(policy)
    wanted = references.flatten(expected.parameters) - references.flatten(policy)
    assert np.linalg.norm(taken - wanted) <= 1e-4 * np.linalg.norm(wanted)


# The full step


def damped_system(seed: int, damping: float) -> tuple[Array, Array, Array]:
    """Return the explicit Fisher matrix, damped and not, and the policy gradient."""
    policy, batch = problem(seed)
    fisher = references.gaussian_fisher(policy, batch)
    return fisher, fisher + damping * np.eye(len(fisher)), references.policy_gradient(policy, batch)


@functools.partial(jax.jit, static_argnames="cg_iterations")
def full_step(
    matrix: jax.Array, gradient: jax.Array, max_kl: float, cg_iterations: int
) -> tuple[FullStep, ConjugateGradientResult]:
    product = lambda v: jnp.matmul(matrix, v, precision="highest")
    solved = conjugate_gradient(product, gradient, max_iterations=cg_iterations, tolerance=0.0)
    return to_the_edge(max_kl)(solved, gradient), solved


@pytest.mark.parametrize("cg_iterations", [1, 4, 60])
@pytest.mark.parametrize(("max_kl", "damping"), [(0.01, 0.1), (1.0, 1e-3), (1e-6, 10.0)])
def test_the_damped_quadratic_model_of_the_full_step_is_the_trust_region(
    float64: None, cg_iterations: int, max_kl: float, damping: float
) -> None:
    fisher, damped, gradient = damped_system(0, damping)
    result, solved = full_step(jnp.asarray(damped), jnp.asarray(gradient), max_kl, cg_iterations)
    taken = np.asarray(result.step)
    assert result.outcome == StepOutcome.ACCEPTED
    assert 0.5 * taken @ damped @ taken == pytest.approx(max_kl, rel=1e-9)
    assert 0.5 * taken @ fisher @ taken < max_kl
    assert float(result.predicted_improvement) == pytest.approx(gradient @ taken, rel=1e-12)
    direction = references.krylov_solution(damped, gradient, cg_iterations)
    length = np.sqrt(2 * max_kl / (direction @ damped @ direction))
    np.testing.assert_allclose(taken, length * direction, rtol=1e-7, atol=1e-12)
    left = np.linalg.norm(gradient - damped @ direction) / np.linalg.norm(gradient)
    assert float(solved.relative_residual) == pytest.approx(left, rel=1e-6, abs=1e-12)
    assert solved.iterations == cg_iterations


def test_no_step_within_the_model_predicts_more(float64: None) -> None:
    _, damped, gradient = damped_system(1, 0.1)
    result, _ = full_step(jnp.asarray(damped), jnp.asarray(gradient), 0.01, 30)
    others = np.random.default_rng(0).standard_normal((1000, len(gradient))) + 3 * np.asarray(result.step)
    others *= np.sqrt(2 * 0.01 / np.einsum("np,pq,nq->n", others, damped, others))[:, None]
    assert (others @ gradient).max() < float(result.predicted_improvement)


@pytest.mark.parametrize(
    ("matrix", "gradient", "outcome"),
    [
        (-np.eye(3), [1.0, 2.0, 3.0], StepOutcome.BAD_CURVATURE),
        (np.zeros((3, 3)), [1.0, 2.0, 3.0], StepOutcome.BAD_CURVATURE),
        (np.diag([1.0, -1.0, 1.0]), [1.0, 5.0, 1.0], StepOutcome.BAD_CURVATURE),
        (np.diag([1.0, -1.0, 1.0]), [2.0, 1.0, 0.5], StepOutcome.BAD_CURVATURE),  # found in the second iteration
        (np.full((3, 3), NAN), [1.0, 2.0, 3.0], StepOutcome.BAD_CURVATURE),
        (np.diag([INF, 1.0, 1.0]), [1.0, 2.0, 3.0], StepOutcome.BAD_CURVATURE),
        (np.eye(3), [0.0, -0.0, 0.0], StepOutcome.ZERO_GRADIENT),
        (-np.eye(3), [0.0, 0.0, 0.0], StepOutcome.ZERO_GRADIENT),
        (np.eye(3), [1.0, NAN, 3.0], StepOutcome.NON_FINITE),
        (np.eye(3), [1.0, -INF, 3.0], StepOutcome.NON_FINITE),
        (np.eye(3), [1.0, 2.0, 3.0], StepOutcome.ACCEPTED),
    ],
)
def test_the_full_steps_outcome_is_named(matrix: Array, gradient: list[float], outcome: StepOutcome) -> None:
    result, _ = full_step(jnp.asarray(matrix, jnp.float32), jnp.asarray(gradient), 0.01, 10)
    assert StepOutcome(int(result.outcome)) is outcome


# What always holds


@pytest.mark.parametrize("max_kl", [0.003, 0.3])
def test_accepted_steps_are_inside_the_trust_region_and_better(max_kl: float) -> None:
    problems = [problem(seed) for seed in range(64)]
    results = compiled_many(*stacked(problems), dataclasses.replace(DEFAULT, max_kl=max_kl, damping=1e-3))
    accepted = np.asarray(results.taken.outcome) == StepOutcome.ACCEPTED
    assert accepted.sum() > 50
    for lane, (policy, batch) in enumerate(problems):
        kept = {name: np.asarray(leaf[lane], np.float64) for name, leaf in results.parameters.items()}
        old = to_numpy(as_jax(policy))
        improvement, kl_mean, kl_max = references.compare_policies(old, kept, batch)
        if not accepted[lane]:
            assert kl_max == 0.0
            continue
        assert float(results.taken.evaluation.kl_mean[lane]) <= np.float32(max_kl)
        assert kl_mean <= max_kl * (1 + 1e-4)
        assert improvement >= 0.1 * float(results.taken.predicted_improvement[lane]) * (1 - 1e-3) > 0
        assert float(results.taken.evaluation.kl_mean[lane]) == pytest.approx(kl_mean, rel=1e-3)
        assert float(results.taken.evaluation.kl_max[lane]) == pytest.approx(kl_max, rel=1e-3)
        assert float(results.taken.evaluation.improvement[lane]) == pytest.approx(improvement, rel=1e-3, abs=1e-5)


def test_many_steps_at_once_are_each_taken_alone() -> None:
    problems = [problem(seed) for seed in range(64)]  # as many as above: one program
    problems[2] = (problems[2][0], dataclasses.replace(problems[2][1], advantages=np.zeros((5, 6))))
    together = compiled_many(*stacked(problems), DEFAULT)
    for lane, (policy, batch) in enumerate(problems[:4]):
        alone = step(DEFAULT, policy, batch)
        assert together.taken.outcome[lane] == alone.taken.outcome
        assert together.taken.trials[lane] == alone.taken.trials
        many = references.flatten({name: leaf[lane] for name, leaf in together.parameters.items()})
        one, old = references.flatten(alone.parameters), references.flatten(policy)
        assert np.linalg.norm(many - one) <= 1e-2 * np.linalg.norm(one - old)
    assert together.taken.outcome[2] == StepOutcome.ZERO_GRADIENT


def with_standardized(batch: GaussianBatch, scale: float) -> GaussianBatch:
    """Return the batch with its advantages times `scale`, then centred and scaled as the iteration does."""
    advantages, _, _ = standardize(as_jax(scale * batch.advantages), as_jax(batch.weights))
    return dataclasses.replace(batch, advantages=np.asarray(advantages))


@pytest.mark.parametrize("scale", [2.0**-10, 8.0, 1234.5])
def test_scaling_advantages_changes_nothing(scale: float) -> None:
    policy, batch = problem(0)
    original = step(DEFAULT, policy, with_standardized(batch, 1.0))
    scaled = step(DEFAULT, policy, with_standardized(batch, scale))
    assert original.taken.outcome == scaled.taken.outcome == StepOutcome.ACCEPTED
    if np.log2(scale) % 1 == 0:
        assert bytes_of(original.parameters) == bytes_of(scaled.parameters)
    for one, other in zip(jax.tree.leaves(original.parameters), jax.tree.leaves(scaled.parameters), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)  # conjugate gradient amplifies rounding


def test_scaling_rewards_and_values_together_changes_nothing(float64: None) -> None:
    policy, batch = problem(1)
    rng = np.random.default_rng(0)
    rewards, values, next_values = rng.standard_normal((3, 6, 5))  # [T, N], as advantages are estimated
    dones = jnp.asarray(rng.uniform(size=(6, 5)) < 0.3)

    def parameters(scale: float) -> Any:
        raw, _ = generalized_advantage_estimation(
            *(jnp.asarray(scale * part) for part in (rewards, values, next_values)),
            jnp.zeros_like(dones),
            dones,
            discount=0.99,
            trace_decay=0.95,
        )
        advantages, _, _ = standardize(raw.T, as_jax(batch.weights))
        return step(EXACT, policy, dataclasses.replace(batch, advantages=np.asarray(advantages))).parameters

    np.testing.assert_allclose(references.flatten(parameters(1.0)), references.flatten(parameters(37.0)), atol=1e-11)


def test_permuting_environments_changes_nothing_but_rounding(float64: None) -> None:
    policy, batch = problem(2)
    order = np.random.default_rng(0).permutation(5)
    permuted = GaussianBatch(*(getattr(batch, field.name)[order] for field in dataclasses.fields(batch)))
    settings = dataclasses.replace(EXACT, damping=1e-3)
    one, other = step(settings, policy, batch, 3), step(settings, policy, permuted, 3)
    assert one.taken.outcome == other.taken.outcome == StepOutcome.ACCEPTED
    np.testing.assert_allclose(references.flatten(one.parameters), references.flatten(other.parameters), atol=1e-11)


def test_a_log_std_shared_by_all_states_takes_the_same_step(float64: None) -> None:
    policy, batch = problem(3)
    of_shared = functools.partial(trust_region_step, shared_gaussian_policy, **EXACT.options())
    result = jax.jit(of_shared)(as_jax(policy), policy_batch(batch, 3))
    expected = step(EXACT, policy, batch, 3)
    assert result.taken.outcome == expected.taken.outcome == StepOutcome.ACCEPTED
    assert result.taken.trials == expected.taken.trials
    np.testing.assert_allclose(np.stack(result.taken.evaluation), np.stack(expected.taken.evaluation), rtol=1e-8)
    np.testing.assert_allclose(
        references.flatten(result.parameters), references.flatten(expected.parameters), rtol=1e-9, atol=1e-10
    )


def test_at_the_old_policy_the_compiled_step_finds_exactly_nothing() -> None:
    # A step too short to change any parameter evaluates the old policy against itself inside the compiled program.
    policy, batch = problem(4)
    policy = {name: np.where(np.abs(value) < 0.1, 0.1, value) for name, value in policy.items()}
    result = step(dataclasses.replace(DEFAULT, anywhere=True, max_kl=1e-24), policy, batch)
    assert result.taken.outcome == StepOutcome.ACCEPTED
    assert bytes_of(result.parameters) == bytes_of(as_jax(policy))
    assert [float(value) for value in result.taken.evaluation] == [0.0] * 4
    refused = step(dataclasses.replace(DEFAULT, max_kl=1e-24), policy, batch)
    assert_kept(refused, policy, StepOutcome.NO_IMPROVEMENT)


# When something is wrong


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("field", ["observations", "actions", "advantages"])
def test_one_number_that_is_not_finite_keeps_the_parameters(field: str, poison: float) -> None:
    policy, batch = problem(0)
    spoilt = getattr(batch, field).copy()
    where = tuple(np.argwhere(batch.weights > 0)[7])
    spoilt[where] = poison
    result = step(DEFAULT, policy, dataclasses.replace(batch, **{field: spoilt}))
    if field == "observations" and np.isinf(poison):
        # tanh saturates: an infinite observation is a finite policy, but its derivative by the weights is not.
        assert StepOutcome(int(result.taken.outcome)) in (StepOutcome.NON_FINITE, StepOutcome.BAD_CURVATURE)
        assert_kept(result, policy, StepOutcome(int(result.taken.outcome)))
    else:
        assert_kept(result, policy, StepOutcome.NON_FINITE)


def test_a_parameter_that_is_not_finite_is_left_alone() -> None:
    policy, batch = problem(0)
    policy["b1"][1] = NAN
    assert_kept(step(DEFAULT, policy, batch), policy, StepOutcome.NON_FINITE)


def test_zero_advantages_keep_the_parameters() -> None:
    policy, batch = problem(0)
    result = step(DEFAULT, policy, dataclasses.replace(batch, advantages=np.zeros_like(batch.advantages)))
    assert_kept(result, policy, StepOutcome.ZERO_GRADIENT)
    assert (int(result.solved.iterations), int(result.taken.trials), float(result.solved.relative_residual)) == (
        0,
        0,
        0.0,
    )


def test_no_valid_sample_keeps_the_parameters() -> None:
    policy, batch = problem(0)
    weights = np.asarray(sample_weights(jnp.zeros((5, 6), bool)))
    result = step(DEFAULT, policy, dataclasses.replace(batch, weights=weights))
    assert_kept(result, policy, StepOutcome.ZERO_GRADIENT)


@functools.partial(jax.jit, static_argnames="everywhere")
def step_with_wrong_metric(
    policy: Any, batch: PolicyBatch, sign_of_mean: jax.Array, everywhere: bool
) -> TrustRegionStep:
    @struct.dataclass
    class WrongMetric(DiagonalGaussian):
        """A Gaussian whose metric is negative on log sigma, and on the mean as told."""

        def fisher_metric(self, tangent: DiagonalGaussian) -> DiagonalGaussian:
            return tangent.replace(mean=sign_of_mean * tangent.mean, log_std=-50.0 * tangent.log_std)

    def distribution_of(parameters: Any, observations: jax.Array) -> WrongMetric:
        right = gaussian_policy(parameters, observations)
        return WrongMetric(right.mean, right.log_std)

    settings = dataclasses.replace(DEFAULT, damping=1e-3, anywhere=everywhere)
    return trust_region_step(distribution_of, policy, batch, **settings.options())


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("sign_of_mean", [-1.0, 1.0], ids=["negative definite", "indefinite"])
def test_negative_curvature_keeps_the_parameters(sign_of_mean: float, everywhere: bool) -> None:
    policy, batch = problem(0)
    result = step_with_wrong_metric(as_jax(policy), policy_batch(batch), jnp.float32(sign_of_mean), everywhere)
    assert_kept(result, policy, StepOutcome.BAD_CURVATURE)
    assert result.taken.trials == 0


@pytest.mark.parametrize("seed", range(4))
def test_solving_far_past_convergence_is_not_bad_curvature(seed: int) -> None:
    policy, batch = problem(seed)
    expected = references.trust_region_step(policy, batch, max_kl=0.01, damping=0.1, cg_iterations=200)
    result = step(dataclasses.replace(DEFAULT, cg_iterations=500, cg_tolerance=0.0), policy, batch)
    assert StepOutcome(int(result.taken.outcome)) is StepOutcome.ACCEPTED
    taken = references.flatten(result.parameters) - references.flatten(policy)
    wanted = references.flatten(expected.parameters) - references.flatten(policy)
    assert np.linalg.norm(taken - wanted) <= 1e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        (dataclasses.replace(DEFAULT, max_kl=3.0, damping=0.0, line_search_steps=1), StepOutcome.KL_EXCEEDED),
        (dataclasses.replace(DEFAULT, max_kl=0.3, acceptance_ratio=0.999), StepOutcome.NO_IMPROVEMENT),
        (dataclasses.replace(DEFAULT, max_kl=3e38), StepOutcome.NON_FINITE),
    ],
    ids=["too far", "too little", "overflow"],
)
def test_a_refused_step_keeps_the_parameters_and_says_why(settings: Settings, outcome: StepOutcome) -> None:
    policy, batch = problem(0)
    result = step(settings, policy, batch)
    assert_kept(result, policy, outcome)
    assert result.taken.trials == settings.line_search_steps


# Natural gradient


def test_natural_gradient_takes_the_full_step_however_far(float64: None) -> None:
    policy, batch = problem(0)
    settings = dataclasses.replace(EXACT, anywhere=True, max_kl=3.0, damping=0.0)
    expected = references.trust_region_step(policy, batch, max_kl=3.0, damping=0.0, cg_iterations=200)
    result = step(settings, policy, batch)
    assert result.taken.outcome == StepOutcome.ACCEPTED
    assert (float(result.taken.fraction), int(result.taken.trials)) == (1.0, 1)
    taken = references.flatten(to_numpy(result.parameters)) - references.flatten(policy)
    np.testing.assert_allclose(taken, expected.full_step, atol=1e-7 * np.abs(taken).max())
    _, kl_mean, _ = references.compare_policies(policy, to_numpy(result.parameters), batch)
    assert float(result.taken.evaluation.kl_mean) == pytest.approx(kl_mean, rel=1e-8)
    assert kl_mean > settings.max_kl
    assert float(result.taken.predicted_improvement) == pytest.approx(expected.predicted_improvement, rel=1e-7)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"advantages": NAN}, StepOutcome.NON_FINITE),
        ({"observations": NAN}, StepOutcome.NON_FINITE),
        ({"advantages": 0.0}, StepOutcome.ZERO_GRADIENT),
        ({"max_kl": 3e38}, StepOutcome.NON_FINITE),
    ],
    ids=str,
)
def test_natural_gradient_keeps_the_parameters_where_it_cannot_step(
    change: dict[str, float], outcome: StepOutcome
) -> None:
    policy, batch = problem(0)
    settings = dataclasses.replace(DEFAULT, anywhere=True, max_kl=change.pop("max_kl", 1.0))
    spoilt = {field: np.full_like(getattr(batch, field), value) for field, value in change.items()}
    result = step(settings, policy, dataclasses.replace(batch, **spoilt))
    assert_kept(result, policy, outcome)
    assert result.taken.trials == (1 if settings.max_kl > 1 else 0)


def test_a_step_follows_the_gradient_of_its_own_batch_only() -> None:
    # One state, one action better than the mean: the mean moves towards it, by no more than the trust region allows.
    policy, _ = problem(0)
    observation = np.zeros((5, 6, OBSERVATION))
    mean = references.network_output(policy, observation)
    sign = np.where(np.arange(30).reshape(5, 6) % 2, 1.0, -1.0)
    actions = mean + sign[..., None] * np.exp(policy["log_std"]) * np.asarray([1.0, 0.0])
    batch = GaussianBatch(observation, actions, sign, np.full((5, 6), 1 / 30))
    result = step(dataclasses.replace(DEFAULT, damping=1e-3), policy, batch)
    moved = references.network_output(to_numpy(result.parameters), observation)[0, 0] - mean[0, 0]
    # Mean KL = (shift / sigma)^2 / 2 = delta: the largest shift along the first action is sigma sqrt(2 delta).
    limit = np.exp(policy["log_std"][0]) * np.sqrt(2 * 0.01)
    assert 0.6 * limit < moved[0] <= limit
    assert abs(moved[1]) < 0.05 * limit
