"""Certifying a run: what is declared when, which episodes are drawn for what, and what is written."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import trpo_brax as tb
from tests.tiny_environments import History
from tests.tiny_runs import TINY, train_tiny
from trpo_brax.certification.certifier import certify
from trpo_brax.certification.settings import Certification, Listener
from trpo_brax.config import override
from trpo_brax.environments import known_returns, own_task, return_bounds
from trpo_brax.errors import ConfigError
from trpo_brax.evaluation import EpisodeRunner, Episodes, policy_actor
from trpo_brax.policy import PolicySpecification
from trpo_brax.randomness import Stream, stream_key
from trpo_brax.runs.run import Run

FEW = Certification(episodes=60, choice_episodes=20, perturb_episodes=20, confidence=0.8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with checkpoints after its iterations 2 and 4."""
    return train_tiny(tmp_path_factory.mktemp("certified") / "run")


@pytest.fixture(scope="module")
def certificate(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The certificate of its last policy."""
    return certify(run.path, FEW, environment=History(), output=tmp_path_factory.mktemp("certificate") / "made")


def by_hand(
    run: Run, stream: Stream, episodes: int, checkpoint: int | str = "latest", policy_seed: int = 0
) -> Episodes:
    """Run a stream's episodes of a policy without the certifier."""
    policy = run.policy(checkpoint, policy_seed=policy_seed)
    key = stream_key(jax.random.PRNGKey(0), stream)
    return runner_for(policy.specification).run((policy.parameters, policy.statistics), key, episodes=episodes)


@functools.cache
def runner_for(specification: PolicySpecification) -> EpisodeRunner:
    """Return a runner of batches of 20; all the runs here have policies of one kind."""
    act = policy_actor(specification, stochastic=False)
    return EpisodeRunner(own_task(History(), TINY.rollout), act, batch=20, episode_length=16)


def test_it_is_of_the_certification_stream_and_no_other(run: Run, certificate: dict[str, Any]) -> None:
    wanted = by_hand(run, Stream.CERTIFICATION, 60)
    assert certificate["observed"]["return_mean"] == pytest.approx(wanted.returns.mean(), rel=1e-5)
    assert certificate["observed"]["failure_rate"] == pytest.approx(wanted.terminated.mean())
    for other in Stream:
        if other is not Stream.CERTIFICATION:
            assert by_hand(run, other, 60).returns.mean() != pytest.approx(wanted.returns.mean(), rel=1e-5)


def test_the_range_is_of_the_choice_stream(run: Run, certificate: dict[str, Any]) -> None:
    pilot = by_hand(run, Stream.CHOICE, 20).returns
    low, high = float(pilot.min()), float(pilot.max())
    declared = certificate["declared"]
    assert declared["return_cap"] == pytest.approx(high, rel=1e-5) and declared["return_cap_source"] == "observed"
    assert declared["return_floor"] == pytest.approx(min(0.0, low) - (high - low), rel=1e-4)
    assert declared["return_floor_source"] == "assumed"


def test_the_contracts_keys_and_what_it_is_about(run: Run, certificate: dict[str, Any]) -> None:
    keys = ("failure_probability_upper", "return_quantile_05_lower", "return_mean_lower", "return_cvar_lower")
    assert {"episodes", "confidence", *keys} <= certificate.keys()
    assert [one["bound"] for one in certificate["statements"]] == [certificate[key] for key in keys]
    assert (certificate["episodes"], certificate["confidence"]) == (60, 0.8)
    assert certificate["policy_sha256"] == run.policy().fingerprint() != run.policy(2).fingerprint()
    assert certificate["checkpoint"] == 4 and certificate["checkpoint_sha256"] == run.checkpoints.hash(4)
    assert certificate["training_runs"] is None and certificate["perturbations"] is None


def test_it_is_declared_on_disk_before_the_first_episode_is_drawn(run: Run, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    @contextlib.contextmanager
    def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
        file = tmp_path / "certificate.declared.json"
        seen[what] = json.loads(file.read_text()) if file.exists() else None
        assert not (tmp_path / "certificate.json").exists()
        yield lambda done: None

    certificate = certify(run, FEW, environment=History(), output=tmp_path, listener=Listener(counting=counting))
    assert seen["Looking at what returns there are"] is None
    before = seen["Drawing the episodes"]
    assert before["declared"] == certificate["declared"] and "statements" not in before
    assert json.loads((tmp_path / "certificate.json").read_text()) == certificate
    assert not (tmp_path / "certificate.declared.json").exists()


@pytest.mark.parametrize("stage", ["Drawing the episodes", "Perturbing the world in 1 ways"])
def test_one_that_is_cut_off_leaves_what_there_was(run: Run, tmp_path: Path, stage: str) -> None:
    """Before its statements: the former certificate. After them: the statements, without the perturbed worlds."""
    former = certify(run, FEW, environment=History(), output=tmp_path)

    @contextlib.contextmanager
    def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
        if what == stage:
            raise KeyboardInterrupt
        yield lambda done: None

    told: list[str] = []
    listener = Listener(counting=counting, written=lambda certificate: told.append(certificate["declared"]["at"]))
    settings = override_certification(FEW, perturb=True, noise=(), delays=(2,), seed=1)
    with pytest.raises(KeyboardInterrupt):
        certify(run, settings, environment=History(), output=str(tmp_path), listener=listener)
    kept = json.loads((tmp_path / "certificate.json").read_text())
    if stage == "Drawing the episodes":
        assert kept == former
    else:
        assert kept["declared"]["seed"] == 1 and kept["perturbations"] is None and len(kept["statements"]) == 4
    assert told[-1:] == ([] if stage == "Drawing the episodes" else [kept["declared"]["at"]])
    declared = json.loads((tmp_path / "certificate.declared.json").read_text())["declared"]
    assert declared["perturbations"]["worlds"] == [
        {"perturbation": None, "strength": 1.0},
        {"perturbation": "delay", "strength": 2.0},
    ]


def test_a_cap_below_the_floor_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"return_cap must be greater than the floor, not -1e\+06"):
        certify(run, override_certification(FEW, return_cap=-1e6), environment=History(), output=tmp_path)


def test_a_second_certificate_of_a_policy_says_that_it_is_one(run: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {"environment": History(), "output": tmp_path}
    counts = [
        certify(run, FEW, checkpoint=which, **options)["earlier_certificates"] for which in ("latest", 4, 4, 2, 2, 4)
    ]
    assert counts == [0, 1, 2, 0, 1, 0]


@pytest.mark.parametrize("spoiled", ["{", '{"policy_sha256": 3}', "[]"])
def test_a_broken_certificate_is_replaced(run: Run, tmp_path: Path, spoiled: str) -> None:
    (tmp_path / "certificate.json").write_text(spoiled)
    assert certify(run, FEW, environment=History(), output=tmp_path)["earlier_certificates"] == 0
    assert json.loads((tmp_path / "certificate.json").read_text())["episodes"] == 60


@pytest.mark.parametrize("by", ["return_mean", "return_cvar_05"])
def test_the_choice_is_the_best_on_other_episodes(run: Run, tmp_path: Path, by: str) -> None:
    settings = override_certification(FEW, choose=by)
    said: list[str] = []
    found = certify(run, settings, environment=History(), output=tmp_path, listener=Listener(note=said.append))
    figures = {}
    for iteration in (2, 4):
        returns = np.sort(by_hand(run, Stream.CHOICE, 20, iteration).returns.astype(np.float64))
        figures[iteration] = returns.mean() if by == "return_mean" else returns[:1].mean()
    assert found["checkpoint"] == max(figures, key=lambda iteration: (round(figures[iteration], 5), iteration))
    assert found["declared"]["chosen_by"] == by and any(f"checkpoint {found['checkpoint']}" in line for line in said)


def override_certification(settings: Certification, **values: Any) -> Certification:
    """Return the settings with some replaced."""
    return Certification(**{**vars(settings), **values})


def test_perturbed_worlds_share_the_confidence_and_begin_with_the_trained_one(run: Run, tmp_path: Path) -> None:
    settings = override_certification(FEW, perturb=True, noise=(0.5, 0.1), delays=(2,))
    found = certify(run, settings, environment=History(), output=tmp_path)["perturbations"]
    rows = found["worlds"]
    assert [(row["perturbation"], row["strength"]) for row in rows] == [
        (None, 1.0),
        ("observation_noise", 0.1),
        ("observation_noise", 0.5),
        ("delay", 2.0),
    ]
    assert found["not_applicable"] == ["mass", "friction", "gravity", "gain"]
    assert found["confidence_each"] == pytest.approx(1.0 - 0.2 / 16)
    trained = by_hand(run, Stream.PERTURBATION, 20)
    assert rows[0]["return_mean"] == pytest.approx(trained.returns.mean(), rel=1e-5)
    assert len({row["return_mean"] for row in rows}) == 4
    assert rows[0]["failure_probability_upper"] >= rows[0]["failure_rate"]


def test_of_several_seeds_it_says_what_the_next_one_will_reach(tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", config=override(TINY, num_seeds=3, total_steps=2 * 64))
    found = certify(run, FEW, environment=History(), policy_seed=1)
    assert found["policy_seed"] == 1 and found["policy_sha256"] == run.policy(policy_seed=1).fingerprint()
    runs = found["training_runs"]
    wanted = [by_hand(run, Stream.CHOICE, 20, policy_seed=seed).returns.mean() for seed in range(3)]
    np.testing.assert_allclose(runs["figures"], wanted, rtol=1e-5)
    assert found["declared"]["training_runs"] == {"seeds": 3, "episodes": 20, "stream": "choice"}
    assert runs["probability_next_below_worst"] == 0.25 and runs["worst"] == min(runs["figures"])
    assert (run.path / "certificate.json").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"episodes": 5}, "episodes must be at least 20"),
        ({"confidence": 1.0}, "confidence must be greater than 0 and at most 0.999999999"),
        ({"confidence": 1.0 - 1e-12}, "confidence must be greater than 0 and at most 0.999999999"),
        ({"alpha": 0.0}, "alpha must be greater than 0"),
        ({"delays": (9,)}, "delays must be at least 1 and at most 8"),
        ({"factors": (0.0,)}, "factors must be at least 0.01"),
        ({"return_floor": 3.0, "return_cap": 2.0}, "return_floor must be less than return_cap"),
        ({"choose": "luck"}, "choose must be one of"),
    ],
)
def test_what_cannot_be_certified_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Certification(**values)


class TestReturnBounds:
    """What Brax's own reward formulas allow."""

    def test_the_pendulum_is_paid_one_a_step(self) -> None:
        assert return_bounds("inverted_pendulum", 1000) == (0.0, 1000.0)

    def test_costs_alone_are_never_positive(self) -> None:
        assert return_bounds("reacher", 50) == return_bounds("pusher", 50) == (None, 0.0)

    def test_most_tasks_have_none(self) -> None:
        assert return_bounds("hopper", 1000) == return_bounds("my.module:Env", 10) == (None, None)

    def test_known_are_those_of_an_episode_in_simulator_steps_and_of_no_environment_of_ones_own(self) -> None:
        config = override(tb.preset("inverted_pendulum"), episode_length=100, action_repeat=3)
        assert known_returns(config) == (0.0, 300.0)
        assert known_returns(override(config, environment="my.module:Env")) == (None, None)
