"""Each finding in a run made to have it, and none in a healthy one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.envs import State

from tests.tiny_environments import ZERO, PointMass, TinyEnvironment, unit
from tests.tiny_runs import TINY
from trpo_brax.config import override
from trpo_brax.diagnosis.findings import Finding, by_seed, diagnose
from trpo_brax.host.console import Console
from trpo_brax.presets import PRESETS, preset
from trpo_brax.training.loop import train

LEARNING = Path(__file__).parents[2] / "experiments" / "results" / "learning"
SHORT = {
    "num_envs": 16,
    "unroll_length": 16,
    "total_steps": 30 * 256,
    "checkpoint_every": 1000,
    "fisher_fraction": 0.5,
    "eval_every": 0,
}
"""30 iterations."""


class Broken(TinyEnvironment):
    """Pays what its observation never tells, whatever is done; see `_state` for what it observes."""

    observation_size = 5

    def reset(self, rng: jax.Array) -> State:
        return self._state(rng, jnp.zeros(()), rng)

    def step(self, state: State, action: jax.Array) -> State:
        key, _ = jax.random.split(state.info["key"])
        return self._state(key, state.info["count"] + 1, state.info["first"])

    def _state(self, key: jax.Array, count: jax.Array, first: jax.Array) -> State:
        # Three constants; noise; and what one episode in 256 drives away by a factor of 30 a step.
        fault = jnp.where(first[1] % 256 == 0, 30.0**count, unit(key)[1])
        observation = jnp.stack([ZERO, ZERO + 0.3, ZERO - 7.0, unit(key)[0], fault])
        reward = jnp.where((first[1] % 4 == 1) & (count == 3), jnp.nan, unit(key[::-1])[0])
        info = {"key": key, "count": count, "first": first}
        return State(None, observation, jnp.where(count == 0, 0.0, reward), ZERO, {}, info)


Findings = dict[str, Finding]
Trained = Callable[..., Findings]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a function that trains a tiny run and returns its findings by name."""

    def run(environment: TinyEnvironment, **changes: Any) -> Findings:
        config = override(TINY, **(SHORT | changes))
        told, folder = io.StringIO(), tmp_path_factory.mktemp("run") / "run"
        made = train(config, environment=environment, run_dir=folder, console=Console(told))
        found = diagnose(made.metrics(), config)
        warnings = [line for line in told.getvalue().splitlines() if line.startswith("Warning")]
        assert warnings == [f"Warning: {finding.line()}" for finding in found if finding.level == "problem"]
        assert made.summary["seeds"][0]["findings"] == [finding.to_dict() for finding in found]
        assert made.summary["findings"] == [{"seed": 0, **finding.to_dict()} for finding in found]
        return {finding.name: finding for finding in found}

    return run


def problems(found: Findings) -> set[str]:
    return {name for name, finding in found.items() if finding.level == "problem"}


HEALTHY = {"num_envs": 32, "unroll_length": 32, "episode_length": 64, "total_steps": 40 * 1024, "discount": 0.95}


class TestTrainedRuns:
    """Runs made to fail, each in its own way."""

    def test_a_healthy_one_has_no_findings(self, trained: Trained) -> None:
        assert trained(PointMass(), **HEALTHY) == {}

    def test_a_broken_environment(self, trained: Trained) -> None:
        found = trained(Broken(), initial_log_std=1.5, episode_length=8)
        assert problems(found) >= {
            "environments_nonfinite",
            "observation_exploding",
            "observation_constant",
            "actions_saturated",
            "explained_variance_low",
            "return_flat",
        }
        assert found["environments_nonfinite"].iteration == 1
        assert (
            found["observation_constant"].value == pytest.approx(0.6) and found["observation_constant"].iteration == 1
        )
        assert "60%" in found["observation_constant"].explanation
        assert found["actions_saturated"].iteration == 1
        assert found["explained_variance_low"].iteration > 10
        exploding = found["observation_exploding"]
        assert exploding.iteration > 1 and exploding.last_iteration >= 29

    def test_steps_that_no_test_lets_through(self, trained: Trained) -> None:
        found = trained(PointMass(), acceptance_ratio=0.99, line_search_steps=1)
        rejected = found["steps_rejected"]
        assert rejected.level == "problem" and rejected.metric == "step_outcome"
        assert "no_improvement" in rejected.explanation and "acceptance_ratio" in rejected.advice

    def test_steps_too_short_to_learn_by(self, trained: Trained) -> None:
        found = trained(PointMass(), damping=1e3)
        assert {"kl_below_limit", "return_flat"} <= problems(found)
        assert found["kl_below_limit"].iteration == 2 and "damping" in found["kl_below_limit"].advice

    def test_a_policy_that_hardly_explores(self, trained: Trained) -> None:
        found = trained(PointMass(), initial_log_std=-8.0, **HEALTHY)
        assert "entropy_collapse" in problems(found)
        assert found["entropy_collapse"].iteration == 1 and found["entropy_collapse"].value < -6


