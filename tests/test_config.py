"""The configuration: found by name, checked when built, the same after JSON, and its own manual."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
from typing import Any

import pytest

from tests.tiny_runs import another
from trpo_brax import config as module
from trpo_brax.config import (
    Checked,
    Config,
    from_dict,
    override,
    shaping_differences,
    to_dict,
    walk,
)
from trpo_brax.errors import ConfigError

MAY_CHANGE_ON_RESUME = {
    "total_steps",
    "checkpoint_every",
    "checkpoints_to_keep",
    "final_evaluation_episodes",
    "eval_every",
    "eval_episodes",
    "platform",
    "cpu_devices",
    "coordinator",
    "num_processes",
    "process_id",
    "max_chunk_seconds",
    "max_nonfinite_share",
    "check_finite",
    "deterministic",
    "compilation_cache",
}

GO_TOGETHER = {"action_low", "action_high", "environment_arguments", "anneal_steps"}
GO_TOGETHER |= {"final_max_kl", "final_discount", "final_log_std"}
"""Fields that cannot be set without another."""

FIELDS = {name: (value, hint) for name, value, hint in walk(Config())}

# Field, values that are just allowed, values that are just not.
EDGES: list[tuple[str, list[Any], list[Any]]] = [
    ("seed", [0, 2**32 - 1], [-1, 2**32]),
    ("num_seeds", [1, 100], [0, -1, 1.5]),
    ("total_steps", [1, 10**18], [0, -1]),
    ("num_processes", [None, 1], [0, -1]),
    ("process_id", [None, 0], [-1]),
    ("num_envs", [4], [3, 0, -4]),
    ("unroll_length", [4], [3, 0]),
    ("episode_length", [1], [0, -1]),
    ("action_repeat", [1], [0]),
    (
        "policy_hidden_sizes",
        [(), (1,), [64, 1], (2**16,), (1,) * 64],
        [(0,), (64, -1), (64, 2.0), 64, (2**16 + 1,), (1,) * 65],
    ),
    ("critic_hidden_sizes", [(), (1,)], [(0,), "64"]),
    ("initial_log_std", [-10.0, 2.0], [-10.001, 2.001]),
    ("policy_output_scale", [1e-9], [0.0, -1.0]),
    ("observation_clip", [1e-9], [0.0]),
    ("max_kl", [1e-9, 100.0], [0.0, -0.01]),
    ("discount", [0.0, 1.0], [-1e-9, 1.000001]),
    ("trace_decay", [0.0, 1.0], [-1e-9, 1.000001]),
    ("damping", [0.0], [-1e-9]),
    ("cg_iterations", [1], [0]),
    ("cg_tolerance", [0.0], [-1e-9]),
    ("fisher_fraction", [1e-6, 1.0], [0.0, 1.000001]),
    ("line_search_steps", [1], [0]),
    ("backtrack_factor", [1e-6, 0.999999], [0.0, 1.0]),
    ("acceptance_ratio", [0.0, 0.999999], [-1e-9, 1.0]),
    ("critic", ["gauss_newton", "adam"], ["sgd"]),
    ("critic_steps", [1], [0]),
    ("critic_damping", [0.0], [-1e-9]),
    ("critic_cg_iterations", [1], [0]),
    ("critic_fraction", [1e-6, 1.0], [0.0, 1.000001]),
    ("critic_learning_rate", [1e-9], [0.0]),
    ("critic_epochs", [1], [0]),
    ("critic_minibatches", [1], [0]),
    ("checkpoint_every", [1], [0]),
    ("checkpoints_to_keep", [1], [0]),
    ("final_evaluation_episodes", [0], [-1]),
    ("eval_every", [None, 0], [-1]),
    ("eval_episodes", [1], [0]),
    ("cpu_devices", [None, 1], [0]),
    ("max_chunk_seconds", [1e-3], [0.0]),
    ("max_nonfinite_share", [0.0, 1.0], [-1e-9, 1.000001]),
    ("backend", ["spring", "positional", "generalized", "mjx"], ["Spring", "", None]),
    ("activation", ["tanh", "swish", "relu", "elu"], ["sigmoid"]),
    ("mode", ["trpo", "natural_gradient"], ["ppo"]),
    ("platform", ["auto", "cpu", "gpu"], ["tpu"]),
]


def classes() -> list[type]:
    """Return every class of the configuration tree."""
    return [cls for cls in vars(module).values() if isinstance(cls, type) and dataclasses.is_dataclass(cls)]


def leaf_names(cls: type) -> list[str]:
    """Return the names of all leaf fields, found without the module's own walk."""
    names = []
    for field in dataclasses.fields(cls):
        nested = field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(field.default_factory)
        names += leaf_names(field.default_factory) if nested else [field.name]
    return names


