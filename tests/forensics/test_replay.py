"""Replaying an iteration: each part in turn made the first that is not finite, and environments at fault."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from brax.envs import State

from tests.tiny_environments import ZERO, Fault, Faulty, PointMass, TinyEnvironment
from tests.tiny_programs import tiny_config
from trpo_brax.algorithm import StepOutcome, TrustRegionStep
from trpo_brax.config import override
from trpo_brax.environments import VectorizedEnvironment, brax_task, own_task
from trpo_brax.environments.vectorized import POOL_SIZE
from trpo_brax.forensics import replay as replay_module
from trpo_brax.forensics.blame import Culprit
from trpo_brax.forensics.replay import Replay, replay
from trpo_brax.learner.iteration import Iteration
from trpo_brax.learner.program import policy_specification
from trpo_brax.learner.state import TrainState, critic_optimizer, initial_state
from trpo_brax.policy import ObservationStatistics
from trpo_brax.randomness import Stream, environment_keys

ADAM = {"critic": "adam", "critic_epochs": 2, "critic_minibatches": 3}
PACKAGE = Path(replay_module.__file__).parents[1]


def line(marker: str) -> str:
    """Return `file.py:line ` of the line of this file that ends with a marker."""
    numbers = [
        number
        for number, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if text.endswith(f"# planted: {marker}")
    ]
    assert len(numbers) == 1, marker
    return f"{__file__}:{numbers[0]} "


Sound = tuple[Iteration, TrainState]


def setting(environment: Any, **values: Any) -> Sound:
    """Return an iteration and a first state, with statistics; no episode ends within one unless asked for."""
    config = tiny_config(**({"episode_length": 100, "spread_initial_steps": False} | values))
    task = own_task(environment, config.rollout)
    specification = policy_specification(config, task)
    copies = VectorizedEnvironment(
        task, episode_length=config.rollout.episode_length, action_repeat=config.rollout.action_repeat
    )
    networks = specification.networks()
    begin = jax.jit(functools.partial(initial_state, config, copies, networks))
    size = specification.observation_size
    standard = ObservationStatistics(jnp.ones(()), jnp.zeros(size), jnp.ones(size))
    state = dataclasses.replace(begin(jax.random.PRNGKey(0)), statistics=standard)
    return Iteration(config, copies, networks, specification.bounds), state


@pytest.fixture(scope="module")
def sound() -> Sound:
    return setting(Planned())


def planned(state: TrainState, **plan: Any) -> TrainState:
    """Return the state with another plan of what goes wrong, the same for all environments or [N] of it."""
    old = state.environments.state.info
    info = old | {name: jnp.broadcast_to(jnp.asarray(value, old[name].dtype), 8) for name, value in plan.items()}
    environments = state.environments.replace(state=state.environments.state.replace(info=info))
    return dataclasses.replace(state, environments=environments)


def with_policy(state: TrainState, *, log_std: float = 0.0, bias: float = 0.0) -> TrainState:
    """Return the state with another standard deviation, and a mean away from 0."""
    parameters = state.policy["params"]
    network = parameters["MultilayerPerceptron_0"]
    output = {**network["output"], "bias": network["output"]["bias"] + bias}
    network = {**network, "output": output}
    new = {"MultilayerPerceptron_0": network, "log_std": jnp.full_like(parameters["log_std"], log_std)}
    return dataclasses.replace(state, policy={"params": new})


def with_critic(state: TrainState, factor: float) -> TrainState:
    """Return the state with the critic's output layer scaled."""
    layers = state.critic.network["params"]
    output = {**layers["output"], "kernel": factor * layers["output"]["kernel"]}
    critic = dataclasses.replace(state.critic, network={"params": {**layers, "output": output}})
    return dataclasses.replace(state, critic=critic)


def names(result: Replay) -> list[str]:
    return [part.name for part in result.parts]


def culprit_of(result: Replay, part: str) -> Culprit:
    """Return the culprit, once everything up to a part is found to be finite, and it not."""
    *before, last = result.parts
    assert all(one.finite for one in before) and last.name == part and not last.finite and last.outputs
    assert result.culprit is not None and not result.finite
    return result.culprit


