"""The diagonal Gaussian against SciPy, closed forms, derivatives and sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.references import Array, gaussian_kl, mean_of_clipped
from trpo_brax.policy import DiagonalGaussian

SHAPE = (6, 3)
"""States and action components."""


def random_parameters(seed: int, spread: float = 1.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return 2 * rng.standard_normal(SHAPE), spread * rng.standard_normal(SHAPE)


def distribution(parameters: tuple[Array, Array]) -> DiagonalGaussian:
    return DiagonalGaussian(*(jnp.asarray(part, jnp.result_type(float)) for part in parameters))


@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
def test_density_and_entropy_agree_with_scipy(double: bool) -> None:
    mean, log_std = random_parameters(0)
    actions = mean + 2 * np.random.default_rng(1).standard_normal(SHAPE)
    theirs = scipy.stats.norm(mean, np.exp(log_std))
    with jax.enable_x64(double):
        ours = distribution((mean, log_std))
        log_prob, entropy = ours.log_prob(jnp.asarray(actions)), ours.entropy()
    tolerance = 1e-12 if double else 1e-4
    np.testing.assert_allclose(log_prob, theirs.logpdf(actions).sum(axis=-1), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(entropy, theirs.entropy().sum(axis=-1), rtol=tolerance, atol=tolerance)


def test_a_log_std_shared_by_all_states_is_one_of_every_state() -> None:
    mean, (log_std, new_log_std) = random_parameters(0)[0], random_parameters(1)[1][:2]
    new_mean, actions = mean + 0.3, mean + np.random.default_rng(2).standard_normal(SHAPE)
    with jax.enable_x64(True):
        shared, new_shared = distribution((mean, log_std)), distribution((new_mean, new_log_std))
        everywhere, new_everywhere = (
            distribution((part.mean, np.broadcast_to(part.log_std, SHAPE))) for part in (shared, new_shared)
        )
        assert shared.log_std.shape == SHAPE[1:] and everywhere.log_std.shape == SHAPE
        log_prob, kl = shared.log_prob(jnp.asarray(actions)), shared.kl(new_shared)
        np.testing.assert_array_equal(log_prob, everywhere.log_prob(jnp.asarray(actions)))
        np.testing.assert_array_equal(kl, everywhere.kl(new_everywhere))
        for other in (shared.kl(new_everywhere), everywhere.kl(new_shared)):
            np.testing.assert_array_equal(other, kl)
        np.testing.assert_array_equal(shared.kl(shared), np.zeros(SHAPE[0]))
        # One entropy for all states, and the same for each.
        entropy = shared.entropy()
        assert entropy.shape == ()
        np.testing.assert_array_equal(np.broadcast_to(entropy, SHAPE[:1]), everywhere.entropy())
        noise = jnp.asarray(actions - mean)
        np.testing.assert_array_equal(shared.shifted(noise), everywhere.shifted(noise))
    theirs = scipy.stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(log_prob, theirs.logpdf(actions).sum(axis=-1), rtol=1e-12)
    np.testing.assert_allclose(kl, gaussian_kl(mean, log_std, new_mean, new_log_std), rtol=1e-12)
    np.testing.assert_allclose(entropy, theirs.entropy().sum(axis=-1)[0], rtol=1e-12)


def test_kl_agrees_with_its_closed_form_in_this_direction() -> None:
    old, new = random_parameters(0), random_parameters(1)
    with jax.enable_x64(True):
        result = np.asarray(distribution(old).kl(distribution(new)))
    np.testing.assert_allclose(result, gaussian_kl(*old, *new), rtol=1e-12)
    assert np.all(np.abs(gaussian_kl(*new, *old) - result) > 0.1 * np.abs(result))


def test_kl_keeps_its_digits_for_small_steps() -> None:
    # A typical trust region: KL near 1e-6 in single precision, against float64.
    old = tuple(np.float32(part) for part in random_parameters(2, 0.3))
    change = np.random.default_rng(3).standard_normal((2, *SHAPE))
    new = tuple(np.float32(part + 1e-3 * step) for part, step in zip(old, change, strict=True))
    result = distribution(old).kl(distribution(new))
    exact = gaussian_kl(*(np.float64(part) for part in (*old, *new)))
    assert exact.max() < 1e-4
    np.testing.assert_allclose(result, exact, rtol=1e-2)


def test_kl_is_the_expected_log_ratio() -> None:
    # 400,000 draws; tolerance 5 standard errors.
    old = tuple(part[:1] for part in random_parameters(4, 0.3))
    new = tuple(part[:1] + 0.3 for part in old)
    draws = scipy.stats.norm(old[0], np.exp(old[1])).rvs((400_000, SHAPE[1]), random_state=0)
    ratios = np.sum(
        scipy.stats.norm.logpdf(draws, old[0], np.exp(old[1])) - scipy.stats.norm.logpdf(draws, new[0], np.exp(new[1])),
        axis=-1,
    )
    expected = float(distribution(old).kl(distribution(new))[0])
    assert ratios.mean() == pytest.approx(expected, abs=5 * ratios.std() / np.sqrt(len(ratios)))


def test_kl_is_positive_for_all_but_itself() -> None:
    for seed in range(20):
        old, new = distribution(random_parameters(seed)), distribution(random_parameters(seed + 100))
        assert np.all(np.asarray(old.kl(new)) > 0)


@pytest.mark.parametrize("log_std", [-10.0, -5.0, 0.0, 2.0, 20.0])
def test_peer_defect_09_kl_of_a_distribution_with_itself_is_exactly_zero(log_std: float) -> None:
    """A peer adds 1e-5 inside the logarithm of its KL, so that a policy differs from itself."""
    for seed in range(20):
        mean, spread = random_parameters(seed, 0.1)
        same = distribution((1e3 * mean, log_std + spread))
        np.testing.assert_array_equal(same.kl(same), 0.0)
        np.testing.assert_array_equal(jax.jit(lambda a, b: a.kl(b))(same, same), 0.0)


def test_fisher_metric_is_the_hessian_of_the_kl() -> None:
    with jax.enable_x64(True):
        old = distribution(tuple(part[0] for part in random_parameters(5)))
        hessian = jax.hessian(old.kl)(old)
        for component in range(SHAPE[1]):
            for name in ("mean", "log_std"):
                unit = jax.tree.map(jnp.zeros_like, old)
                unit = unit.replace(**{name: getattr(unit, name).at[component].set(1.0)})
                applied = old.fisher_metric(unit)
                for other in ("mean", "log_std"):
                    row = getattr(getattr(hessian, other), name)[:, component]
                    np.testing.assert_allclose(getattr(applied, other), row, rtol=1e-12, atol=1e-14)


def test_fisher_metric_is_the_covariance_of_the_score() -> None:
    # 200,000 draws of one component. The scores squared have relative standard deviation at most sqrt(14), hence a
    # standard error below 0.85%; tolerance 4%.
    mean, log_std = 0.7, -0.4
    draws = mean + np.exp(log_std) * np.random.default_rng(6).standard_normal(200_000)
    score = jax.vmap(jax.grad(lambda p, a: p.log_prob(a)), in_axes=(None, 0))(
        DiagonalGaussian(jnp.asarray([mean]), jnp.asarray([log_std])), jnp.asarray(draws[:, None], jnp.float32)
    )
    covariance = np.cov(np.asarray(score.mean)[:, 0], np.asarray(score.log_std)[:, 0])
    ours = DiagonalGaussian(jnp.asarray([mean]), jnp.asarray([log_std])).fisher_metric(
        DiagonalGaussian(jnp.ones(1), jnp.ones(1))
    )
    assert covariance[0, 0] == pytest.approx(float(ours.mean[0]), rel=0.04)
    assert covariance[1, 1] == pytest.approx(float(ours.log_std[0]), rel=0.04)
    assert abs(covariance[0, 1]) < 0.04


def test_samples_have_the_moments_of_the_distribution() -> None:
    # 200,000 draws a component: 5 standard errors of mean and standard deviation, and a normal shape.
    draws = 200_000
    mean, log_std = (part[0] for part in random_parameters(7))
    wide = DiagonalGaussian(*(jnp.broadcast_to(jnp.asarray(part, jnp.float32), (draws, 3)) for part in (mean, log_std)))
    samples = np.asarray(wide.sample(jax.random.PRNGKey(0)), np.float64)
    std = np.exp(log_std)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < 5 * std / np.sqrt(draws))
    assert np.all(np.abs(samples.std(axis=0) / std - 1) < 5 / np.sqrt(2 * draws))
    standardized = (samples - mean) / std
    assert np.all(np.abs(scipy.stats.kurtosis(standardized)) < 5 * np.sqrt(24 / draws))
    assert np.abs(np.corrcoef(standardized.T) - np.eye(3)).max() < 5 / np.sqrt(draws)


@pytest.mark.parametrize("log_std", [-1000.0, -20.0, -5.0, -2.0, 0.0, 2.0])
def test_mean_action_is_the_mean_of_what_clipping_leaves(log_std: float) -> None:
    """Within the bounds, at them and beyond; of next to no spread it is the mean, clipped, and so where all is free."""
    mean = np.asarray([-0.999, -0.3, 0.0, 1.0, 1.7])
    ours = DiagonalGaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))
    wanted = np.clip(mean, -1.0, 1.0) if log_std < -10 else mean_of_clipped(mean, np.exp(log_std))
    np.testing.assert_allclose(ours.mean_within((True,) * 5), wanted, atol=3e-6)
    np.testing.assert_array_equal(ours.mean_within((False,) * 5), ours.mean)


def test_the_mean_is_the_densest_action_and_a_key_is_a_draw() -> None:
    ours = distribution(random_parameters(8))
    top = np.asarray(ours.log_prob(ours.mean))
    for seed in range(5):
        assert np.all(np.asarray(ours.log_prob(ours.sample(jax.random.PRNGKey(seed)))) < top)
    first, again, other = (ours.sample(jax.random.PRNGKey(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.all(np.asarray(first) != np.asarray(other))