class TestTree:
    """Fields have one name, one value and one sentence."""

    def test_names_are_unique(self) -> None:
        names = leaf_names(Config)
        assert len(names) == len(set(names)) == len(list(walk(Config())))
        assert set(names) == set(FIELDS)

    def test_every_field_has_a_docstring(self) -> None:
        told = {}
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(field, ast.AnnAssign):
                        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        name = field.target.id  # of a field, or of a group that may be called like one of its fields
                        told[name] = after.value.value if documented else told.get(name)
        for name in FIELDS:
            assert told[name], f"{name} has no docstring"
            assert told[name].endswith(".") and "\n" not in told[name], f"{name}: one line"

    def test_it_is_frozen(self) -> None:
        config = Config()
        for node in (config, *(getattr(config, f.name) for f in dataclasses.fields(config))):
            if isinstance(node, Checked):
                for field in dataclasses.fields(node):
                    with pytest.raises(dataclasses.FrozenInstanceError):
                        setattr(node, field.name, getattr(node, field.name))

    def test_it_is_a_value(self) -> None:
        assert Config() == Config()
        assert hash(Config()) == hash(Config())
        assert override(Config(), seed=1) != Config()


class TestOverride:
    """Any field by its name."""

    @pytest.mark.parametrize("name", sorted(set(FIELDS) - GO_TOGETHER))
    def test_it_changes_that_field_alone(self, name: str) -> None:
        value = another(name, *FIELDS[name])
        changed = {key: item for key, item, _ in walk(override(Config(), **{name: value}))}
        assert changed == {key: item for key, (item, _) in FIELDS.items()} | {name: value}

    def test_it_changes_fields_of_several_groups_at_once(self) -> None:
        config = override(Config(), seed=7, num_envs=512, discount=0.995, critic_epochs=2, action_low=-2, action_high=3)
        assert (config.seed, config.rollout.num_envs, config.trust_region.discount) == (7, 512, 0.995)
        assert (config.critic.critic_epochs, config.rollout.action_low, config.rollout.action_high) == (2, -2.0, 3.0)

    def test_it_leaves_the_old_one(self) -> None:
        old = Config()
        override(old, num_envs=8)
        assert old == Config()

    @pytest.mark.parametrize(
        ("wrong", "near"), [("num_env", "num_envs"), ("gamma_discount", "discount"), ("maxkl", "max_kl")]
    )
    def test_an_unknown_name_is_refused_with_the_nearest(self, wrong: str, near: str) -> None:
        with pytest.raises(ConfigError) as caught:
            override(Config(), **{wrong: 1})
        assert wrong in str(caught.value) and near in str(caught.value)

    def test_a_group_is_no_field(self) -> None:
        with pytest.raises(ConfigError, match="rollout"):
            override(Config(), rollout=Config().rollout)