class TestParts:
    def test_a_sound_iteration_goes_through_every_part(self, sound: Sound) -> None:
        """No episode ends in it: what has no value then does not count."""
        result = replay(*sound)
        assert names(result) == [
            "rollout",
            "advantages",
            "trust-region step",
            "critic fit",
            "observation statistics",
            "metrics",
        ]
        assert result.finite and result.culprit is None and result.environment is None
        assert result.note.startswith("Every part is finite here")
        assert result.report()[0] == "rollout                 finite" and result.report()[-1] == result.note

    def test_policy(self, sound: Sound) -> None:
        iteration, state = sound
        result = replay(iteration, with_policy(state, log_std=jnp.nan))
        culprit = culprit_of(result, "rollout")
        assert culprit.value == "nan" and culprit.given == ("state.policy.params.log_std",)
        assert culprit.where == "policy" and (result.environment, result.time) == (0, 0)
        culprit = culprit_of(replay(iteration, with_policy(state, log_std=100.0)), "rollout")
        assert culprit.operation == "exp" and culprit.source.endswith("(shifted)")

    def test_the_noise_is_that_of_the_rollout(self, sound: Sound) -> None:
        """A standard deviation of 1.7e38 overflows beyond two of them only: of 80 draws a few, and not the first."""
        iteration, state = sound
        result = replay(iteration, with_policy(state, log_std=88.0))
        culprit = culprit_of(result, "rollout")
        assert (culprit.operation, culprit.value) == ("mul", "inf") and culprit.source.endswith("(shifted)")
        assert (result.environment, result.time) != (0, 0)

    def test_advantages(self, sound: Sound) -> None:
        iteration, state = sound
        culprit = culprit_of(replay(iteration, with_critic(state, jnp.nan)), "advantages")
        assert culprit.value == "nan" and culprit.given == ("state.critic.network.params.output.kernel",)
        culprit = culprit_of(replay(iteration, with_critic(state, 1e30)), "advantages")
        assert culprit.operation == "square"
        assert culprit.source.startswith(str(PACKAGE / "algorithm" / "advantages.py"))
        assert culprit.source.endswith("(weighted_moments)")

    @pytest.mark.parametrize(
        ("log_std", "outcome"), [(-100.0, "non_finite"), (-50.0, "bad_curvature")], ids=["density", "Fisher metric"]
    )
    def test_trust_region_step(self, log_std: float, outcome: str, sound: Sound) -> None:
        """Densities or the Fisher metric overflow, and the step turns that away: nothing of it comes out."""
        iteration, state = sound
        result = replay(iteration, with_policy(state, log_std=log_std, bias=1.0))
        culprit = culprit_of(result, "trust-region step")
        assert f"outcome is {outcome}" in result.parts[-1].outputs
        assert str(PACKAGE) in culprit.source

    def test_bad_curvature_of_finite_numbers_is_none_of_it(self, sound: Sound) -> None:
        class Refusing(Iteration):
            def improve(self, *given: Any) -> TrustRegionStep:
                step = super().improve(*given)
                return step._replace(taken=step.taken._replace(outcome=jnp.int32(StepOutcome.BAD_CURVATURE)))

        iteration, state = sound
        refusing = Refusing(**{field.name: getattr(iteration, field.name) for field in dataclasses.fields(iteration)})
        result = replay(refusing, state)
        assert result.finite and len(result.parts) == 6

    @pytest.mark.parametrize("mode", ["trpo", "natural_gradient"])
    def test_line_search(self, mode: str, sound: Sound) -> None:
        """A trust region of 1e30 nats, and advantages that ask for less noise: no candidate is finite."""
        iteration, state = sound
        iteration = dataclasses.replace(iteration, config=override(iteration.config, mode=mode, max_kl=1e30))
        result = replay(iteration, planned(state, reward=-1.0))
        culprit = culprit_of(result, "trust-region step")
        assert "outcome is non_finite" in result.parts[-1].outputs
        assert str(PACKAGE) in culprit.source

    def test_critic_fit(self, sound: Sound) -> None:
        """The squared error of a hidden layer's worth of 1e25 overflows."""
        iteration, state = sound
        iteration = dataclasses.replace(iteration, config=override(iteration.config, **ADAM, critic_learning_rate=1e25))
        state = dataclasses.replace(
            state, critic_optimizer=critic_optimizer(iteration.config).init(state.critic.network)
        )
        result = replay(iteration, state)
        culprit = culprit_of(result, "critic fit")
        assert result.parts[-1].outputs == ("fit.loss", "5 updates were refused as not finite")
        assert (culprit.operation, culprit.value) == ("mul", "nan")  # 0 x the squared error, which overflowed
        assert "algorithm/minibatches.py" in culprit.source and culprit.source.endswith("(loss_of)")

    def test_refused_minibatches_of_the_critic(self, sound: Sound, monkeypatch: pytest.MonkeyPatch) -> None:
        """An optimiser that divides by zero: every update is refused, and nothing of it comes out."""

        def divided(updates: Any, parameters: Any) -> Any:
            return jax.tree.map(lambda update: update / jnp.zeros_like(update), updates)  # planted: optimiser

        optimizer = optax.flatten(optax.chain(optax.scale_by_adam(), optax.stateless(divided)))
        monkeypatch.setattr("trpo_brax.learner.iteration.critic_optimizer", lambda config: optimizer)
        iteration, state = sound
        iteration = dataclasses.replace(iteration, config=override(iteration.config, **ADAM))
        state = dataclasses.replace(state, critic_optimizer=optimizer.init(state.critic.network))
        result = replay(iteration, state)
        culprit = culprit_of(result, "critic fit")
        assert result.parts[-1].outputs == ("6 updates were refused as not finite",)
        assert culprit.operation == "div"
        assert culprit.source.startswith(line("optimiser"))

    def test_observation_statistics(self, sound: Sound) -> None:
        """Observations whose squares overflow are clipped everywhere else, and their moments refused."""
        iteration, state = sound
        result = replay(iteration, planned(state, observation=1e25))
        culprit = culprit_of(result, "observation statistics")
        assert result.parts[-1].outputs == ("count did not grow",)
        assert (culprit.operation, culprit.value) == ("square", "inf")
        assert culprit.source.endswith("(updated)")

    def test_metrics(self, sound: Sound) -> None:
        """A penalty coefficient beyond float32 where everything that learns is finite."""
        iteration, state = sound
        iteration = dataclasses.replace(iteration, config=override(iteration.config, discount=1.0 - 2.0**-53))
        result = replay(iteration, planned(state, reward=1e12))
        assert not result.finite and result.culprit is None and names(result)[-1] == "metrics"
        assert "penalty_coefficient" in result.parts[-1].outputs
        assert not any(name.startswith(("episode_", "environment")) for name in result.parts[-1].outputs)
        assert result.note.startswith("The metrics: no operation is looked for")


