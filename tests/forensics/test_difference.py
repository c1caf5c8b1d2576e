"""Two runs compared: real ones, and hand-written ones with a planted difference."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.tiny_runs import TINY, another, train_tiny
from trpo_brax.config import MAY_CHANGE, Config, override, to_dict, walk
from trpo_brax.errors import RunFolderError
from trpo_brax.forensics.difference import ORDER, ROUNDING, Difference, compare
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.provenance import provenance
from trpo_brax.runs.records import read_metrics
from trpo_brax.runs.run import Run

QUANTITIES: dict[str, Any] = {
    "critic_loss": 0.25,
    "parameter_fingerprint": "0badcafe",
    "step_outcome": "accepted",
    "kl_mean": 0.0075,
    "cg_relative_residual": 1e-4,
    "cg_iterations": 10,
    "explained_variance": 0.5,
    "environment": {"distance": 2.0, "effort": 0.125},
    "episode_return_mean": 12.5,
    "episodes": 4,
    "env_steps": 100_000,
}
"""From last to first as they are computed: the order in a file must not matter."""

ORIGIN: dict[str, Any] = {
    "created": "2026-01-01T00:00:00+0000",
    "command": ["trpo-brax", "train"],
    "python": "3.11.9",
    "platform": "Linux-6.1",
    "processor": "Some CPU",
    "usable_cores": 2,
    "versions": {"jax": "0.9.2", "brax": "0.14.2", "mujoco-mjx": None},
    "git": {"commit": "a" * 40, "diff": ""},
    "devices": ["cpu:0 cpu", "cpu:1 cpu"],
    "processes": 1,
    "xla_flags": "",
    "jax_settings": {"jax_enable_x64": False},
    "earlier": [],
}


_TICKS = itertools.count(1)


def row(iteration: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a record with its clock, which no other record shares."""
    clock = {"wall_time_s": next(_TICKS) / 7, "steps_per_second": 1e6 / next(_TICKS)}
    return {"iteration": iteration, "seed": seed, **clock, **QUANTITIES, **changes}