class TestBounds:
    """No `Config` with a value that cannot work exists."""

    @pytest.mark.parametrize(("name", "allowed", "refused"), EDGES, ids=[name for name, _, _ in EDGES])
    def test_exactly_at_the_edges(self, name: str, allowed: list[Any], refused: list[Any]) -> None:
        for value in allowed:
            override(Config(), **{name: value})
        for value in refused:
            with pytest.raises(ConfigError, match=rf"^{name} must be .*, not ") as caught:
                override(Config(), **{name: value})
            assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))

    def test_every_number_has_been_tried_at_its_edges(self) -> None:
        tried = {name for name, _, _ in EDGES}
        free = {"task", "environment", "coordinator", "compilation_cache", "spread_initial_steps"}
        free |= {"check_finite", "deterministic", "bounded_means"}
        free |= GO_TOGETHER
        assert tried | free == set(FIELDS)

    @pytest.mark.parametrize("name", [name for name, (value, _) in FIELDS.items() if isinstance(value, float)])
    def test_no_number_may_be_infinite_or_nan(self, name: str) -> None:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ConfigError, match=name):
                override(Config(), **{name: value})

    @pytest.mark.parametrize("bounds", [(1.0, 1.0), (2.0, -2.0), (math.nan, 1.0), (-math.inf, 1.0), (-1.0, None)])
    def test_action_bounds_must_be_two_finite_numbers_in_order(self, bounds: tuple[Any, Any]) -> None:
        with pytest.raises(ConfigError, match="action_"):
            override(Config(), action_low=bounds[0], action_high=bounds[1])

    def test_what_is_led_somewhere_needs_a_length_and_a_length_what_is_led(self) -> None:
        for led in ({"final_max_kl": 1e-3}, {"final_log_std": -2, "final_max_kl": 1e-3}, {"final_discount": 0.999}):
            override(Config(), anneal_steps=1, **led)
            with pytest.raises(ConfigError, match="anneal_steps"):
                override(Config(), **led)
        with pytest.raises(ConfigError, match="anneal_steps"):
            override(Config(), anneal_steps=1)
        for discount, last in ((1.0, 0.999), (0.99, 1.0), (0.99, -0.1)):
            with pytest.raises(ConfigError, match="final_discount"):
                override(Config(), anneal_steps=1, discount=discount, final_discount=last)

    @pytest.mark.parametrize("name", [name for name, (value, _) in FIELDS.items() if type(value) is int])
    def test_a_whole_number_is_no_bool_float_or_text(self, name: str) -> None:
        for value in (True, 64.0, "64", None):
            with pytest.raises(ConfigError, match=f"^{name} must be a whole number"):
                override(Config(), **{name: value})

    @pytest.mark.parametrize("name", [name for name, (value, _) in FIELDS.items() if type(value) is float])
    def test_a_number_is_no_bool_or_text_and_is_kept_as_a_float(self, name: str) -> None:
        for value in (True, "0.5", None):
            with pytest.raises(ConfigError, match=f"^{name} must be a number"):
                override(Config(), **{name: value})
        if name not in ("backtrack_factor", "acceptance_ratio"):  # 1 is beyond their range
            kept = {key: item for key, item, _ in walk(override(Config(), **{name: 1}))}[name]
            assert type(kept) is float and kept == 1.0

    def test_true_or_false_is_no_number(self) -> None:
        with pytest.raises(ConfigError, match=r"^spread_initial_steps must be true or false"):
            override(Config(), spread_initial_steps=1)

    @pytest.mark.parametrize("name", ["total_steps", "num_envs", "max_kl"])
    def test_a_number_beyond_all_floats_is_refused_in_a_sentence(self, name: str) -> None:
        with pytest.raises(ConfigError, match=name):
            override(Config(), **{name: 10**400})

    @pytest.mark.parametrize(
        "name",
        ["num_envs", "unroll_length", "episode_length", "action_repeat", "cg_iterations", "line_search_steps"],
    )
    def test_a_count_that_the_device_cannot_hold_is_refused(self, name: str) -> None:
        """They are int32 there: 2^31 would fail in the middle of compilation."""
        with pytest.raises(ConfigError, match=name):
            override(Config(), **{name: 2**31})

    def test_a_wrong_choice_gets_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"; did you mean spring\?$"):
            override(Config(), backend="sprig")

    @pytest.mark.parametrize("name", ["rollout", "network", "critic", "record", "runtime"])
    def test_a_group_must_be_of_its_class(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"^{name} must be"):
            Config(**{name: {}})


class TestIterations:
    """`total_steps` is rounded up to whole iterations."""

    @pytest.mark.parametrize(
        ("total_steps", "num_envs", "unroll_length", "iterations"),
        [(1, 4, 4, 1), (16, 4, 4, 1), (17, 4, 4, 2), (1_000_000, 256, 64, 62), (10**18, 5, 7, 28571428571428572)],
    )
    def test_round_up(self, total_steps: int, num_envs: int, unroll_length: int, iterations: int) -> None:
        config = override(Config(), total_steps=total_steps, num_envs=num_envs, unroll_length=unroll_length)
        assert config.total_iterations == iterations


