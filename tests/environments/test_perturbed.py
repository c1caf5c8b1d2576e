"""Perturbed worlds: the trained one is itself bit for bit, and each factor does to the physics what its name says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs
from brax.io import mjcf

from tests.tiny_environments import History, PointMass, TinyEnvironment
from trpo_brax.config import RolloutConfig
from trpo_brax.environments import Task, VectorizedEnvironment, brax_task, own_task
from trpo_brax.environments.perturbed import Perturbation, applicable, perturbed_task

KEY = jax.random.PRNGKey(0)
SLIDE = """
<mujoco>
  <option gravity="0 0 -10" timestep="0.002"/>
  <custom><numeric data="{scale}" name="spring_mass_scale"/><numeric data="0" name="spring_inertia_scale"/></custom>
  <worldbody>
    <body name="cart"><joint name="slide" type="slide" axis="1 0 0"/>
      <geom type="sphere" size="0.1" mass="3" contype="0" conaffinity="0"/></body>
    <body name="weight" pos="0 0 5"><freejoint/>
      <geom type="sphere" size="0.1" mass="2" contype="0" conaffinity="0"/></body>
  </worldbody>
  <actuator><motor joint="slide" gear="4" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


class Slide(envs.PipelineEnv):
    """A cart pushed along a rail by a force of 4 a unit of action, and a weight that falls; neither meets anything."""

    def __init__(self, backend: str, scale: float) -> None:
        super().__init__(mjcf.loads(SLIDE.format(scale=scale)), backend=backend, n_frames=5)

    def reset(self, rng: jax.Array) -> envs.State:
        physics = self.pipeline_init(self.sys.init_q, jnp.zeros(self.sys.qd_size()))
        zero = jnp.zeros(())
        return envs.State(physics, self._observed(physics), zero, zero, {}, {})

    def step(self, state: envs.State, action: jax.Array) -> envs.State:
        physics = self.pipeline_step(state.pipeline_state, action)
        return state.replace(pipeline_state=physics, obs=self._observed(physics))

    def _observed(self, physics: Any) -> jax.Array:
        return jnp.stack([physics.xd.vel[0, 0], physics.xd.vel[1, 2]])


QUICK = [("spring", 1.0), ("mjx", 0.0)]
OTHERS = [("spring", 0.0), ("positional", 0.3), ("generalized", 0.0)]
BACKENDS = [*QUICK, *(pytest.param(pair, marks=pytest.mark.slow) for pair in OTHERS)]


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def velocities(request: pytest.FixtureRequest) -> Any:
    """Return a compiled function: a perturbation -> velocity of the cart and of the weight after 0.1 s of full push."""
    task = own_task(Slide(*request.param), RolloutConfig())

    @jax.jit
    def after(perturbation: Perturbation) -> jax.Array:
        environment = perturbed_task(task, perturbation, jnp.ones(2)).environment
        state = environment.reset(jax.random.PRNGKey(0))
        step = lambda state, _: (environment.step(state, jnp.ones(1)), None)
        return jax.lax.scan(step, state, None, length=10)[0].obs

    return after


class TestPhysics:
    """Newton: v = F t / m for the cart, v = g t for the weight."""

    def test_each_factor(self, velocities: Any) -> None:
        cart, weight = (float(speed) for speed in velocities(Perturbation.none()))
        assert cart > 0.0 and weight == pytest.approx(-1.0, rel=0.03)
        for factor in (0.5, 2.0):
            wanted = {
                "mass": (cart / factor, weight),
                "gain": (cart * factor, weight),
                "gravity": (cart, weight * factor),
                "friction": (cart, weight),
            }
            for name, expected in wanted.items():
                found = velocities(Perturbation.of(name, factor))
                np.testing.assert_allclose(found, expected, rtol=0.02, err_msg=f"{name} x {factor}")


BOX = """
<mujoco>
  <option timestep="0.004"/>
  <worldbody>
    <geom type="plane" size="50 50 1" friction="0.5"/>
    <body name="box" pos="0 0 0.1"><freejoint/><geom type="box" size="0.3 0.3 0.1" mass="1" friction="0.5"/></body>
  </worldbody>
</mujoco>
"""


class Box(Slide):
    """A box that slides along the ground, at first by 3 m/s."""

    def __init__(self, backend: str) -> None:
        envs.PipelineEnv.__init__(self, mjcf.loads(BOX), backend=backend, n_frames=5)

    def reset(self, rng: jax.Array) -> envs.State:
        physics = self.pipeline_init(self.sys.init_q, jnp.zeros(self.sys.qd_size()).at[0].set(3.0))
        zero = jnp.zeros(())
        return envs.State(physics, self._observed(physics), zero, zero, {}, {})

    def _observed(self, physics: Any) -> jax.Array:
        return physics.x.pos[0, :1]


@pytest.mark.parametrize("backend", ["spring", pytest.param("mjx", marks=pytest.mark.slow)])
def test_friction_holds_a_sliding_box_back(backend: str) -> None:
    """Coulomb: after v / (mu g), here 0.6 s, it has slid v^2 / (2 mu g); on twice the friction half as far."""
    box = Box(backend)
    task = Task("box", box, (-1.0,), (1.0,))

    @jax.jit
    def distance(perturbation: Perturbation) -> jax.Array:
        world = perturbed_task(task, perturbation, jnp.ones(1)).environment
        step = lambda state, _: (world.step(state, jnp.zeros(0)), None)
        return jax.lax.scan(step, world.reset(KEY), None, length=60)[0].obs[0]

    same, twice = (float(distance(Perturbation.of("friction", factor))) for factor in (1.0, 2.0))
    assert same == pytest.approx(9.0 / (2 * 0.5 * 9.81), rel=0.25)
    assert twice == pytest.approx(same / 2, rel=0.2)