class TestEnvironments:
    @pytest.mark.parametrize(
        ("part", "kind", "operation", "value"),
        [
            (0, "log", "log", "nan"),
            (1, "division", "div", "nan or inf, dividing by zero"),
            (2, "root", "sqrt", "nan"),
            (2, "overflow", "exp", "inf"),
        ],
    )
    def test_step_environment_and_operation(
        self, part: int, kind: str, operation: str, value: str, sound: Sound
    ) -> None:
        """Of observation, reward and physics one is not finite at the fourth step of the environments 3 and 5."""
        iteration, state = sound
        step = [9, 100, 9, 4, 5, 4, 9, 9]
        result = replay(iteration, planned(state, kind=KINDS.index(kind), part=part, step=step))
        culprit = culprit_of(result, "rollout")
        assert result.parts[0].outputs == ("transitions.valid is False",)
        assert (result.environment, result.time) == (3, 3)
        assert (culprit.operation, culprit.value) == (operation, value)
        assert culprit.source.startswith(line(kind)) and culprit.where == "control step"
        assert "In environment 3 at time step 3." in result.report()
        assert result.report()[-1].startswith(f"In the control step, {operation} gave {value}, at {line(kind)}")

    def test_infinite_physics_is_no_fault_until_it_becomes_nan(self, sound: Sound) -> None:
        """Physics holds an infinite distance all the time, as where there is no contact."""
        iteration, state = sound
        result = replay(iteration, planned(state, kind=KINDS.index("no contact"), part=1, step=5))
        culprit = culprit_of(result, "rollout")
        assert (culprit.operation, culprit.given) == ("mul", ("state.pipeline_state.contact",))
        assert culprit.source.startswith(line("no contact")) and (result.environment, result.time) == (0, 4)

    def test_a_return_that_overflows(self, sound: Sound) -> None:
        """Every reward is finite, and the sum of two is not."""
        iteration, state = sound
        result = replay(iteration, planned(state, reward=[1, 1, 3e38, 1, 1, 1, 1, 1]))
        assert result.parts[0].outputs == ("trajectory.transitions.episode_return",)
        assert (result.environment, result.time) == (2, 1) and "a sum over them overflows" in result.report()[-1]

    def test_constants_are_none_of_the_operations(self) -> None:
        """NaN is put into the physics, and no operation makes it: nothing is named, and that is said."""
        result = replay(*setting(Faulty(Fault("physics", step=4, one_in=2))))
        assert not result.finite and result.culprit is None and result.time == 3
        assert result.note.startswith("The control step: not finite, but no operation was found")
        assert result.report()[-1] == result.note

    def test_a_fault_that_heals_within_a_control_step(self) -> None:
        """Of each two simulator steps the first is not finite: nothing of it is left at the end of the second."""
        result = replay(*setting(Faulty(Fault("done", step=3)), action_repeat=2))
        culprit = culprit_of(result, "rollout")
        assert culprit.operation == "add" and "tests/tiny_environments.py" in culprit.source
        assert (result.environment, result.time) == (0, 1)

    def test_first_reset(self) -> None:
        """Of those that begin with one key in three."""
        iteration, state = setting(BrokenReset(one_in=3))
        struck = np.asarray(state.environments.state.info["key"])[:, 1] % 3 == 0
        assert struck.argmax() > 0
        result = replay(iteration, state)
        culprit = culprit_of(result, "rollout")
        assert (result.environment, result.time) == (struck.argmax(), 0)
        assert culprit.operation == "log" and culprit.where == "reset before the iteration"
        assert culprit.source.startswith(line("reset"))

    def test_resets_during_the_iteration_and_at_its_end(self) -> None:
        """Episodes of 5 steps: resets after time steps 4 and 9, of the first and the second state of each pool."""
        iteration, state = setting(BrokenReset(one_in=9), episode_length=5)
        assert np.all(state.environments.healthy)
        struck = {}
        for number in range(200):
            keys = environment_keys(state.key, Stream.STARTING_POOL, 8, number)
            slots = np.asarray(jax.vmap(lambda key: jax.random.split(key, POOL_SIZE))(keys))[:, :2, 1] % 9 == 0
            struck[tuple(slots.any(axis=0))] = number, slots
        for first, time in ((True, 4), (False, 9)):
            number, slots = struck[first, True]
            who = slots[:, 0 if first else 1].argmax()
            result = replay(iteration, dataclasses.replace(state, iteration=jnp.int32(number)))
            culprit = culprit_of(result, "rollout")
            assert (result.environment, result.time) == (who, time)
            assert culprit.operation == "log" and culprit.where == "reset after the time step"
            assert "environments.healthy is False" in result.parts[0].outputs
        # The iteration after begins with it.
        before = dataclasses.replace(state, iteration=jnp.int32(number))
        environments, _ = jax.jit(iteration.gather)(before)
        result = replay(
            iteration, dataclasses.replace(before, iteration=before.iteration + 1, environments=environments)
        )
        culprit = culprit_of(result, "rollout")
        assert (result.environment, result.time) == (who, 0)
        assert culprit.operation == "log" and culprit.where == "reset before the iteration"

    def test_actions_are_those_of_the_rollout(self, sound: Sound) -> None:
        """The one action nearest to 0, among 80 draws, is the one that makes a number that is not finite."""
        iteration, state = sound
        _, trajectory = jax.jit(iteration.gather)(state)
        size = np.abs(np.asarray(trajectory.actions)[..., 0])
        least, second = np.sort(size, axis=None)[:2]
        who, time = np.unravel_index(size.argmin(), size.shape)
        assert time > 0 and second > 1.01 * least
        result = replay(iteration, planned(state, least=(least + second) / 2))
        culprit = culprit_of(result, "rollout")
        assert (result.environment, result.time) == (who, time)
        assert culprit.operation == "sqrt" and culprit.source.startswith(line("effort"))