def rows(count: int = 60, /, **columns: Any) -> list[dict[str, Any]]:
    """Return a healthy run's records of one action component, with columns replaced by a constant or by i -> value."""
    generator = np.random.default_rng(0)
    healthy: dict[str, Any] = {
        "episode_return_mean": lambda i: 10.0 * i + generator.normal(),
        "episode_return_std": 50.0,
        "kl_mean": 0.008,
        "step_outcome": "accepted",
        "step_fraction": 1.0,
        "cg_relative_residual": 0.3,
        "explained_variance": 0.9,
        "entropy": lambda i: 0.919 - 0.01 * i,
        "action_saturation": 0.1,
        "nonfinite_share": 0.0,
        "nonfinite_envs": 0,
        "reward_max_abs": 2.0,
        "advantage_max_abs": 50.0,
        "critic_loss": 0.1,
        "observation_constant_share": 0.0,
        "observation_max_abs": 8.0,
        "observation_spread_min": 0.5,
    } | columns
    return [
        {"seed": 0, "iteration": i, **{name: one(i) if callable(one) else one for name, one in healthy.items()}}
        for i in range(1, count + 1)
    ]


def found(records: list[dict[str, Any]], /, **changes: Any) -> Findings:
    return {finding.name: finding for finding in diagnose(records, override(TINY, **changes))}


def from_(iteration: int, bad: Any, good: Any) -> Callable[[int], Any]:
    """Return a column that turns bad and stays so."""
    return lambda i: bad if i >= iteration else good


BEYOND = {"reward_max_abs": from_(41, 2.5e30, 2.0), "step_outcome": from_(41, "non_finite", "accepted")}
FLAT = {"episode_return_mean": lambda i: 3.0 + (-1) ** i * 0.5}


