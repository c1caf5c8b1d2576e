"""Each column takes the steps that its rate is stated in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_environments import History, PointMass
from tests.tiny_programs import tiny_config
from trpo_brax.benchmark.columns import Columns, measure_columns, physics, training
from trpo_brax.benchmark.timing import Samples
from trpo_brax.benchmark.workbench import Workbench
from trpo_brax.environments import own_task


@pytest.mark.parametrize("action_repeat", [1, 3])
def test_physics_alone_takes_every_step_and_never_resets(action_repeat: int) -> None:
    config = tiny_config(action_repeat=action_repeat)
    bench = Workbench.build(config, own_task(History(), config.rollout), jax.devices()[:2])
    walk, state, actions = physics(bench)
    end = walk(state, actions)
    # History counts its own steps, and its episodes end by themselves after 7 at most.
    taken = np.asarray(end.info["count"] - state.info["count"])
    assert taken.tolist() == [config.rollout.unroll_length * action_repeat] * 8
    assert len(end.obs.sharding.device_set) == 2


def test_physics_alone_is_the_environments_own_step(workbench: Workbench) -> None:
    walk, state, actions = physics(workbench)
    end = walk(state, actions)
    environment = PointMass()
    for n in range(8):
        alone = jax.tree.map(lambda leaf, n=n: jnp.asarray(leaf)[n], state)
        for action in np.asarray(actions)[:, n]:
            alone = environment.step(alone, jnp.asarray(action))
        np.testing.assert_allclose(end.obs[n], alone.obs, atol=1e-6)
        np.testing.assert_allclose(end.reward[n], alone.reward, atol=1e-6)


def test_actions_differ_between_environments_and_steps_and_fill_their_bounds(workbench: Workbench) -> None:
    _, _, actions = physics(workbench)
    assert actions.shape == (10, 8, 1)
    assert np.unique(np.asarray(actions)).size == actions.size
    assert -1.0 <= actions.min() < -0.5 < 0.5 < actions.max() <= 1.0


def test_a_call_of_training_is_one_iteration_on_what_the_last_one_left(workbench: Workbench) -> None:
    train = training(workbench)
    assert [int(train()[0].iteration) for _ in range(3)] == [2, 3, 4]


def test_columns_are_measured_over_the_same_steps(workbench: Workbench) -> None:
    columns = measure_columns(workbench, 2)
    assert columns.steps == 8 * 10
    assert {name: len(one.seconds) for name, one in columns.times.items()} == {
        "physics": 2,
        "rollout": 2,
        "training": 2,
    }


def test_ratios_are_of_speeds() -> None:
    times = {"physics": Samples((1.0, 2.0)), "rollout": Samples((2.0, 4.0)), "training": Samples((4.0, 8.0))}
    columns = Columns(100, times)
    assert [columns.to_physics(name) for name in times] == [1.0, 0.5, 0.25]
    assert columns.rates()["training"] == (12.5, pytest.approx(100 / 6), 25.0)
