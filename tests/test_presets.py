"""Every task has settings that train it, at any size."""

import math

import pytest

from trpo_brax import preset
from trpo_brax.config import Config, override
from trpo_brax.environments import TASKS
from trpo_brax.errors import ConfigError
from trpo_brax.presets import PRESETS

BRAX_TASKS = {
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
}


def test_every_task_has_a_preset_and_no_other() -> None:
    assert set(PRESETS) == set(TASKS) == BRAX_TASKS


@pytest.mark.parametrize("task", sorted(BRAX_TASKS))
class TestPreset:
    """One preset."""

    def test_trains_the_task_it_is_named_after_on_a_backend_that_supports_it(self, task: str) -> None:
        config = preset(task)
        assert isinstance(config, Config)
        assert config.task == task and config.environment is None
        assert config.rollout.backend in TASKS[task]

    @pytest.mark.parametrize(("num_envs", "unroll_length"), [(4, 4), (5, 7), (4096, 4), (4, 1000)])
    def test_keeps_every_other_setting_at_any_size(self, task: str, num_envs: int, unroll_length: int) -> None:
        config = override(preset(task), num_envs=num_envs, unroll_length=unroll_length)
        assert config.steps_per_iteration == num_envs * unroll_length
        assert config.total_iterations == math.ceil(preset(task).total_steps / (num_envs * unroll_length))
        assert config.trust_region == preset(task).trust_region and config.critic == preset(task).critic

    def test_default_checkpoints_are_at_least_two_after_60_iterations(self, task: str) -> None:
        record = preset(task).record
        assert min(60 // record.checkpoint_every, record.checkpoints_to_keep) >= 2
        assert preset(task).total_iterations >= 60


@pytest.mark.parametrize(
    ("wrong", "near"), [("hoper", "hopper"), ("Ant", "ant"), ("half_cheetah", "halfcheetah"), ("cartpole", "ant")]
)
def test_an_unknown_task_is_refused_with_the_nearest_names(wrong: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preset(wrong)
    assert repr(wrong) in str(caught.value) and near in str(caught.value)