class TestMadeRuns:
    """Records in which one thing goes wrong, from iteration 41 of 60 on."""

    def test_healthy_records_have_no_findings(self) -> None:
        assert found(rows()) == {}

    @pytest.mark.parametrize(
        ("name", "columns"),
        [
            ("environments_nonfinite", {"nonfinite_share": from_(41, 0.01, 0.0)}),
            ("observation_exploding", {"observation_max_abs": from_(41, 51.0, 49.0)}),
            ("observation_exploding", {"observation_spread_min": from_(41, 0.045, 0.5)}),
            ("observation_exploding", {"observation_spread_min": from_(41, 0.015, 0.1)}),
            ("observation_constant", {"observation_constant_share": from_(41, 0.5, 0.0)}),
            ("actions_saturated", {"action_saturation": from_(41, 0.51, 0.49), **FLAT}),
            ("explained_variance_low", {"explained_variance": from_(41, -0.1, 0.1)}),
            ("cg_residual_high", {"cg_relative_residual": from_(41, 1.1, 0.9)}),
            ("steps_rejected", {"step_outcome": from_(41, "kl_exceeded", "accepted")}),
            ("kl_below_limit", {"kl_mean": from_(41, 0.0009, 0.0011)}),
        ],
    )
    def test_what_begins_and_stays_is_a_problem_from_there_on(self, name: str, columns: dict[str, Any]) -> None:
        finding = found(rows(**columns))[name]
        assert (finding.level, finding.iteration, finding.last_iteration) == ("problem", 41, 60)
        assert finding.metric in columns or name == "observation_exploding"
        assert finding.explanation.endswith(".") and finding.advice.endswith(".")

    def test_what_is_over_is_a_note(self) -> None:
        over = found(rows(cg_relative_residual=lambda i: 2.0 if 21 <= i <= 40 else 0.3))
        finding = over["cg_residual_high"]
        assert (finding.level, finding.iteration, finding.last_iteration) == ("note", 21, 40) and len(over) == 1

    def test_what_happens_now_and_then_is_nothing(self) -> None:
        often = {"cg_relative_residual": 3.0, "explained_variance": -1.0, "kl_mean": 1e-5, "action_saturation": 0.9}
        once_in_two = {name: (lambda i, bad=bad: bad if i % 2 else 0.4) for name, bad in often.items()}
        assert found(rows(**once_in_two, step_outcome=lambda i: "non_finite" if i % 3 == 0 else "accepted")) == {}

    def test_the_commonest_reason_of_refusal_is_told_and_explained(self) -> None:
        outcomes = ["bad_curvature", "kl_exceeded", "kl_exceeded", "accepted"]
        finding = found(rows(step_outcome=lambda i: outcomes[i % 4]))["steps_rejected"]
        assert finding.level == "problem" and "as kl_exceeded" in finding.explanation and "damping" in finding.advice
        # The first refusal is of iteration 1, the last of 58: 29 of 44.
        assert "29 of 44" in finding.explanation or "30 of 45" in finding.explanation

    @pytest.mark.parametrize(
        "reason", ["kl_exceeded", "no_improvement", "non_finite", "zero_gradient", "bad_curvature"]
    )
    def test_every_reason_has_its_advice(self, reason: str) -> None:
        finding = found(rows(step_outcome=reason, kl_mean=0.0))["steps_rejected"]
        assert reason in finding.explanation and finding.value == reason and "60 of 60" in finding.explanation

    def test_short_steps_are_told_apart_by_who_shortens_them(self) -> None:
        full = found(rows(kl_mean=1e-4))["kl_below_limit"]
        searched = found(rows(kl_mean=1e-4, step_fraction=0.1))["kl_below_limit"]
        assert full.advice.startswith("Full steps") and searched.advice.startswith("The line search")
        assert "1.0% of max_kl 0.01" in full.explanation

    def test_a_refused_step_is_not_a_short_one(self) -> None:
        refused = rows(
            kl_mean=lambda i: 0.0 if i % 10 else 0.008, step_outcome=lambda i: "kl_exceeded" if i % 10 else "accepted"
        )
        assert set(found(refused)) == {"steps_rejected"}

    def test_saturation_that_pays_is_a_note(self) -> None:
        assert found(rows(action_saturation=0.9))["actions_saturated"].level == "note"

    def test_a_few_constant_components_are_a_note(self) -> None:
        assert found(rows(observation_constant_share=1 / 11))["observation_constant"].level == "note"

    def test_a_single_non_finite_transition_is_a_note(self) -> None:
        finding = found(rows(nonfinite_share=lambda i: 1e-4 if i == 33 else 0.0))["environments_nonfinite"]
        assert (finding.level, finding.iteration, finding.last_iteration) == ("note", 33, 33)
        assert finding.report()[0] == "note: environments nonfinite in iteration 33 (nonfinite_share 0.0001)"

    @pytest.mark.parametrize(
        ("columns", "level", "fragments"),
        [
            (BEYOND, "problem", ["20 of 60 iterations", "up to 2.5e+30", "can square"]),
            (BEYOND | {"reward_max_abs": 2.0}, None, []),
            (
                BEYOND | {"reward_max_abs": lambda i: 2.5e30 if i == 33 else 2.0, "critic_loss": None},
                "note",
                ["1 of 60"],
            ),
            ({"reward_max_abs": 2e18}, None, []),
            ({"reward_max_abs": 2e18, "critic_loss": None}, "problem", ["60 of 60 iterations", "up to 2e+18"]),
            ({"reward_max_abs": 5e-6, "advantage_max_abs": 50.0}, "problem", ["at most 5e-06", "critic's values"]),
            ({"reward_max_abs": 7e-6, "advantage_max_abs": 50.0}, None, []),
            ({"reward_max_abs": 1e-30, "advantage_max_abs": 1e-29}, "problem", ["at most 1e-30", "squares to 0"]),
            ({"reward_max_abs": 0.0}, None, []),
        ],
    )
    def test_rewards_out_of_single_precisions_reach(
        self, columns: dict[str, Any], level: str | None, fragments: list[str]
    ) -> None:
        finding = found(rows(**columns)).get("reward_scale")
        assert (finding and finding.level) == level
        assert finding is None or all(part in finding.explanation for part in fragments)

    def test_rewards_add_up_over_the_horizon_that_a_run_ends_with(self) -> None:
        """5 x 2e18 can be squared, 16 x 2e18 cannot."""
        columns = {"reward_max_abs": 2e18, "critic_loss": None}
        assert "reward_scale" not in found(rows(**columns), discount=0.8)
        assert "reward_scale" in found(rows(**columns), discount=0.8, final_discount=0.99, anneal_steps=1)

    def test_raw_observations_of_the_first_iteration_are_nothing(self) -> None:
        assert found(rows(9, observation_max_abs=lambda i: 1e6 if i == 1 else 5.0)) == {}
        assert found(rows(observation_spread_min=lambda i: 1.0 if i == 1 else 0.09)) == {}

    def test_a_critic_that_has_nothing_left_to_explain_is_none(self) -> None:
        # A balanced double pendulum: returns of 600 at the end, spread by less than 1% of that.
        late = {"explained_variance": from_(31, -0.2, 0.9), "episode_return_std": from_(31, 0.3, 50.0)}
        assert found(rows(**late)) == {}
        assert set(found(rows(**late | {"episode_return_std": 50.0}))) == {"explained_variance_low"}

    def test_a_critic_has_ten_iterations_to_begin(self) -> None:
        early = {"explained_variance": lambda i: -0.2 if i <= 10 else 0.9}
        assert found(rows(**early)) == {}

    def test_entropy_that_falls_before_the_return_rises(self) -> None:
        """A component's standard deviation falls to a seventh by iteration 20, far above the floor."""
        falls = {"entropy": lambda i: max(0.919 - 0.1 * i, -1.2)}
        finding = found(rows(**falls, **FLAT))["entropy_collapse"]
        assert finding.level == "problem" and finding.iteration == 21 and finding.value == pytest.approx(-1.181)
        assert "entropy_collapse" not in found(rows(**falls)), "the return rises: it may well fall"
        # Later progress is none of its doing: the policy had collapsed before.
        late = {"episode_return_mean": lambda i: 3.0 + (-1) ** i * 0.5 + max(i - 40, 0)}
        assert "entropy_collapse" in found(rows(**falls, **late))

        assert "entropy_collapse" not in found(rows(**falls, **FLAT), final_log_std=-2.0, anneal_steps=1), "it is led"

    @pytest.mark.parametrize(
        ("evaluated", "episodes", "anneal_steps", "is_found"),
        [
            (500.0, 100, None, True),
            (500.0, 2, None, False),
            (590.0, 100, None, False),
            (500.0, 100, 60_000, True),
            (500.0, 100, 60_001, False),
        ],
        ids=["far below", "few samples", "close", "noise led", "noise under way"],
    )
    def test_a_mean_action_below_samples(
        self, evaluated: float, episodes: int, anneal_steps: int | None, is_found: bool
    ) -> None:
        """Samples reach 600 +- 50 after 60,000 steps; four standard errors of both means are 27 or 142."""
        columns = {"evaluation_return_mean": evaluated, "evaluation_return_std": 50.0, "episodes": episodes}
        led = {} if anneal_steps is None else {"final_log_std": -2.0, "anneal_steps": anneal_steps}
        told = found(rows(**columns, env_steps=lambda i: 1000 * i), **led)
        assert ("mean_action_below_samples" in told) == is_found

    def test_entropy_below_the_floor_is_a_note_where_the_return_rose(self) -> None:
        low = {"entropy": lambda i: 0.919 - 0.1 * i}
        finding = found(rows(**low))["entropy_collapse"]
        assert finding.level == "note" and finding.iteration == 40 and "rose all the same" in finding.explanation
        assert found(rows(**low, **FLAT))["entropy_collapse"].level == "problem"

    def test_entropy_is_judged_by_the_action_component(self) -> None:
        """Seventeen components begin at 15.6 nats in all; a fall by 20 of them is 1.2 a component."""
        falls = {"entropy": lambda i: 17 * 0.919 - i / 3}
        assert "entropy_collapse" not in found(rows(**falls, **FLAT))
        single = {"entropy": lambda i: 0.919 - i / 3}
        assert found(rows(**single, **FLAT))["entropy_collapse"].level == "problem"

    def test_a_return_that_never_rises(self) -> None:
        generator = np.random.default_rng(1)
        flat = found(rows(episode_return_mean=lambda i: generator.normal(100.0, 10.0)))
        assert set(flat) == {"return_flat"}
        assert (flat["return_flat"].level, flat["return_flat"].iteration) == ("problem", 1)
        assert "return_flat" in found(rows(episode_return_mean=7.0)), "without any noise, too"
        assert "return_flat" in found(rows(episode_return_mean=lambda i: -float(i)))
        for iterations, told in ((38, False), (40, True)):  # 4.9 and 5.1 episodes of each environment
            slow = rows(iterations, episode_return_mean=7.0, episode_length_mean=1000.0)
            assert ("return_flat" in found(slow, unroll_length=128)) is told

    @pytest.mark.parametrize(
        "curve",
        [
            lambda i, noise: min(i, 10) * 100.0 + noise,
            lambda i, noise: max(i - 50, 0) * 5.0 + noise,
            lambda i, noise: (30 - abs(i - 30)) * 2.0 + noise,
            lambda i, noise: 0.08 * i + noise,
        ],
        ids=["stays at the top", "rises at the end", "rises and falls again", "rises slowly within its noise"],
    )
    def test_a_return_that_rose_is_not_flat(self, curve: Callable[[int, float], float]) -> None:
        for seed in range(20):
            noise = np.random.default_rng(seed).normal(size=61)
            assert "return_flat" not in found(rows(episode_return_mean=lambda i, noise=noise: curve(i, noise[i])))