def test_a_part_of_which_no_operation_is_found(sound: Sound, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs round differently: what the compiled one shows, running it un-jitted need not."""
    iteration, state = sound
    monkeypatch.setattr(replay_module, "find_culprit", lambda *arguments: None)
    result = replay(iteration, with_critic(state, jnp.nan))
    assert not result.finite and names(result) == ["rollout", "advantages"] and result.culprit is None
    assert result.note.startswith("The advantages: not finite, but no operation was found")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["spring", "mjx"])
def test_brax_physics_is_named_down_to_its_line(backend: str) -> None:
    """A pendulum that turns at 1e30 rad/s, or stands nowhere, in one of the environments."""
    config = tiny_config(backend=backend, episode_length=100)
    task = brax_task("inverted_pendulum", backend)
    specification = policy_specification(config, task)
    networks = specification.networks()
    copies = VectorizedEnvironment(task, episode_length=100)
    state = jax.jit(functools.partial(initial_state, config, copies, networks))(jax.random.PRNGKey(0))
    physics = state.environments.state.pipeline_state
    if backend == "mjx":
        physics = physics.replace(qpos=physics.qpos.at[5].set(jnp.inf))
    else:
        physics = physics.replace(xd_i=physics.xd_i.replace(ang=physics.xd_i.ang.at[5].set(1e30)))
    environments = state.environments.replace(state=state.environments.state.replace(pipeline_state=physics))
    state = dataclasses.replace(state, environments=environments)
    result = replay(Iteration(config, copies, networks, specification.bounds), state)
    culprit = culprit_of(result, "rollout")
    assert (result.environment, result.time) == (5, 0)
    assert ("mujoco/" if backend == "mjx" else "brax/spring/") in culprit.source and culprit.where == "control step"


KINDS = ("nothing", "log", "root", "division", "overflow", "no contact")


class Planned(PointMass):
    """A point mass whose `info` says what goes wrong, where and at which step: one program for all plans.

    Physics holds an infinity all the time, as Brax's does where there is no contact.
    """

    def reset(self, rng: jax.Array) -> State:
        state = super().reset(rng)
        plan = {"kind": 0, "part": 0, "step": 0, "count": 0, "reward": 1.0, "observation": 1.0, "least": -1.0}
        physics = {"position": state.pipeline_state, "contact": jnp.full((), jnp.inf)}
        return state.replace(pipeline_state=physics, info=plan)

    def step(self, state: State, action: jax.Array) -> State:
        plan = state.info | {"count": state.info["count"] + 1}
        distance = state.pipeline_state["contact"]
        after = super().step(state.replace(pipeline_state=state.pipeline_state["position"]), action)
        left = (plan["step"] - plan["count"]).astype(jnp.float32)
        lower = left - 0.5
        effort = jnp.sqrt(jnp.abs(action[0]) - plan["least"])  # planted: effort
        kinds = [
            lambda: ZERO,
            lambda: jnp.log(lower),  # planted: log
            lambda: jnp.sqrt(lower),  # planted: root
            lambda: left / left,  # planted: division
            lambda: jnp.exp(100 - 200 * lower),  # planted: overflow
            lambda: distance * ZERO,  # planted: no contact
        ]
        number = jax.lax.switch(plan["kind"], kinds)
        observation, reward, physics = (
            jnp.where((left == 0) & (plan["part"] == part), number, sound)
            for part, sound in enumerate((after.obs, after.reward - effort / 8, after.pipeline_state))
        )
        return after.replace(
            obs=plan["observation"] * observation,
            reward=plan["reward"] * (1 + reward / 8),
            pipeline_state={"position": physics, "contact": distance},
            info=plan,
        )


class BrokenReset(TinyEnvironment):
    """Observes the logarithm of a negative number where an episode begins with one key in so many."""

    def __init__(self, one_in: int) -> None:
        self.one_in = one_in

    def reset(self, rng: jax.Array) -> State:
        logarithm = jnp.log(jnp.where(rng[1] % self.one_in == 0, -1.0, 1.0))  # planted: reset
        return State(None, logarithm[None], ZERO, ZERO, {}, {"key": rng})

    def step(self, state: State, action: jax.Array) -> State:
        return state.replace(reward=action[0])