def write(
    folder: Path, rows: Iterable[dict[str, Any]], config: Config = TINY, origin: dict[str, Any] | None = ORIGIN
) -> RunFolder:
    """Return a run folder of these records."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    if origin is not None:
        (folder / "provenance.json").write_text(json.dumps(origin))
    return RunFolder(folder)


def five_with(tmp_path: Path, **changes: Any) -> Difference:
    """Compare five iterations with the same five, but for the quantities of the third."""
    b = [row(i, **(changes if i == 3 else {})) for i in range(1, 6)]
    return compare(write(tmp_path / "a", map(row, range(1, 6))), write(tmp_path / "b", b))


def told(difference: Difference) -> str:
    """Return the report as one text, of printable lines."""
    lines = difference.report()
    assert all(line.isprintable() for line in lines)
    json.dumps(difference.to_dict(), allow_nan=False)
    return "\n".join(lines)


class TestRealRuns:
    """Four iterations of a tiny environment."""

    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def settled() -> Iterator[None]:
        """Whoever edits the checkout between two runs does not fail a test."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trpo_brax.runs.provenance._git", lambda: None)
            yield

    @pytest.fixture(scope="class")
    @staticmethod
    def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("runs")

    @pytest.fixture(scope="class")
    @staticmethod
    def whole(folder: Path) -> Run:
        return train_tiny(folder / "whole")

    def test_the_same_seed_does_not_differ(self, folder: Path, whole: Run) -> None:
        difference = compare(whole, train_tiny(folder / "again"))
        assert not difference.differ and difference.compared == 4
        assert difference.configuration == () and difference.provenance == ()
        assert "agrees bit for bit in the 4 rows" in told(difference)
        assert "are the same, as far as they are recorded" in told(difference)

    def test_another_seed_differs_from_the_first_iteration(self, folder: Path, whole: Run) -> None:
        difference = compare(whole, train_tiny(folder / "seed", config=override(TINY, seed=1)))
        assert difference.first is not None and difference.beyond_rounding == difference.first
        assert (difference.first.iteration, difference.first.seeds) == (1, (0, 1))
        assert difference.first.values[0].name.startswith(("episode", "environment/")), "the rollout comes first"
        assert difference.fingerprint == difference.first
        assert [field.name for field in difference.configuration] == ["seed"]
        assert difference.shaping == ("seed",)
        assert "seed: 0 in A, 1 in B, shapes learning" in told(difference)

    def test_a_resumed_run_does_not_differ_from_one_that_never_stopped(self, folder: Path, whole: Run) -> None:
        """Level D2; its checkpoint is compared in tests/training/test_loop.py."""
        stopped = train_tiny(folder / "stopped", config=override(TINY, total_steps=2 * 64))
        difference = compare(stopped, whole)
        assert difference.first is None and difference.differ
        assert "B is longer: it ends at iteration 4, A at 2." in told(difference)
        assert [field.name for field in difference.configuration] == ["total_steps"] and difference.shaping == ()
        resumed = train_tiny(folder / "stopped", resume=True)
        difference = compare(resumed, whole)
        assert len(json.loads((resumed.path / "provenance.json").read_text())["earlier"]) == 1
        assert not difference.differ and difference.compared == 4 and difference.provenance == ()

    def test_a_changed_trust_region_is_named_where_it_begins_to_matter(self, folder: Path, whole: Run) -> None:
        difference = compare(whole, train_tiny(folder / "max_kl", config=override(TINY, max_kl=0.02)))
        assert difference.first is not None and difference.first.iteration == 1
        # Rollout and advantages are those of the same policy, conjugate gradient knows no trust region.
        assert ORDER.index(difference.first.values[0].name) > ORDER.index("cg_relative_residual")
        assert difference.shaping == ("max_kl",)
        assert "max_kl: 0.01 in A, 0.02 in B, shapes learning" in told(difference)

    def test_the_order_knows_every_quantity(self, whole: Run) -> None:
        recorded = {name for name in whole.metrics()[0] if name not in ("seed", "iteration", "wall_time_s")}
        assert recorded - {"steps_per_second"} == set(ORDER), "a new quantity has to find its place in ORDER"
        assert len(ORDER) == len(set(ORDER))