class TestRecords:
    """What records may be like."""

    def test_quantities_that_are_missing_are_not_judged(self) -> None:
        assert diagnose([], TINY) == ()
        assert diagnose([{"seed": 0, "iteration": i} for i in range(1, 100)], TINY) == ()
        absent = dict.fromkeys([name for name in rows(1)[0] if name not in ("seed", "iteration")])
        assert diagnose(rows(**absent), TINY) == ()

    def test_older_records_tell_of_non_finite_environments_by_their_number(self) -> None:
        older = [
            {name: value for name, value in row.items() if name != "nonfinite_share"} for row in rows(nonfinite_envs=2)
        ]
        finding = found(older, num_envs=8)["environments_nonfinite"]
        assert finding.metric == "nonfinite_envs" and "0.25 of the environments" in finding.explanation

    def test_the_order_of_the_records_does_not_matter(self) -> None:
        records = rows(cg_relative_residual=from_(41, 1.1, 0.9), **FLAT)
        assert diagnose(records[::-1], TINY) == diagnose(records, TINY) != ()

    def test_absurd_values_are_no_errors(self) -> None:
        for value in (2**63, -(2**63), 1.7e308, -1.7e308, "x" * 200, True, {"a": 1.0}):
            for name in rows(1)[0]:
                if name not in ("seed", "iteration"):
                    json.dumps([one.to_dict() for one in diagnose(rows(**{name: value}), TINY)], allow_nan=False)

    def test_a_few_iterations_say_nothing(self) -> None:
        for count in range(1, 5):
            assert diagnose(rows(count, cg_relative_residual=2.0, kl_mean=0.0, step_outcome="kl_exceeded"), TINY) == ()

    def test_problems_come_first(self) -> None:
        levels = [one.level for one in diagnose(rows(observation_constant_share=0.1, kl_mean=1e-5), TINY)]
        assert levels == ["problem", "note"]

    def test_seeds_are_told_apart(self) -> None:
        config = override(TINY, seed=4, num_seeds=3)
        records = [{"seed": seed, "iteration": i} for i in (1, 2) for seed in (5, 4, 9)]
        assert by_seed(records, config) == {4: records[1::3], 5: records[::3], 6: []}

    def test_a_finding_is_told_in_a_line_and_in_a_few(self) -> None:
        finding = found(rows(cg_relative_residual=from_(41, 1.5, 0.5)))["cg_residual_high"]
        head, explanation, advice = finding.report()
        assert head == "problem: cg residual high from iteration 41 to 60 (cg_relative_residual 1.5)"
        assert explanation.strip() == finding.explanation and advice.strip() == finding.advice
        assert finding.line() == f"cg residual high from iteration 41 to 60: {finding.explanation}"
        assert json.loads(json.dumps(finding.to_dict())) == finding.to_dict()


def committed() -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return (task, seed, records) of the training runs whose figures the README states."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(path for path in LEARNING.glob("*.csv") if path.stem in PRESETS):
        task = path.stem
        with path.open() as file:
            for row in csv.DictReader(file):
                values: dict[str, Any] = {
                    name: float(text) if text else None
                    for name, text in row.items()
                    if name not in ("task", "step_outcome")
                }
                values |= {"iteration": int(row["iteration"]), "step_outcome": row["step_outcome"]}
                runs.setdefault((task, row["seed"]), []).append(values)
    return [(task, seed, records) for (task, seed), records in runs.items()]


@pytest.mark.parametrize(
    ("task", "seed", "records"), committed(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_nothing_is_found_in_real_runs_that_learned(task: str, seed: str, records: list[dict[str, Any]]) -> None:
    """Nor while they were under way."""
    for count in (len(records), 60, 40, 25, 12, 6):
        assert not diagnose(records[:count], preset(task)), count
