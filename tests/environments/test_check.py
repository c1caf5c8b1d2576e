"""One faulty environment after another: what its author is told."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_environments import (
    Bounded,
    ChangesShape,
    ConstantReward,
    Countdown,
    EndsItself,
    Fault,
    Faulty,
    IntegerReward,
    PointMass,
)
from trpo_brax.config import RolloutConfig
from trpo_brax.environments import Task, environment_name, own_task
from trpo_brax.environments.check import CHUNK, NUM_ENVS, Finding, _action_range, check_environment
from trpo_brax.environments.quiet import quiet

with quiet():
    from brax.envs.wrappers.training import EpisodeWrapper


@functools.cache
def findings_of(environment, episode_length: int = 40) -> tuple[Finding, ...]:
    task = own_task(environment, RolloutConfig())
    return tuple(check_environment(task, episode_length=episode_length, seconds=5.0))


def told(environment, topic: str, *, level: str | None = None) -> str:
    """Return what is said of a topic, at any level or at one."""
    found = [f for f in findings_of(environment) if f.topic == topic and level in (None, f.level)]
    return "\n".join(f"{finding.level}: {finding.sentence}" for finding in found)


class Keyed(PointMass):
    """Holds a typed key, which its starts depend on."""

    def __init__(self) -> None:
        self.key = jax.random.key(3)

    def reset(self, rng):
        return super().reset(rng + jax.random.key_data(self.key))


class Changed(PointMass):
    """A `PointMass` whose step's result is changed by a function of (State, action)."""

    def __init__(self, change) -> None:
        self.change = change

    def step(self, state, action):
        return self.change(super().step(state, action), action)


class Same(PointMass):
    def reset(self, rng):
        return super().reset(jnp.zeros(2, jnp.uint32))


class BeginsEnded(PointMass):
    def reset(self, rng):
        return super().reset(rng).replace(done=jnp.ones(()))


class Truncates(PointMass):
    """Says truncation after five steps, and, if it ends there, done."""

    def __init__(self, ends: bool) -> None:
        self.ends = ends

    def reset(self, rng):
        return super().reset(rng).replace(info={"count": jnp.zeros(()), "truncation": jnp.zeros(())})

    def step(self, state, action):
        count = state.info["count"] + 1
        over = (count >= 5).astype(jnp.float32)
        after = super().step(state, action)
        return after.replace(info={"count": count, "truncation": over}, done=over * self.ends)


class ObservesNothing(PointMass):
    def reset(self, rng):
        return super().reset(rng).replace(obs=jnp.ones(2))

    def step(self, state, action):
        return super().step(state, action).replace(obs=jnp.ones(2))


class Untyped(PointMass):
    """float16 observations and a done of bool."""

    def reset(self, rng):
        state = super().reset(rng)
        return state.replace(obs=state.obs.astype(jnp.float16), done=jnp.zeros((), bool))

    def step(self, state, action):
        after = super().step(state, action)
        return after.replace(obs=after.obs.astype(jnp.float16), done=jnp.zeros((), bool))


class Global(PointMass):
    """Draws from NumPy's generator while it is traced."""

    def step(self, state, action):
        return super().step(state, action + np.random.rand())


class Raises(PointMass):
    def step(self, state, action):
        raise RuntimeError("no such motor\nand a second line")


HEALTHY = PointMass()
TERMINATES = Countdown()


def test_a_healthy_environment_has_no_warning_and_no_error() -> None:
    assert [finding for finding in findings_of(HEALTHY) if finding.level != "ok"] == []
    topics = {finding.topic for finding in findings_of(HEALTHY)}
    assert topics == {
        "structure",
        "resets",
        "repeatable",
        "finite",
        "ends",
        "reward",
        "actions",
        "observation",
        "speed",
    }


def test_every_finding_is_one_sentence() -> None:
    for finding in findings_of(HEALTHY) + findings_of(TERMINATES):
        assert finding.sentence.endswith(".")
        assert "\n" not in finding.sentence


def test_findings_are_printed_one_a_line() -> None:
    findings = [Finding("ok", "resets", "they differ."), Finding("warning", "ends", "never.")]
    assert [*map(str, findings)] == ["ok       resets: they differ.", "warning  ends: never."]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (ChangesShape(), "returns obs of shape (2,) from step, (1,) from reset."),
        (ChangesShape(info_only=True), "info['extra'] is in step's State only; begin it in reset."),
        (Raises(), "step raises RuntimeError: no such motor (test_check.py, line"),
    ],
)
def test_an_environment_that_cannot_be_stepped_is_one_error(environment, sentence: str) -> None:
    # `own_task` would have refused it: this is a task that someone built by hand.
    task = Task(environment_name(environment), environment, (-1.0,), (1.0,))
    (finding,) = check_environment(task)
    assert (finding.level, finding.topic) == ("error", "structure")
    assert sentence in finding.sentence
    assert "second line" not in finding.sentence