class TestQuantities:
    """One planted difference, in the third of five iterations."""

    @pytest.mark.parametrize(
        ("changes", "name", "values"),
        [
            ({"critic_loss": 0.5}, "critic_loss", (0.25, 0.5)),
            ({"episodes": 5}, "episodes", (4, 5)),
            ({"step_outcome": "no_improvement"}, "step_outcome", ("accepted", "no_improvement")),
            ({"episode_return_mean": None}, "episode_return_mean", (12.5, None)),
            ({"environment": {"distance": 2.0, "effort": 0.25}}, "environment/effort", (0.125, 0.25)),
            ({"kl_mean": 0.0075000000000000015}, "kl_mean", (0.0075, 0.0075000000000000015)),
        ],
    )
    def test_it_is_found(self, tmp_path: Path, changes: dict[str, Any], name: str, values: tuple[Any, Any]) -> None:
        difference = five_with(tmp_path, **changes)
        first = difference.first
        assert difference.differ and first is not None
        assert (first.iteration, first.seeds, first.compared) == (3, (0, 0), 12)
        (value,) = first.values
        assert (value.name, value.a, value.b, value.only_in) == (name, *values, None)
        line = f"First difference, iteration 3: {name}: {json.dumps(values[0])} in A, {json.dumps(values[1])} in B"
        assert line in told(difference) and "1 of 12 quantities differ there." in told(difference)
        assert difference.fingerprint is None and "parameters agree" in told(difference)

    def test_the_clock_is_not_compared(self, tmp_path: Path) -> None:
        assert not five_with(tmp_path, wall_time_s=1e9, steps_per_second=1.0).differ

    def test_the_sign_of_a_zero_is(self, tmp_path: Path) -> None:
        runs = [write(tmp_path / f"{zero}", [row(1, kl_mean=zero)]) for zero in (0.0, -0.0)]
        difference = compare(*runs)
        assert difference.first is not None and difference.first.rounding
        assert "kl_mean: 0.0 in A, -0.0 in B" in told(difference)

    def test_they_stand_as_they_are_computed(self, tmp_path: Path) -> None:
        """Rollout, advantages, policy step with the fingerprint of its outcome, critic, and what nobody knows."""
        changes = {name: "other" if isinstance(value, str) else 99 for name, value in QUANTITIES.items()}
        changes["environment"] = {"distance": 3.0, "effort": 1.0}
        a = write(tmp_path / "a", [row(1, a_new_one=1)])
        first = compare(a, write(tmp_path / "b", [row(1, a_new_one=2, **changes)])).first
        assert first is not None
        assert [value.name for value in first.values] == [
            "env_steps",
            "episodes",
            "episode_return_mean",
            "environment/distance",
            "environment/effort",
            "explained_variance",
            "cg_iterations",
            "cg_relative_residual",
            "step_outcome",
            "kl_mean",
            "parameter_fingerprint",
            "critic_loss",
            "a_new_one",
        ]

    def test_the_first_iteration_counts_and_not_the_first_line(self, tmp_path: Path) -> None:
        b = [row(3, episodes=9), row(2, critic_loss=9.0), row(1)]
        difference = compare(write(tmp_path / "a", [row(3), row(1), row(2)]), write(tmp_path / "b", b))
        assert difference.first is not None and difference.first.iteration == 2
        assert difference.first.values[0].name == "critic_loss"

    @pytest.mark.parametrize("loss", [0.25001, 1.0])
    def test_parameters_may_differ_later_than_the_rest(self, tmp_path: Path, loss: float) -> None:
        b = [row(i, critic_loss=loss if i > 1 else 0.25, parameter_fingerprint=f"{i // 4:08x}") for i in range(1, 7)]
        a = [row(i, parameter_fingerprint="00000000") for i in range(1, 7)]
        difference = compare(write(tmp_path / "a", a), write(tmp_path / "b", b))
        assert difference.first is not None and difference.first.iteration == 2
        assert difference.fingerprint is not None and difference.fingerprint.iteration == 4
        assert "The policy's parameters differ from iteration 4." in told(difference)

    @pytest.mark.parametrize("name", ["kl_mean", "parameter_fingerprint"])
    @pytest.mark.parametrize(("holder", "other"), ["ab", "ba"])
    def test_a_quantity_missing_in_one_row_is_a_difference(
        self, tmp_path: Path, holder: str, other: str, name: str
    ) -> None:
        rows = [row(1), row(2)]
        lacking = copy.deepcopy(rows)
        del lacking[1][name]
        write(tmp_path / holder, rows), write(tmp_path / other, lacking)
        difference = compare(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
        assert difference.first is not None and difference.first.iteration == 2 and not difference.first.rounding
        assert (difference.first.values[0].name, difference.first.values[0].only_in) == (name, holder)
        assert f"not recorded in {other.upper()}" in told(difference)

    def test_a_quantity_that_one_run_never_records_does_not_hide_the_others(self, tmp_path: Path) -> None:
        older = [{name: value for name, value in row(i).items() if name != "episodes"} for i in (1, 2)]
        newer = [row(1, environment={"effort": 0.125, "distance": 2.0, "height": 1.0}), row(2, kl_mean=0.5)]
        difference = compare(write(tmp_path / "a", older), write(tmp_path / "b", newer))
        assert difference.alone == ("Only B records episodes, environment/height.",)
        assert difference.first is not None and difference.first.iteration == 2
        assert difference.first.values[0].name == "kl_mean"

    def test_a_quantity_more_is_a_difference_by_itself(self, tmp_path: Path) -> None:
        difference = compare(write(tmp_path / "a", [row(1, new=1.0)]), write(tmp_path / "b", [row(1)]))
        assert difference.differ and difference.first is None
        assert "Only A records new." in told(difference)

    def test_fingerprints_may_be_missing(self, tmp_path: Path) -> None:
        rows = [{name: value for name, value in row(1).items() if name != "parameter_fingerprint"}]
        other = [{**rows[0], "kl_mean": 0.5}]
        difference = compare(write(tmp_path / "a", rows), write(tmp_path / "b", other))
        assert difference.fingerprint is None
        assert "agree wherever both tell their fingerprint" in told(difference)


class TestRounding:
    """Whether rounding is enough to explain a difference."""

    @pytest.mark.parametrize(
        ("changes", "enough"),
        [
            ({"kl_mean": 0.0075 * (1 + ROUNDING / 2)}, True),
            ({"kl_mean": 0.0075 * (1 + ROUNDING * 2)}, False),
            ({"kl_mean": -0.0075}, False),
            ({"kl_mean": None}, False),
            ({"kl_mean": 0.0}, False),
            ({"environment": {"distance": 2.0001, "effort": 0.125}}, True),
            ({"episodes": 5}, False),
            ({"env_steps": 100_001}, False),
            ({"step_outcome": "kl_exceeded"}, False),
            # Left over when 1 has cancelled: uncertain by as much as the 1.
            ({"cg_relative_residual": 5e-4}, True),
            ({"cg_relative_residual": 5e-3}, False),
            ({"explained_variance": 0.5 + ROUNDING / 2}, True),
            ({"explained_variance": 0.5 + ROUNDING * 2}, False),
            # Without a size of their own.
            ({"parameter_fingerprint": "ffffffff"}, True),
            ({"cg_iterations": 9}, True),
            ({"cg_iterations": 9, "kl_mean": 0.5}, False),
        ],
    )
    def test_is_judged_by_size(self, tmp_path: Path, changes: dict[str, Any], enough: bool) -> None:
        difference = five_with(tmp_path, **changes)
        assert difference.first is not None and difference.first.rounding == enough
        assert difference.beyond_rounding == (None if enough else difference.first)
        assert ("No difference is larger than rounding" in told(difference)) == enough

    def test_the_relative_difference_is_that_of_the_larger(self, tmp_path: Path) -> None:
        difference = five_with(tmp_path, critic_loss=-0.5)
        assert difference.first is not None and difference.first.values[0].relative == 1.5
        assert "critic_loss: 0.25 in A, -0.5 in B (relative difference 1.5e+00)" in told(difference)

    def test_differences_that_grow_are_told_from_where_rounding_no_longer_explains_them(self, tmp_path: Path) -> None:
        b = [row(i, kl_mean=0.0075 * (1 + 10.0 ** (i - 8))) for i in range(1, 8)]
        difference = compare(write(tmp_path / "a", map(row, range(1, 8))), write(tmp_path / "b", b))
        assert difference.first is not None and difference.first.iteration == 1
        assert difference.beyond_rounding is not None and difference.beyond_rounding.iteration == 6
        assert "From iteration 6, differences are larger than rounding explains (0.001, relative;" in told(difference)

    def test_numbers_beyond_all_bounds_can_be_compared(self, tmp_path: Path) -> None:
        a, b = row(1, kl_mean=1.7e308, critic_loss=5e-324), row(1, kl_mean=-1.7e308, critic_loss=0.0)
        first = compare(write(tmp_path / "a", [a]), write(tmp_path / "b", [b])).first
        assert first is not None
        assert {value.name: value.relative for value in first.values} == {"kl_mean": 2.0, "critic_loss": 1.0}


class TestSeeds:
    """Several in one run."""

    def test_the_first_of_them_that_differs_is_named(self, tmp_path: Path) -> None:
        a = [row(i, seed) for i in (1, 2, 3) for seed in (5, 6, 7)]
        b = [
            row(i, seed, **({"kl_mean": 0.5} if (i, seed) in {(2, 7), (3, 5)} else {}))
            for i in (1, 2, 3)
            for seed in (7, 6, 5)
        ]
        difference = compare(write(tmp_path / "a", a), write(tmp_path / "b", b))
        assert difference.first is not None and difference.compared == 9
        assert (difference.first.iteration, difference.first.seeds) == (2, (7, 7))
        assert "First difference, iteration 2, seed 7: kl_mean" in told(difference)

    def test_those_in_common_are_compared(self, tmp_path: Path) -> None:
        a = [row(1, seed, kl_mean=float(seed)) for seed in (0, 1, 2)]
        b = [row(1, seed, kl_mean=float(seed)) for seed in (2, 3, 4)]
        difference = compare(write(tmp_path / "a", a), write(tmp_path / "b", b))
        assert difference.first is None and difference.compared == 1
        assert difference.alone == ("Only A has seeds 0, 1.", "Only B has seeds 3, 4.")

    def test_where_none_is_in_common_their_order_tells_which_to_compare(self, tmp_path: Path) -> None:
        a = [row(1, seed, kl_mean=float(seed)) for seed in (1, 0)]
        b = [row(1, seed, kl_mean=float(seed - 10)) for seed in (10, 11, 12)]
        b[1]["episodes"] = 7
        difference = compare(write(tmp_path / "a", a), write(tmp_path / "b", b))
        assert difference.first is not None and difference.first.seeds == (1, 11)
        assert difference.alone == ("Only B has seed 12.",)
        assert "iteration 1, seed 1 of A and 11 of B" in told(difference)

    def test_a_record_without_one_is_of_the_configurations(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Older runs of one seed do not repeat it in every line."""
        a, b = (write(tmp_path / name, [row(1, 3)], override(TINY, seed=3)) for name in "ab")
        records = read_metrics(a.metrics_file)
        bare = [{name: value for name, value in records[0].items() if name != "seed"}]
        monkeypatch.setattr(
            "trpo_brax.forensics.difference.read_metrics", lambda file: bare if file == a.metrics_file else records
        )
        difference = compare(a, b)
        assert not difference.differ and difference.a.seeds == (3,)


class TestLengths:
    """Runs that do not hold the same iterations."""

    def test_the_common_ones_are_compared(self, tmp_path: Path) -> None:
        a, b = write(tmp_path / "a", map(row, range(1, 4))), write(tmp_path / "b", map(row, range(1, 8)))
        difference = compare(a, b)
        assert difference.first is None and difference.compared == 3 and difference.differ
        assert difference.alone == ("B is longer: it ends at iteration 7, A at 3.",)
        assert compare(b, a).alone == ("A is longer: it ends at iteration 7, B at 3.",)

    def test_a_hole_is_told(self, tmp_path: Path) -> None:
        whole, holed = map(row, range(1, 8)), [row(i) for i in (1, 2, 5, 7)]
        difference = compare(write(tmp_path / "a", whole), write(tmp_path / "b", holed))
        assert difference.first is None and difference.compared == 4
        assert difference.alone == ("Only A has rows of 3 iterations in between, the first of 3.",)

    @pytest.mark.parametrize(("a", "b"), [([], []), ([], [1, 2]), ([1, 2], []), ([1, 2], [3, 4])])
    def test_nothing_in_common_is_told(self, tmp_path: Path, a: list[int], b: list[int]) -> None:
        difference = compare(write(tmp_path / "a", map(row, a)), write(tmp_path / "b", map(row, b)))
        assert difference.differ and difference.first is None and difference.compared == 0
        assert "Nothing can be compared: there is no iteration that both have." in told(difference)
        assert told(difference).count(": no iterations") == (not a) + (not b)

    def test_a_run_that_has_not_begun_has_no_metrics(self, tmp_path: Path) -> None:
        a, b = (write(tmp_path / name, []) for name in "ab")
        a.metrics_file.unlink()
        assert compare(a, b).compared == 0


class TestConfiguration:
    """Fields that differ."""

    def test_what_shapes_learning_is_marked(self, tmp_path: Path) -> None:
        other = override(TINY, max_kl=0.5, policy_hidden_sizes=(8, 8), cpu_devices=2, activation="relu")
        difference = compare(write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1)], other))
        assert not difference.differ, "it is what was measured that counts"
        assert {field.name for field in difference.configuration} == {
            "max_kl",
            "policy_hidden_sizes",
            "cpu_devices",
            "activation",
        }
        assert set(difference.shaping) == {"max_kl", "policy_hidden_sizes", "activation"}
        text = told(difference)
        assert "And yet these differ:" in text and "What could explain it" not in text
        assert "policy_hidden_sizes: [8] in A, [8, 8] in B, shapes learning" in text
        assert "cpu_devices: null in A, 2 in B\n" in f"{text}\n"

    def test_fields_that_may_change_are_those_of_the_configuration(self, tmp_path: Path) -> None:
        for index, (name, value, hint) in enumerate(walk(TINY)):
            if name in ("action_low", "action_high"):
                continue
            pair = [write(tmp_path / f"{index}{side}", [row(1)]) for side in "ab"]
            data = to_dict(TINY)
            group = next((part for part in data.values() if isinstance(part, dict) and name in part), data)
            group[name] = another(name, value, hint)
            pair[1].config_file.write_text(json.dumps(data))
            difference = compare(*pair)
            assert [field.name for field in difference.configuration] == [name]
            assert difference.shaping == (() if MAY_CHANGE in repr(hint) else (name,))

    def test_a_configuration_of_another_version_can_be_compared(self, tmp_path: Path) -> None:
        a, b = (write(tmp_path / name, [row(1)]) for name in "ab")
        data = to_dict(TINY)
        data["trust_region"]["curvature"] = data["trust_region"].pop("damping")
        b.config_file.write_text(json.dumps(data))
        difference = compare(a, b)
        assert {(one.name, one.only_in) for one in difference.configuration} == {("damping", "a"), ("curvature", "b")}
        assert "curvature: not recorded in A, 0.1 in B, shapes learning" in told(difference)

    @pytest.mark.parametrize(
        ("text", "sentence"), [(None, "no config.json"), ("[]", "no.* object"), ("{", "valid JSON")]
    )
    def test_what_is_none_is_refused(self, tmp_path: Path, text: str | None, sentence: str) -> None:
        a, b = (write(tmp_path / name, [row(1)]) for name in "ab")
        b.config_file.unlink() if text is None else b.config_file.write_text(text)
        with pytest.raises(RunFolderError, match=sentence):
            compare(a, b)


class TestProvenance:
    """Versions, code, devices and flags."""

    def test_the_example_here_is_like_a_real_one(self) -> None:
        assert provenance(jax.devices()[:1]).keys() >= ORIGIN.keys() - {"earlier"}

    @pytest.mark.parametrize(
        ("path", "value", "line"),
        [
            (["python"], "3.12.1", 'python: "3.11.9" in A, "3.12.1" in B'),
            (["platform"], "Darwin", 'platform: "Linux-6.1" in A, "Darwin" in B'),
            (["processor"], "Other CPU", 'processor: "Some CPU" in A, "Other CPU" in B'),
            (["versions", "jax"], "0.9.3", 'versions/jax: "0.9.2" in A, "0.9.3" in B'),
            (["versions", "mujoco-mjx"], "3.3", 'versions/mujoco-mjx: null in A, "3.3" in B'),
            (["versions", "new"], "1.0", 'versions/new: not recorded in A, "1.0" in B'),
            (["git", "commit"], "b" * 40, f'git/commit: "{"a" * 40}" in A, "{"b" * 40}" in B'),
            (["git", "diff"], "x\n" * 3, 'git/diff: "" in A, "x\\nx\\nx\\n" in B'),
            (["git"], None, "git: not recorded in A, null in B"),
            (["devices"], ["gpu:0 H100"], 'devices: ["cpu:0 cpu", "cpu:1 cpu"] in A, ["gpu:0 H100"] in B'),
            (["processes"], 2, "processes: 1 in A, 2 in B"),
            (["xla_flags"], "--xla_cpu_enable_fast_math=true", 'xla_flags: "" in A, "--xla_cpu_enable_fast_math=true"'),
            (["jax_settings", "jax_enable_x64"], True, "jax_settings/jax_enable_x64: false in A, true in B"),
            (["something", "new"], [1], "something/new: not recorded in A, [1] in B"),
        ],
    )
    def test_what_differs_is_named(self, tmp_path: Path, path: list[str], value: Any, line: str) -> None:
        other = copy.deepcopy(ORIGIN)
        *groups, name = path
        target = other
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = value
        b = [row(1, kl_mean=0.5)]
        difference = compare(write(tmp_path / "a", [row(1)]), write(tmp_path / "b", b, origin=other))
        assert "/".join(path) in [one.name for one in difference.provenance]
        assert line in told(difference) and "What could explain it:" in told(difference)

    def test_when_and_how_a_run_was_started_explains_nothing(self, tmp_path: Path) -> None:
        other = {**ORIGIN, "created": "tomorrow", "command": ["python"]}
        assert not compare(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=other)).provenance

    def test_uncommitted_changes_are_told_by_their_checksum(self, tmp_path: Path) -> None:
        diffs = ["diff --git a/README.md b/README.md\n" + f"+{letter}\n" * 5000 for letter in "xy"]
        runs = [
            write(tmp_path / diff[-2], [], origin={**ORIGIN, "git": {"commit": "a" * 40, "diff": diff}})
            for diff in diffs
        ]
        difference = compare(*runs)
        (value,) = difference.provenance
        assert value.name == "git/diff" and value.a != value.b
        assert value.a.startswith("diff --git a/README.md b/README.md... (5,001 lines, SHA-256 ")
        assert len(told(difference)) < 1000 and len(json.dumps(difference.to_dict())) < 2000

    def test_every_stretch_of_a_resumed_run_counts(self, tmp_path: Path) -> None:
        """One that began elsewhere is not the same run, though it ended here."""
        began = {**ORIGIN, "versions": {**ORIGIN["versions"], "jax": "0.9.1"}, "devices": ["cpu:0 cpu"]}
        del began["earlier"]
        resumed = {**ORIGIN, "earlier": [began, {**began, "devices": ORIGIN["devices"]}]}
        difference = compare(
            write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1, episodes=1)], origin=resumed)
        )
        assert [one.name for one in difference.provenance] == ["versions/jax", "devices"]
        assert 'versions/jax: "0.9.2" in A, "0.9.1", then "0.9.2" in B' in told(difference)
        assert difference.to_dict()["provenance"][0]["b"] == ["0.9.1", "0.9.2"]
        assert 'devices: ["cpu:0 cpu", "cpu:1 cpu"] in A, ["cpu:0 cpu"], then ["cpu:0 cpu", "cpu:1 cpu"] in B' in told(
            difference
        )

    def test_resuming_on_the_same_machine_is_no_difference(self, tmp_path: Path) -> None:
        began = {**ORIGIN, "created": "earlier", "git": {"commit": "a" * 40, "diff": None}}
        resumed = {**ORIGIN, "earlier": [began, ORIGIN]}
        assert not compare(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=resumed)).provenance

    @pytest.mark.parametrize(("text", "sentence"), [(None, "provenance.json"), ("[1]", "object"), ("{", "valid JSON")])
    def test_without_it_the_rest_is_compared(self, tmp_path: Path, text: str | None, sentence: str) -> None:
        a, b = write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1, episodes=5)], origin=None)
        if text is not None:
            b.provenance_file.write_text(text)
        difference = compare(a, b)
        assert difference.first is not None and difference.provenance == ()
        assert sentence in told(difference) and "not compared" in told(difference)
        assert "the same, as far as they are recorded" not in told(difference)

    def test_many_stretches_with_uncommitted_changes_are_read(self, tmp_path: Path) -> None:
        """Twenty of the largest that are kept: far beyond what any other JSON file may hold."""
        began = {**ORIGIN, "git": {"commit": "a" * 40, "diff": "+\n" * 100_000}}
        resumed = {**began, "earlier": [began] * 19}
        difference = compare(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=resumed))
        assert [one.name for one in difference.provenance] == ["git/diff"] and not difference.notes

    @pytest.mark.parametrize("earlier", [None, 3, [None, 7, []], {"a": 1}])
    def test_earlier_stretches_may_be_anything(self, tmp_path: Path, earlier: Any) -> None:
        other = {**ORIGIN, "earlier": earlier, "versions": "none", "git": []}
        difference = compare(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=other))
        assert "versions" in [one.name for one in difference.provenance]
        told(difference)

    def test_nothing_reaches_the_terminal_but_text(self, tmp_path: Path) -> None:
        other = {**ORIGIN, "python": "\x1b[2J", "\x1b[31mred": "\ud800"}
        difference = compare(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=other))
        assert "\\x1b[31mred" in told(difference)
