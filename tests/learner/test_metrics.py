"""What an iteration says about itself: the promised keys, null for no value, and figures NumPy agrees with."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.tiny_environments import PointMass
from tests.tiny_runs import TINY, train_tiny
from trpo_brax.algorithm import ConjugateGradientResult, LineSearchResult, StepOutcome, TrustRegionStep
from trpo_brax.algorithm.surrogate import Evaluation
from trpo_brax.config import override
from trpo_brax.environments import Transition
from trpo_brax.learner.metrics import (
    experience_metrics,
    fingerprint,
    observation_metrics,
    record,
    step_metrics,
)
from trpo_brax.learner.rollout import Trajectory
from trpo_brax.policy import ActionBounds, ObservationStatistics
from trpo_brax.runs.run import Run

OUTCOMES = ["accepted", "kl_exceeded", "no_improvement", "non_finite", "zero_gradient", "bad_curvature", "warm_up"]
KEYS = {
    "seed",
    "iteration",
    "env_steps",
    "wall_time_s",
    "steps_per_second",
    "episodes",
    "episode_return_mean",
    "episode_return_std",
    "episode_return_min",
    "episode_length_mean",
    "surrogate_improvement",
    "surrogate_improvement_predicted",
    "kl_mean",
    "kl_max",
    "cg_iterations",
    "cg_relative_residual",
    "line_search_trials",
    "step_fraction",
    "step_outcome",
    "entropy",
    "max_kl",
    "normalisation_kl",
    "critic_loss",
    "explained_variance",
    "explained_variance_of_returns",
    "nonfinite_envs",
    "nonfinite_share",
    "advantage_max_abs",
    "reward_max_abs",
    "improvement_lower_bound",
    "penalty_coefficient",
    "discount",
    "damping",
    "parameter_fingerprint",
    "action_saturation",
    "observation_constant_share",
    "observation_max_abs",
    "observation_spread_min",
    "environment",
}
OF_EPISODES = {"episode_return_mean", "episode_return_std", "episode_return_min", "episode_length_mean"}


def read(run: Run) -> list[dict[str, Any]]:
    """Parse metrics.jsonl as strict JSON."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} in metrics.jsonl")

    return [json.loads(line, parse_constant=refuse) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run in whose every iteration episodes end."""
    return train_tiny(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run in which no episode ends."""
    config = override(TINY, episode_length=1000, spread_initial_steps=False, discount=1.0, total_steps=2 * 64)
    return train_tiny(tmp_path_factory.mktemp("endless") / "run", PointMass(), config)


class TestRecords:
    """metrics.jsonl of real runs."""

    def test_keys_are_exactly_those_promised(self, run: Run, endless: Run) -> None:
        for row in read(run) + read(endless):
            assert set(row) == KEYS
        assert set(read(run)[0]["environment"]) == {"distance", "effort"}
        assert set(read(endless)[0]["environment"]) == {"distance"}

    def test_a_metric_of_an_environment_may_be_called_like_one_of_ours(self) -> None:
        own = {"step_outcome": np.float32(np.nan), "parameter_fingerprint": np.float32(0.5), "iteration": np.int32(3)}
        assert record({"environment": own}) == {
            "environment": {"step_outcome": None, "parameter_fingerprint": 0.5, "iteration": 3}
        }

    def test_one_object_an_iteration(self, run: Run) -> None:
        records = read(run)
        assert [row["iteration"] for row in records] == [1, 2, 3, 4]
        assert [row["env_steps"] for row in records] == [64, 128, 192, 256]
        times = [row["wall_time_s"] for row in records]
        assert times[0] > 0 and times == sorted(times)
        assert all(row["steps_per_second"] > 0 for row in records)
        assert run.metrics() == records

    def test_values_are_what_their_names_say(self, run: Run) -> None:
        settings = TINY.trust_region
        for row in read(run):
            for name in ("episodes", "cg_iterations", "line_search_trials", "nonfinite_envs"):
                assert type(row[name]) is int and row[name] >= 0
            assert row["episodes"] > 0 and row["episode_return_min"] <= row["episode_return_mean"]
            assert 2 <= row["episode_length_mean"] <= 7
            assert row["step_outcome"] in OUTCOMES
            assert (row["discount"], row["damping"]) == pytest.approx((settings.discount, settings.damping))
            assert 0 <= row["action_saturation"] <= 1
            assert row["observation_constant_share"] == 0 and row["observation_max_abs"] > 0
            assert 0 < row["observation_spread_min"] <= 1
            assert 0 <= row["kl_mean"] <= settings.max_kl and row["kl_mean"] <= row["kl_max"]
            assert (row["step_fraction"] > 0) == (row["step_outcome"] == "accepted")
            assert len(row["parameter_fingerprint"]) == 8 and int(row["parameter_fingerprint"], 16) >= 0
            # C = 4 eps gamma / (1 - gamma)^2
            penalty = 4 * row["advantage_max_abs"] * settings.discount / (1 - settings.discount) ** 2
            assert row["penalty_coefficient"] == pytest.approx(penalty, rel=1e-4)
            gain = row["improvement_lower_bound"] + penalty * row["kl_max"]
            assert abs(gain) * (1 - settings.discount) <= 2 * row["advantage_max_abs"]

    def test_the_fingerprint_is_that_of_the_parameters_kept(self, run: Run) -> None:
        records = read(run)
        for iteration in (2, 4):
            told = records[iteration - 1]["parameter_fingerprint"]
            assert told == f"{int(fingerprint(run.policy(iteration).parameters)):08x}"
        prints = {row["parameter_fingerprint"] for row in records}
        assert len(prints) == len(records)

    def test_no_value_is_null(self, endless: Run) -> None:
        for row in read(endless):
            assert row["episodes"] == 0
            assert {name for name, value in row.items() if value is None} == OF_EPISODES | {
                "penalty_coefficient",
                "improvement_lower_bound",
            }
            assert row["environment"] == {"distance": None}


N, T = 5, 6


def trajectory(generator: np.random.Generator, ended: np.ndarray, valid: np.ndarray) -> Trajectory:
    """Return a trajectory that holds rubbish wherever no episode ended."""

    def rubbish(values: np.ndarray) -> np.ndarray:
        other = generator.choice([np.nan, np.inf, -np.inf, 1e30], values.shape).astype(np.float32)
        return np.where(ended, values, other)

    return Trajectory(
        observations=np.zeros((N, T, 2), np.float32),
        actions=np.zeros((N, T, 1), np.float32),
        transitions=Transition(
            next_observation=np.zeros((N, T, 2), np.float32),
            reward=np.zeros((N, T), np.float32),
            termination=np.zeros((N, T), bool),
            done=ended | ~valid | (generator.random((N, T)) < 0.3),
            valid=valid,
            episode_ended=ended,
            episode_return=rubbish(generator.normal(100.0, 30.0, (N, T)).astype(np.float32)),
            episode_length=generator.integers(1, 999, (N, T)).astype(np.int32),
            episode_metrics={"height": rubbish(generator.normal(size=(N, T)).astype(np.float32))},
        ),
    )


def computed(made: Trajectory, discount: float = 0.99, *, outcome: int = 0, gain: float = 0.125) -> dict[str, Any]:
    """Return the record of an iteration with this trajectory, and advantages of at most 2.5."""
    made = jax.tree.map(jnp.asarray, made)
    zero, number = jnp.zeros(()), jnp.int32
    evaluation = Evaluation(*(jnp.asarray(value, jnp.float32) for value in (0.5, 0.25, 0.004, 0.03)))
    solved = ConjugateGradientResult(zero, number(3), zero, zero, zero, jnp.asarray(False))
    taken = LineSearchResult(jnp.ones(3), evaluation, zero, zero, number(2), number(outcome))
    statistics = ObservationStatistics.empty(made.observations.shape[-1])
    experience = experience_metrics(made, made.observations, statistics, ActionBounds((-1.0,), (1.0,)))
    step = TrustRegionStep({"w": jnp.ones(3)}, solved, taken)
    stepped = step_metrics(step, jnp.float32(gain), jnp.float32(2.5), discount)
    return record(jax.device_get(experience | stepped))


def observed(
    observations: np.ndarray, valid: np.ndarray, statistics: ObservationStatistics, clip: float
) -> dict[str, Any]:
    """Return the three figures of a batch of observations [N, T, observation], spread over four devices."""
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()[:4]), ("envs",)), PartitionSpec("envs"))
    batch, used = jax.device_put((observations.astype(np.float32), valid), sharding)

    def figures(batch: jax.Array, used: jax.Array) -> dict[str, jax.Array]:
        made = Trajectory(batch, batch, SimpleNamespace(valid=used))  # type: ignore[arg-type]
        return observation_metrics(made, statistics.normalize(batch, clip), statistics)

    return record(jax.device_get(jax.jit(figures)(batch, used)))


