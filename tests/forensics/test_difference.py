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
from trpo_brax.forensics.difference import ORDER, Difference, RowDifference, compare
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.provenance import provenance
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


def of(a: RunFolder, b: RunFolder) -> Difference:
    """Compare two folders."""
    return compare(a.path, b.path)


def planted(tmp_path: Path, **changes: Any) -> Difference:
    """Compare five iterations with the same five, but for the quantities of the third."""
    b = [row(i, **(changes if i == 3 else {})) for i in range(1, 6)]
    return of(write(tmp_path / "a", map(row, range(1, 6))), write(tmp_path / "b", b))


def first_of(difference: Difference) -> RowDifference:
    assert difference.first is not None
    return difference.first


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
            patch.setattr("trpo_brax.runs.provenance.checkout", lambda: None)
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
        difference = compare(whole.path, train_tiny(folder / "again").path)
        assert not difference.differ and difference.compared == 4
        assert difference.configuration == () and difference.provenance == ()
        assert "agrees bit for bit in the 4 rows" in told(difference)
        assert "are the same, as far as they are recorded" in told(difference)

    def test_a_resumed_run_does_not_differ_from_one_that_never_stopped(self, folder: Path, whole: Run) -> None:
        """Level D2; its checkpoint is compared in tests/training/test_loop.py."""
        stopped = train_tiny(folder / "stopped", config=override(TINY, total_steps=2 * 64))
        difference = compare(stopped.path, whole.path)
        assert difference.first is None and difference.differ
        assert difference.alone == ("Only B has 2 rows, the first of iteration 3, seed 0.",)
        assert [field.name for field in difference.configuration] == ["total_steps"] and difference.shaping == ()
        resumed = train_tiny(folder / "stopped", resume=True)
        difference = compare(resumed.path, whole.path)
        assert len(json.loads((resumed.path / "provenance.json").read_text())["earlier"]) == 1
        assert not difference.differ and difference.compared == 4 and difference.provenance == ()

    def test_a_changed_trust_region_is_named_where_it_begins_to_matter(self, folder: Path, whole: Run) -> None:
        difference = compare(whole.path, train_tiny(folder / "max_kl", config=override(TINY, max_kl=0.02)).path)
        first = first_of(difference)
        assert first.iteration == 1
        # Rollout and advantages are those of the same policy.
        assert first.values[0].name == "max_kl"
        assert difference.shaping == ("max_kl",)
        assert "max_kl: 0.01 in A, 0.02 in B, shapes learning" in told(difference)

    def test_the_order_knows_every_quantity(self, whole: Run) -> None:
        recorded = {name for name in whole.metrics()[0] if name not in ("seed", "iteration", "wall_time_s")}
        assert recorded - {"steps_per_second"} == set(ORDER), "a new quantity has to find its place in ORDER"
        assert len(ORDER) == len(set(ORDER))