def test_types_are_named() -> None:
    untyped = Untyped()
    assert told(untyped, "types") == (
        "warning: obs is float16 where Brax has float32.\nwarning: done is bool where Brax has float32."
    )
    assert told(IntegerReward(), "types", level="warning").splitlines()[0] == (
        "warning: reward is int32 at reset and float32 from step; give it one type."
    )


def test_a_draw_outside_of_the_state_is_an_error() -> None:
    assert told(Global(), "repeatable").startswith("error: tracing twice gives two programs")
    assert told(HEALTHY, "repeatable").startswith("ok: the same keys and actions give the same results")


def test_a_typed_key_of_the_environments_own_is_a_constant_like_others() -> None:
    assert told(Keyed(), "repeatable").startswith("ok: the same keys and actions give the same results")


def test_resets_that_do_not_use_their_key() -> None:
    assert told(Same(), "resets").startswith("warning: every episode starts the same")
    assert told(HEALTHY, "resets") == f"ok: {NUM_ENVS} keys give {NUM_ENVS} different first observations."


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (Fault("observation", step=3), "observation not finite at step 3"),
        (Fault("reward", math.inf, step=CHUNK + 3), f"reward not finite at step {CHUNK + 3}"),
        (Fault("done", step=1), "done not finite at step 1"),
        (Fault("physics", step=2), "physics state not finite at step 2"),
        (Fault("physics", math.inf, step=2), "physics state not finite at step 2"),
        (Fault("observation", -math.inf, step=0), "observation not finite at reset"),
        (Fault("physics", step=0), "physics state not finite at reset"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_finite_is_named_with_its_step(fault: Fault, where: str) -> None:
    everyone = f"in {NUM_ENVS} of {NUM_ENVS} environments"
    assert told(Faulty(fault), "finite", level="error") == f"error: with random actions, {where} {everyone}."


def test_a_fault_of_few_environments_is_counted() -> None:
    keys = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
    fault = Fault("physics", step=4, key=tuple(int(word) for word in keys[5]))
    assert f"at step 4 in 1 of {NUM_ENVS}" in told(Faulty(fault), "finite", level="error")


def test_a_fault_at_the_bounds_alone_is_a_warning() -> None:
    broken = Changed(lambda state, action: state.replace(reward=jnp.where(jnp.abs(action[0]) == 1, jnp.nan, 0.5)))
    assert told(broken, "finite", level="error") == ""
    assert "with actions at their bounds, reward not finite at step 1" in told(broken, "finite", level="warning")


def test_how_episodes_end_is_told() -> None:
    assert told(HEALTHY, "ends").startswith(f"ok: 0 of {NUM_ENVS} random episodes end by themselves within 40 steps;")
    keys = jax.random.split(jax.random.PRNGKey(0), NUM_ENVS)
    mean = np.mean(2 + np.asarray(keys)[:, 0] % 6)
    assert told(TERMINATES, "ends") == (
        f"ok: {NUM_ENVS} of {NUM_ENVS} random episodes end by themselves within 40 steps, after {mean:.1f} on average."
    )


def test_an_end_beyond_the_time_limit_is_not_seen() -> None:
    findings = findings_of(TERMINATES, episode_length=1)
    (ends,) = (finding for finding in findings if finding.topic == "ends")
    assert ends.sentence.startswith(f"0 of {NUM_ENVS} random episodes end by themselves within 1 steps")


def test_truncation_is_told() -> None:
    assert f"{NUM_ENVS} are time limits by info['truncation']" in told(Truncates(ends=True), "ends", level="ok")
    assert "info['truncation'] is 1 while done is 0" in told(Truncates(ends=False), "ends", level="warning")
    assert told(EndsItself(length=5), "ends") == (
        "warning: all episodes last 5 steps: if that is a time limit, set info['truncation'] to 1 there."
    )


def test_done_must_be_zero_or_one_and_zero_at_reset() -> None:
    half = Changed(lambda state, action: state.replace(done=jnp.where(state.obs[0] > 0, 0.25, 0.0)))
    assert told(half, "ends") == "error: done must be 0 or 1, and is 0.25 at times."
    assert told(BeginsEnded(), "ends") == "error: done is 1 at reset: an episode would begin ended."


def test_rewards_are_described() -> None:
    constant = Changed(lambda state, action: state.replace(reward=jnp.full((), 2.0)))
    assert told(constant, "reward") == "warning: always 2 under random actions: there is nothing to learn."
    assert told(TERMINATES, "reward").startswith("ok: always 1 under random actions: what can be learned is how long")
    huge = Changed(lambda state, action: state.replace(reward=1e6 * action[0]))
    beyond = Changed(lambda state, action: state.replace(reward=1e30 * action[0]))
    assert "per step: squares of returns are beyond single precision" in told(beyond, "reward", level="error")
    tiny = Changed(lambda state, action: state.replace(reward=1e-6 * action[0]))
    assert told(huge, "reward").startswith("warning: mean")
    large = Changed(lambda state, action: state.replace(reward=1e17 * action[0]))
    assert told(large, "reward").startswith("warning: mean")
    assert told(tiny, "reward").startswith("warning: mean")
    uniform = Changed(lambda state, action: state.replace(reward=action[0]))
    numbers = told(uniform, "reward").replace(",", "").split()
    assert numbers[0] == "ok:"
    assert abs(float(numbers[2])) < 0.05
    assert abs(float(numbers[5]) - 1 / math.sqrt(3)) < 0.02


def test_actions_without_effect_are_named() -> None:
    assert told(HEALTHY, "actions") == "ok: in [-1, 1]; every component changes observation or reward."
    assert "the action changed neither observation nor reward" in told(ConstantReward(), "actions", level="warning")
    second = told(Bounded(-2.0, 3.0), "actions")
    assert second.startswith("warning: in [-2, 3]; component 1 changed neither observation nor reward")
    infinite = Bounded(-math.inf, [1.0, math.inf])
    assert told(infinite, "actions").startswith("warning: their range is infinite")


class Actuated(Bounded):
    """Gives its actuators, of ranges (-2, 2) and (-3, 4), a multiple of the action, or steps without any."""

    def __init__(self, gain: list[float] | None, **bounds: Any) -> None:
        super().__init__(**bounds, control_range=[(-2, 2), (-3, 4)])
        self.gain = gain

    def pipeline_step(self, physics, action, twice=False):
        return physics, twice

    def step(self, state, action):
        if self.gain is not None:
            torque = action * jnp.array(self.gain) + jnp.array([0.0, 0.5])
            _, twice = self.pipeline_step(physics=state.pipeline_state, action=torque, twice=True)
            assert twice
        return super().step(state, action)


OWN = "the actuators' own range is [-3, 4]"


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (HEALTHY, None),
        (Bounded(control_range=[(-1, 1), (-1, 1)]), None),
        (Actuated([2.0, 3.5]), f"ok: actions are in [-1, 1]; {OWN}, and step rescales to it."),
        (Actuated([-2.0, 3.5]), f"ok: actions are in [-1, 1]; {OWN}, and step rescales to it."),
        (EpisodeWrapper(Actuated([2.0, 3.5]), 10, 1), f"ok: actions are in [-1, 1]; {OWN}, and step rescales to it."),
        (Actuated(None, low=[-2, -3], high=[2, 4]), None),
        (
            Actuated([1.0, 0.5]),
            f"warning: actions are in [-1, 1]; {OWN}, and step gives them [-1, 1]: give action_low and action_high, or "
            "rescale in step.",
        ),
        (
            Actuated(None),
            f"warning: actions are in [-1, 1]; {OWN}: see that step rescales to it.",
        ),
    ],
)
def test_the_actuators_range_is_named_where_it_differs(environment: Any, sentence: str | None) -> None:
    task = own_task(environment, RolloutConfig())
    found = _action_range(task, jax.vmap(environment.reset)(jax.random.split(jax.random.PRNGKey(0), 2)))
    assert [f"{finding.level}: {finding.sentence}" for finding in found] == ([] if sentence is None else [sentence])


def test_observations_are_described() -> None:
    assert told(HEALTHY, "observation").startswith("ok: 0 of 2 components constant")
    assert told(ObservesNothing(), "observation").startswith("warning: it never changes")
    large = Changed(lambda state, action: state.replace(obs=state.obs * jnp.array([1.0, 1e5])))
    assert told(large, "observation").startswith("warning: 0 of 2 components constant")
    half = Changed(lambda state, action: state.replace(obs=jnp.stack([state.obs[0], state.obs[0]])))
    assert "components constant" in told(half, "observation", level="ok")


def test_speed_and_compilation_are_told() -> None:
    assert "steps/s" in told(HEALTHY, "speed", level="ok")
    assert "compiled in" in told(HEALTHY, "speed", level="ok")