def rolled(task: Task, perturbation: Perturbation, steps: int, std: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return what was observed [steps + 1, observation], and what an unperturbed world shows under the same actions."""
    environment = perturbed_task(task, perturbation, jnp.full(task.observation_size, std)).environment
    size = len(task.action_low)
    actions = jax.random.uniform(jax.random.PRNGKey(1), (steps, size), minval=-1.0)
    key = jax.random.PRNGKey(7)
    seen, plain = [], []
    for world, found in ((environment, seen), (task.environment, plain)):
        state = jax.jit(world.reset)(key)
        step = jax.jit(world.step)
        found.append(state.obs)
        for action in actions:
            state = step(state, action)
            found.append(state.obs)
    return np.asarray(seen), np.asarray(plain)


class TestSensors:
    """What is seen of a world that is itself unchanged; the tiny environments have no bodies, and need none."""

    TASK = own_task(PointMass(), RolloutConfig())

    def test_the_trained_world_is_itself_bit_for_bit(self) -> None:
        seen, plain = rolled(self.TASK, Perturbation.none(), 6)
        assert seen.tobytes() == plain.tobytes()

    @pytest.mark.parametrize("delay", [1, 3, 8])
    def test_a_delay_shows_what_was_some_steps_ago_and_the_first_until_then(self, delay: int) -> None:
        seen, plain = rolled(self.TASK, Perturbation.of("delay", delay), 12)
        wanted = plain[np.maximum(np.arange(13) - delay, 0)]
        np.testing.assert_array_equal(seen, wanted)

    @pytest.mark.parametrize("repeat", [1, 4])
    def test_a_delay_is_counted_in_control_steps(self, repeat: int) -> None:
        """Of an environment that observes how many simulator steps it has taken."""
        task = own_task(Counter(), RolloutConfig())
        late = perturbed_task(task, Perturbation.of("delay", 3), jnp.ones(1), repeat)
        environment = VectorizedEnvironment(late, episode_length=100, action_repeat=repeat)
        state, seen = environment.reset(jax.random.split(KEY, 1)).state, []
        for _ in range(6):
            state = jax.vmap(environment.simulate)(state, jnp.zeros((1, 1))).state
            seen.append(float(state.obs[0, 0]))
        assert seen == [0, 0, 0, repeat, 2 * repeat, 3 * repeat]

    def test_noise_is_gaussian_fresh_each_step_and_in_units_of_the_training(self) -> None:
        seen, plain = rolled(self.TASK, Perturbation.of("observation_noise", 0.1), 400, std=5.0)
        noise = (seen - plain).ravel()
        assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(noise.size) and noise.std() == pytest.approx(0.5, rel=0.1)
        assert np.unique(noise).size == noise.size
        assert np.abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.2

    def test_rewards_ends_and_time_limits_are_the_inner_environments(self) -> None:
        task = own_task(History(), RolloutConfig())
        world = perturbed_task(task, Perturbation.of("delay", 2), jnp.ones(task.observation_size)).environment
        states = [jax.jit(one.reset)(jax.random.PRNGKey(3)) for one in (world, task.environment)]
        for _ in range(7):
            states = [
                jax.jit(one.step)(state, jnp.ones(1))
                for one, state in zip((world, task.environment), states, strict=True)
            ]
            assert float(states[0].reward) == float(states[1].reward)
            assert float(states[0].done) == float(states[1].done)


class Counter(TinyEnvironment):
    """Observes how often it was stepped."""

    def reset(self, rng: jax.Array) -> envs.State:
        zero = jnp.zeros(())
        return envs.State(None, jnp.zeros(1), zero, zero, {}, {})

    def step(self, state: envs.State, action: jax.Array) -> envs.State:
        return state.replace(obs=state.obs + 1.0)


class Holds(TinyEnvironment):
    """Holds the `sys` of another environment, which it leaves the simulating to."""

    def __init__(self) -> None:
        self._inner = envs.get_environment("inverted_pendulum", backend="spring")
        self.sys = self._inner.sys

    def reset(self, rng: jax.Array) -> envs.State:
        return self._inner.reset(rng)

    def step(self, state: envs.State, action: jax.Array) -> envs.State:
        return self._inner.step(state, action)


def test_where_nobody_knows_what_is_simulated_bodies_are_left_alone() -> None:
    """A changed `sys` would change nothing there, and the certificate would say that nothing harms."""
    task = dataclasses.replace(brax_task("inverted_pendulum", "spring"), environment=Holds())
    assert applicable(task) == ("observation_noise", "delay")


def test_where_there_are_no_bodies_only_sensors_can_be_perturbed() -> None:
    assert applicable(own_task(PointMass(), RolloutConfig())) == ("observation_noise", "delay")
    names = tuple(field.name for field in dataclasses.fields(Perturbation))
    assert applicable(brax_task("inverted_pendulum", "spring")) == names


def test_the_environment_given_is_left_as_it_was() -> None:
    task = brax_task("inverted_pendulum", "spring")
    before = task.environment.sys
    perturbed_task(task, Perturbation.of("mass", 2.0), jnp.ones(task.observation_size))
    assert task.environment.sys is before