class TestRows:
    """Planted differences."""

    @pytest.mark.parametrize(
        ("changes", "name", "values"),
        [
            ({"critic_loss": 0.5}, "critic_loss", (0.25, 0.5)),
            ({"episodes": 5}, "episodes", (4, 5)),
            ({"step_outcome": "no_improvement"}, "step_outcome", ("accepted", "no_improvement")),
            ({"episode_return_mean": None}, "episode_return_mean", (12.5, None)),
            ({"environment": {"distance": 2.0, "effort": 0.25}}, "environment/effort", (0.125, 0.25)),
            ({"environment": {"distance": 2.0}}, "environment/effort", (0.125, None)),
            ({"kl_mean": 0.0075000000000000015}, "kl_mean", (0.0075, 0.0075000000000000015)),
        ],
    )
    def test_one_is_found(self, tmp_path: Path, changes: dict[str, Any], name: str, values: tuple[Any, Any]) -> None:
        difference = planted(tmp_path, **changes)
        first = first_of(difference)
        assert difference.differ and (first.iteration, first.seed) == (3, 0)
        (value,) = first.values
        assert (value.name, value.a, value.b) == (name, *values)
        line = (
            f"First difference, iteration 3, seed 0: {name}: {json.dumps(values[0])} in A, {json.dumps(values[1])} in B"
        )
        assert line in told(difference) and "differ there" not in told(difference)

    def test_the_clock_is_not_compared(self, tmp_path: Path) -> None:
        assert not planted(tmp_path, wall_time_s=1e9, steps_per_second=1.0).differ

    def test_the_sign_of_a_zero_is(self, tmp_path: Path) -> None:
        difference = of(*(write(tmp_path / f"{zero}", [row(1, kl_mean=zero)]) for zero in (0.0, -0.0)))
        assert "kl_mean: 0.0 in A, -0.0 in B" in told(difference)

    def test_they_stand_as_they_are_computed(self, tmp_path: Path) -> None:
        """Rollout, advantages, policy step, critic, the fingerprint of what acts next, and what nobody knows."""
        changes = {name: "other" if isinstance(value, str) else 99 for name, value in QUANTITIES.items()}
        changes["environment"] = {"distance": 3.0, "effort": 1.0}
        a = write(tmp_path / "a", [row(1, a_new_one=1)])
        difference = of(a, write(tmp_path / "b", [row(1, a_new_one=2, **changes)]))
        assert ", ".join(value.name for value in first_of(difference).values) == (
            "env_steps, episodes, episode_return_mean, environment/distance, environment/effort, explained_variance, "
            "cg_iterations, cg_relative_residual, step_outcome, kl_mean, critic_loss, parameter_fingerprint, a_new_one"
        )
        assert "12 more quantities differ there: episodes, episode_return_mean," in told(difference)

    def test_the_first_iteration_counts_and_not_the_first_line(self, tmp_path: Path) -> None:
        b = [row(3, episodes=9), row(2, critic_loss=9.0), row(1)]
        first = first_of(of(write(tmp_path / "a", [row(3), row(1), row(2)]), write(tmp_path / "b", b)))
        assert first.iteration == 2 and first.values[0].name == "critic_loss"

    def test_of_several_seeds_the_first_that_differs_is_named(self, tmp_path: Path) -> None:
        a = [row(i, seed) for i in (1, 2, 3) for seed in (5, 6, 7)]
        changed = {(2, 7): {"kl_mean": 0.5}, (3, 5): {"kl_mean": 0.5}}
        b = [row(i, seed, **changed.get((i, seed), {})) for i in (1, 2, 3) for seed in (7, 6, 5)]
        difference = of(write(tmp_path / "a", a), write(tmp_path / "b", b))
        assert difference.compared == 9 and "First difference, iteration 2, seed 7: kl_mean" in told(difference)

    def test_a_quantity_that_one_run_never_records_does_not_hide_the_others(self, tmp_path: Path) -> None:
        older = [{name: value for name, value in row(i).items() if name != "episodes"} for i in (1, 2)]
        newer = [row(1, environment={"effort": 0.125, "distance": 2.0, "height": 1.0}), row(2, kl_mean=0.5)]
        difference = of(write(tmp_path / "a", older), write(tmp_path / "b", newer))
        assert difference.alone == ("Only B records episodes, environment/height.",)
        assert first_of(difference).iteration == 2 and first_of(difference).values[0].name == "kl_mean"

    def test_a_quantity_more_is_a_difference_by_itself(self, tmp_path: Path) -> None:
        difference = of(write(tmp_path / "a", [row(1, new=1.0)]), write(tmp_path / "b", [row(1)]))
        assert difference.differ and difference.first is None
        assert "Only A records new." in told(difference)

    @pytest.mark.parametrize(
        ("a", "b", "compared", "alone"),
        [
            (
                [(1, 0), (2, 0)],
                [(1, 0), (2, 0), (3, 0), (4, 0)],
                2,
                ["Only B has 2 rows, the first of iteration 3, seed 0."],
            ),
            ([(1, 0), (2, 0), (3, 0)], [(1, 0), (3, 0)], 2, ["Only A has 1 rows, the first of iteration 2, seed 0."]),
            (
                [(1, 0), (1, 1), (1, 2)],
                [(1, 2), (1, 3)],
                1,
                [
                    "Only A has 2 rows, the first of iteration 1, seed 0.",
                    "Only B has 1 rows, the first of iteration 1, seed 3.",
                ],
            ),
        ],
    )
    def test_those_in_common_are_compared(
        self, tmp_path: Path, a: list[tuple[int, int]], b: list[tuple[int, int]], compared: int, alone: list[str]
    ) -> None:
        difference = of(*(write(tmp_path / name, [row(*key) for key in keys]) for name, keys in (("a", a), ("b", b))))
        assert difference.first is None and difference.differ and difference.compared == compared
        assert list(difference.alone) == alone

    @pytest.mark.parametrize(
        ("a", "b"), [([], []), ([], [(1, 0)]), ([(1, 0)], []), ([(1, 0)], [(2, 0)]), ([(1, 0)], [(1, 1)])]
    )
    def test_nothing_in_common_is_told(
        self, tmp_path: Path, a: list[tuple[int, int]], b: list[tuple[int, int]]
    ) -> None:
        difference = of(*(write(tmp_path / name, [row(*key) for key in keys]) for name, keys in (("a", a), ("b", b))))
        assert difference.differ and difference.first is None and difference.compared == 0
        assert "Nothing can be compared: there is no iteration of a seed that both have." in told(difference)

    def test_a_run_that_has_not_begun_has_no_metrics(self, tmp_path: Path) -> None:
        a, b = (write(tmp_path / name, []) for name in "ab")
        a.metrics_file.unlink()
        assert of(a, b).compared == 0