class TestObservations:
    """How a batch lies within the statistics that it is normalised with."""

    @pytest.mark.parametrize("seed", range(3))
    def test_against_numpy(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        observations = generator.standard_t(2, (8, 6, 5)) * [1, 10, 0.1, 3, 1] + [0, 50, 0, -4, 0]
        observations[..., 3] = -4.25
        observations[..., 1] = 50.0 + 1e-6 * generator.random((8, 6))  # in float32, the last bit
        valid = generator.random((8, 6)) < 0.7
        past = generator.normal(size=(1000, 5)) * [1, 10, 0.2, 2, 1] + [0.5, 49, 0, 0, 0]
        statistics = ObservationStatistics(
            jnp.float32(1000), jnp.asarray(past.mean(0), jnp.float32), jnp.asarray(1000 * past.var(0), jnp.float32)
        )
        told = observed(np.where(valid[..., None], observations, np.nan), valid, statistics, 3.0)
        distances = np.abs(observations[valid] - past.mean(0)) / past.std(0)
        assert told["observation_constant_share"] == pytest.approx(2 / 5)
        assert told["observation_max_abs"] == pytest.approx(distances.max(), rel=1e-4) and distances.max() > 3
        spread = np.minimum(distances, 1).mean(0)[[0, 2, 4]].min()
        assert told["observation_spread_min"] == pytest.approx(spread, rel=1e-4)

    def test_nothing_valid_is_null(self) -> None:
        told = observed(np.full((4, 2, 3), np.nan), np.zeros((4, 2), bool), ObservationStatistics.empty(3), 10.0)
        assert set(told.values()) == {None}

    def test_of_constants_alone_there_is_no_spread(self) -> None:
        told = observed(np.ones((4, 2, 3)), np.ones((4, 2), bool), ObservationStatistics.empty(3), 10.0)
        assert told == {"observation_constant_share": 1.0, "observation_max_abs": 1.0, "observation_spread_min": None}


class TestEpisodes:
    """Statistics of the episodes that ended, whole and sound."""

    @pytest.mark.parametrize("seed", range(5))
    def test_against_numpy(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        valid = generator.random((N, T)) < 0.8
        ended = valid & (generator.random((N, T)) < 0.4)
        made = trajectory(generator, ended, valid)
        told = computed(made)
        returns = np.asarray(made.transitions.episode_return, np.float64)[ended]
        assert told["episodes"] == returns.size > 0
        assert told["episode_return_mean"] == pytest.approx(returns.mean(), rel=1e-5)
        assert told["episode_return_std"] == pytest.approx(returns.std(), rel=1e-4)
        assert told["episode_return_min"] == pytest.approx(returns.min(), rel=1e-6)
        assert told["episode_length_mean"] == pytest.approx(made.transitions.episode_length[ended].mean(), rel=1e-5)
        heights = made.transitions.episode_metrics["height"][ended]
        assert told["environment"]["height"] == pytest.approx(heights.mean(), rel=1e-4)
        assert told["nonfinite_envs"] == sum(not valid[n].all() for n in range(N)) > 0

    def test_one_episode_has_no_spread(self) -> None:
        ended = np.zeros((N, T), bool)
        ended[3, 2] = True
        told = computed(trajectory(np.random.default_rng(1), ended, np.ones((N, T), bool)))
        assert told["episodes"] == 1 and told["episode_return_std"] == 0.0
        assert told["episode_return_min"] == told["episode_return_mean"]
        assert told["nonfinite_envs"] == 0

    def test_none_is_null_and_not_zero(self) -> None:
        nothing = np.zeros((N, T), bool)
        told = computed(trajectory(np.random.default_rng(2), nothing, ~nothing))
        assert told["episodes"] == 0
        assert {name: told[name] for name in OF_EPISODES} == dict.fromkeys(OF_EPISODES)
        assert told["environment"] == {"height": None}

    def test_the_lower_bound_is_the_formula(self) -> None:
        sound = trajectory(np.random.default_rng(3), np.ones((N, T), bool), np.ones((N, T), bool))
        told = computed(sound, discount=0.9)
        kl_max = told["kl_max"]
        assert told["improvement_lower_bound"] == pytest.approx(0.125 / 0.1 - 4 * 0.9 * 2.5 * kl_max / 0.1**2, rel=1e-4)
        assert told["penalty_coefficient"] == pytest.approx(4 * 2.5 * 0.9 / 0.1**2, rel=1e-4)
        undiscounted = computed(sound, discount=1.0)
        assert undiscounted["improvement_lower_bound"] is None and undiscounted["penalty_coefficient"] is None

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_null(self, value: float) -> None:
        sound = trajectory(np.random.default_rng(4), np.ones((N, T), bool), np.ones((N, T), bool))
        told = computed(sound, gain=value)
        assert told["improvement_lower_bound"] is None
        json.dumps(told, allow_nan=False)

    def test_outcomes_are_the_seven_words(self) -> None:
        sound = trajectory(np.random.default_rng(5), np.ones((N, T), bool), np.ones((N, T), bool))
        assert [computed(sound, outcome=outcome)["step_outcome"] for outcome in range(7)] == OUTCOMES
        assert len(StepOutcome) == 7


def mixed(words: np.ndarray) -> np.ndarray:
    """Return MurmurHash3's finaliser of uint32 words, a bijection."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = (words ^ words >> np.uint32(shift)) * np.uint32(factor)
    return words ^ words >> np.uint32(16)


def numpy_fingerprint(leaves: list[np.ndarray]) -> int:
    """Return the sum modulo 2^32 of every word, mixed with its place in the whole tree."""
    words = np.concatenate([leaf.ravel().view(np.uint32) for leaf in leaves])
    return int(mixed(words + mixed(np.arange(words.size, dtype=np.uint32))).sum(dtype=np.uint32))


def tree(seed: int, *shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return arrays as a network's: normal kernels, and one of zeros."""
    generator = np.random.default_rng(seed)
    arrays = {f"kernel{i}": generator.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    return arrays | {"log_std": np.full(3, -0.5, np.float32)}


_fingerprint = jax.jit(fingerprint)


class TestFingerprint:
    """Two trees agree if and, but for chance, only if every bit does."""

    def test_equal_trees_agree_however_they_are_spread(self) -> None:
        arrays = tree(0, (8, 4), (4, 16), (16,))
        wanted = int(fingerprint(arrays))
        assert int(_fingerprint(arrays)) == wanted
        assert int(_fingerprint(jax.tree.map(np.copy, arrays))) == wanted
        mesh = Mesh(np.asarray(jax.devices()), ("devices",))
        sharded, whole = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("devices", None))
        spread = {
            name: jax.device_put(array, whole if array.shape[0] % 4 else sharded) for name, array in arrays.items()
        }
        assert int(_fingerprint(spread)) == wanted

    @pytest.mark.parametrize("seed", range(3))
    def test_numpy_agrees(self, seed: int) -> None:
        arrays = tree(seed, (3, 5), (7,), (2, 2, 2))
        assert int(_fingerprint(arrays)) == numpy_fingerprint([arrays[name] for name in sorted(arrays)])

    def test_every_single_bit_counts(self) -> None:
        arrays = tree(1, (3, 2), (5,))
        wanted = int(_fingerprint(arrays))
        for name, array in arrays.items():
            for index in range(array.size):
                for bit in range(32):
                    changed = array.copy()
                    changed.ravel().view(np.uint32)[index] ^= np.uint32(1 << bit)
                    assert int(_fingerprint(arrays | {name: changed})) != wanted

    def test_every_swap_within_and_between_arrays_counts(self) -> None:
        arrays = tree(2, (4, 3), (6,))
        sizes = [(name, index) for name, array in arrays.items() if name != "log_std" for index in range(array.size)]
        wanted = int(_fingerprint(arrays))
        for one in sizes:
            for other in sizes[: sizes.index(one)]:
                changed = jax.tree.map(np.copy, arrays)
                a, b = changed[one[0]].ravel(), changed[other[0]].ravel()
                a[one[1]], b[other[1]] = b[other[1]], a[one[1]].copy()
                assert int(_fingerprint(changed)) != wanted, (one, other)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ([0.3, -0.3, 1.0], [-0.3, 0.3, 1.0]),
            ([0.3, 0.7, 1.0], [-0.3, -0.7, 1.0]),
            ([0.3, 0.7, 0.0], [0.3, -0.7, -0.0]),
        ],
        ids=["opposites swapped", "two signs flipped", "one of them of a zero"],
    )
    def test_signs_do_not_cancel(self, before: list[float], after: list[float]) -> None:
        arrays = [{"w": np.asarray(values, np.float32)} for values in (before, after)]
        assert int(_fingerprint(arrays[0])) != int(_fingerprint(arrays[1]))

    def test_round_numbers_far_apart_do_not_cancel(self) -> None:
        array = np.zeros(4096, np.float32)
        seen = set()
        for index in range(0, 4096, 64):
            array[:] = 0.0
            array[index] = 2.0
            seen.add(int(_fingerprint({"w": array})))
        assert len(seen) == 64

    def test_where_arrays_are_parted_does_not_hide_a_change(self) -> None:
        arrays = tree(3, (6,), (6,))
        exchanged = arrays | {"kernel0": arrays["kernel1"], "kernel1": arrays["kernel0"]}
        assert int(_fingerprint(arrays)) != int(_fingerprint(exchanged))