class TestResume:
    """What may change when a run goes on."""

    @pytest.mark.parametrize("name", sorted(set(FIELDS) - GO_TOGETHER))
    def test_everything_that_shapes_learning_is_named(self, name: str) -> None:
        changed = override(Config(), **{name: another(name, *FIELDS[name])})
        assert shaping_differences(Config(), changed) == ([] if name in MAY_CHANGE_ON_RESUME else [name])
        assert shaping_differences(changed, Config()) == ([] if name in MAY_CHANGE_ON_RESUME else [name])

    def test_action_bounds_shape_learning(self) -> None:
        changed = override(Config(), action_low=-3.0, action_high=3.0)
        assert shaping_differences(Config(), changed) == ["action_low", "action_high"]

    def test_arguments_of_an_environment_shape_learning_however_they_are_spelled(self) -> None:
        one, same, other = (
            override(Config(), environment="a:b", environment_arguments=text)
            for text in ('{"goal": 2, "at": [1]}', '{"at":[1],\n"goal":2}', '{"goal": 3, "at": [1]}')
        )
        assert one == same
        assert shaping_differences(one, other) == ["environment_arguments"]

    @pytest.mark.parametrize("text", ["", "2", "[]", "null", "{", "{goal: 2}", '{"a": NaN}', '{"a": 1e999}', "[" * 400])
    def test_arguments_are_a_json_object(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"^environment_arguments .*JSON"):
            override(Config(), environment="a:b", environment_arguments=text)

    @pytest.mark.parametrize("name", ["a:My Env", "a:$x$", "a:b\n", "a/b:c"])
    def test_an_environment_has_a_name_that_can_be_read_again(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"^environment must be"):
            override(Config(), environment=name)

    def test_arguments_without_an_environment_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="give environment, too"):
            override(Config(), environment_arguments="{}")

    def test_all_differences_are_named(self) -> None:
        changed = override(Config(), seed=9, damping=0.2, num_envs=8, total_steps=5)
        assert sorted(shaping_differences(Config(), changed)) == ["damping", "num_envs", "seed"]

    def test_what_may_change_exists(self) -> None:
        assert set(FIELDS) >= MAY_CHANGE_ON_RESUME


class TestJson:
    """config.json holds all of it and is read with suspicion."""

    def test_round_trip(self) -> None:
        changes = {name: another(name, *FIELDS[name]) for name in FIELDS}
        config = override(Config(), **changes)
        for original in (Config(), config):
            assert from_dict(json.loads(json.dumps(to_dict(original), allow_nan=False))) == original

    @pytest.mark.parametrize("name", sorted(MAY_CHANGE_ON_RESUME - {"total_steps"}))
    def test_a_setting_that_came_later_takes_its_default_where_it_does_not_shape_learning(self, name: str) -> None:
        data = to_dict(Config())
        group = next(part for part in data.values() if isinstance(part, dict) and name in part)
        del group[name]
        assert from_dict(data) == Config()

    @pytest.mark.parametrize(("group", "name"), [("rollout", "num_envs"), ("critic", "critic_epochs")])
    def test_one_that_shapes_learning_is_missed(self, group: str, name: str) -> None:
        data = to_dict(Config())
        del data[group][name]
        with pytest.raises(ConfigError, match=f"{group}, lacks the field '{name}'"):
            from_dict(data)

    def test_settings_that_are_gone_are_passed_over(self) -> None:
        data = to_dict(Config())
        data["trust_region"] |= {"damping_patience": 3, "damping_growth": 4.0, "damping_levels": 6}
        assert from_dict(data) == Config()

    def test_whole_numbers_in_the_file_are_numbers(self) -> None:
        data = to_dict(Config())
        data["trust_region"]["damping"] = 1
        assert from_dict(data) == override(Config(), damping=1.0)

    @pytest.mark.parametrize("group", [None, "rollout", "trust_region", "runtime"])
    def test_an_unknown_field_is_named(self, group: str | None) -> None:
        data = to_dict(Config())
        (data if group is None else data[group])["colour"] = 3
        with pytest.raises(ConfigError, match="'colour'") as caught:
            from_dict(data, "runs/a/config.json")
        assert "runs/a/config.json" in str(caught.value) and (group or "") in str(caught.value)

    @pytest.mark.parametrize(
        ("group", "name"),
        [
            (None, "seed"),
            (None, "rollout"),
            (None, "trust_region"),
            ("rollout", "num_envs"),
            ("critic", "critic_epochs"),
        ],
    )
    def test_a_missing_field_is_named(self, group: str | None, name: str) -> None:
        data = to_dict(Config())
        del data["environment_arguments"]  # older runs have none
        del (data if group is None else data[group])[name]
        with pytest.raises(ConfigError, match=f"'{name}'") as caught:
            from_dict(data, "runs/a/config.json")
        assert "runs/a/config.json" in str(caught.value)

    @pytest.mark.parametrize("data", [None, [], 3, "text", {"rollout": []}])
    def test_another_shape_is_refused(self, data: Any) -> None:
        with pytest.raises(ConfigError):
            from_dict(data)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("seed", True), ("seed", 1.0), ("seed", None), ("task", 3), ("total_steps", "5"), ("rollout", 5)],
    )
    def test_wrong_types_are_refused(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=name):
            from_dict({**to_dict(Config()), name: value})