class TestConfiguration:
    """Fields that differ."""

    def test_what_shapes_learning_is_marked(self, tmp_path: Path) -> None:
        other = override(TINY, max_kl=0.5, policy_hidden_sizes=(8, 8), cpu_devices=2, activation="relu")
        difference = of(write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1)], other))
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
            if name in ("action_low", "action_high", "environment_arguments"):
                continue
            pair = [write(tmp_path / f"{index}{side}", [row(1)]) for side in "ab"]
            data = to_dict(TINY)
            group = next((part for part in data.values() if isinstance(part, dict) and name in part), data)
            group[name] = another(name, value, hint)
            pair[1].config_file.write_text(json.dumps(data))
            difference = of(*pair)
            assert [field.name for field in difference.configuration] == [name]
            assert difference.shaping == (() if MAY_CHANGE in repr(hint) else (name,))

    def test_a_configuration_of_another_version_can_be_compared(self, tmp_path: Path) -> None:
        a, b = (write(tmp_path / name, [row(1)]) for name in "ab")
        data = to_dict(TINY)
        data["trust_region"]["curvature"] = data["trust_region"].pop("damping")
        b.config_file.write_text(json.dumps(data))
        difference = of(a, b)
        assert {(one.name, one.a, one.b) for one in difference.configuration} == {
            ("damping", 0.1, None),
            ("curvature", None, 0.1),
        }
        assert "curvature: null in A, 0.1 in B, shapes learning" in told(difference)

    @pytest.mark.parametrize(
        ("text", "sentence"), [(None, "no config.json"), ("[]", "no.* object"), ("{", "valid JSON")]
    )
    def test_what_is_none_is_refused(self, tmp_path: Path, text: str | None, sentence: str) -> None:
        a, b = (write(tmp_path / name, [row(1)]) for name in "ab")
        b.config_file.unlink() if text is None else b.config_file.write_text(text)
        with pytest.raises(RunFolderError, match=sentence):
            of(a, b)


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
            (["versions", "new"], "1.0", 'versions/new: null in A, "1.0" in B'),
            (["git", "commit"], "b" * 40, f'git/commit: "{"a" * 40}" in A, "{"b" * 40}" in B'),
            (["git", "diff"], "x\n" * 3, 'git/diff: "" in A, "x\\nx\\nx\\n" in B'),
            (["git"], None, f'git/commit: "{"a" * 40}" in A, null in B'),
            (["devices"], ["gpu:0 H100"], 'devices: ["cpu:0 cpu", "cpu:1 cpu"] in A, ["gpu:0 H100"] in B'),
            (["processes"], 2, "processes: 1 in A, 2 in B"),
            (["xla_flags"], "--xla_cpu_enable_fast_math=true", 'xla_flags: "" in A, "--xla_cpu_enable_fast_math=true"'),
            (["jax_settings", "jax_enable_x64"], True, "jax_settings/jax_enable_x64: false in A, true in B"),
            (["something", "new"], [1], "something/new: null in A, [1] in B"),
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
        difference = of(write(tmp_path / "a", [row(1)]), write(tmp_path / "b", b, origin=other))
        assert line in told(difference) and "What could explain it:" in told(difference)

    def test_when_and_how_a_run_was_started_explains_nothing(self, tmp_path: Path) -> None:
        other = {**ORIGIN, "created": "tomorrow", "command": ["python"]}
        assert not of(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=other)).provenance

    def test_uncommitted_changes_are_told_by_their_checksum(self, tmp_path: Path) -> None:
        diffs = ["diff --git a/README.md b/README.md\n" + f"+{letter}\n" * 5000 for letter in "xy"]
        runs = [
            write(tmp_path / diff[-2], [], origin={**ORIGIN, "git": {"commit": "a" * 40, "diff": diff}})
            for diff in diffs
        ]
        difference = of(*runs)
        (value,) = difference.provenance
        assert value.name == "git/diff" and value.a != value.b
        assert value.a.startswith("diff --git a/README.md b/README.md... (5,001 lines, SHA-256 ")
        assert len(told(difference)) < 1000 and len(json.dumps(difference.to_dict())) < 2000

    def test_every_segment_of_a_resumed_run_counts(self, tmp_path: Path) -> None:
        """One that began elsewhere is not the same run, though it ended here."""
        began = {**ORIGIN, "versions": {**ORIGIN["versions"], "jax": "0.9.1"}, "devices": ["cpu:0 cpu"]}
        del began["earlier"]
        resumed = {**ORIGIN, "earlier": [began, {**began, "devices": ORIGIN["devices"]}]}
        difference = of(write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1, episodes=1)], origin=resumed))
        assert [one.name for one in difference.provenance] == ["versions/jax", "devices"]
        assert 'versions/jax: "0.9.2" in A, ["0.9.1", "0.9.2"] in B' in told(difference)
        assert difference.to_dict()["provenance"][0]["b"] == ["0.9.1", "0.9.2"]
        assert 'devices: ["cpu:0 cpu", "cpu:1 cpu"] in A, [["cpu:0 cpu"], ["cpu:0 cpu", "cpu:1 cpu"]] in B' in told(
            difference
        )

    def test_resuming_on_the_same_machine_is_no_difference(self, tmp_path: Path) -> None:
        began = {**ORIGIN, "created": "earlier", "git": {"commit": "a" * 40, "diff": None}}
        resumed = {**ORIGIN, "earlier": [began, ORIGIN]}
        assert not of(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=resumed)).provenance

    @pytest.mark.parametrize(("text", "sentence"), [(None, "provenance.json"), ("[1]", "object"), ("{", "valid JSON")])
    def test_without_it_the_rest_is_compared(self, tmp_path: Path, text: str | None, sentence: str) -> None:
        a, b = write(tmp_path / "a", [row(1)]), write(tmp_path / "b", [row(1, episodes=5)], origin=None)
        if text is not None:
            b.provenance_file.write_text(text)
        difference = of(a, b)
        assert difference.first is not None and difference.provenance == ()
        assert sentence in told(difference) and "not compared" in told(difference)
        assert "the same, as far as they are recorded" not in told(difference)

    def test_many_segments_with_uncommitted_changes_are_read(self, tmp_path: Path) -> None:
        """Twenty of the largest that are kept: far beyond what any other JSON file may hold."""
        began = {**ORIGIN, "git": {"commit": "a" * 40, "diff": "+\n" * 100_000}}
        resumed = {**began, "earlier": [began] * 19}
        difference = of(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=resumed))
        assert [one.name for one in difference.provenance] == ["git/diff"] and not difference.notes

    @pytest.mark.parametrize("earlier", [None, 3, [None, 7, []], {"a": 1}])
    def test_earlier_segments_may_be_anything(self, tmp_path: Path, earlier: Any) -> None:
        other = {**ORIGIN, "earlier": earlier, "versions": "none", "git": []}
        difference = of(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=other))
        assert "versions" in [one.name for one in difference.provenance]
        told(difference)

    def test_nothing_reaches_the_terminal_but_text(self, tmp_path: Path) -> None:
        other = {**ORIGIN, "python": "\x1b[2J", "\x1b[31mred": "\ud800"}
        difference = of(write(tmp_path / "a", []), write(tmp_path / "b", [], origin=other))
        assert "\\x1b[31mred" in told(difference)
