"""A certificate's bounds against episodes whose figures are known by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from trpo_brax.deployment.description import ArtifactError
from trpo_brax.deployment.statements import Certified
from trpo_brax.evaluation import Episodes

DECLARED: dict[str, Any] = {
    "episodes": 100,
    "confidence": 0.95,
    "seed": 3,
    "failure": "terminated or non-finite",
    "alpha": 0.1,
    "return_floor": 0.0,
    "return_floor_source": "given",
    "return_cap": 90.0,
    "return_cap_source": "observed",
}
CERTIFICATE: dict[str, Any] = {
    "declared": DECLARED,
    "statements": [],
    "failure_probability_upper": 0.04,
    "return_quantile_05_lower": 5.0,
    "return_mean_lower": 50.5,
    "return_cvar_lower": 5.5,
    "policy_sha256": "0" * 64,
}
RETURNS = np.random.default_rng(0).permutation(np.arange(1, 101)).astype(np.float32)
"""Mean 50.5; the worst tenth has mean 5.5; the fifth smallest of a hundred is 5."""
EPISODES = Episodes(RETURNS, np.full(100, 9, np.int32), RETURNS <= 4, np.zeros(100, bool))


def statements(**changes: Any) -> dict[str, bool]:
    """Return which statements hold."""
    certified = Certified.read(CERTIFICATE | changes)
    assert certified is not None
    return {statement.name: statement.passed for statement in certified.checks(EPISODES)}


def test_figures_that_meet_their_bounds_exactly_hold() -> None:
    assert statements() == dict.fromkeys([name for name in CERTIFICATE if name.endswith(("_upper", "_lower"))], True)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("failure_probability_upper", 0.0399),
        ("return_quantile_05_lower", 5.01),
        ("return_mean_lower", 50.51),
        ("return_cvar_lower", 5.51),
    ],
)
def test_one_that_no_longer_holds_is_the_only_one(name: str, bound: float) -> None:
    found = statements(**{name: bound})
    assert [statement for statement, holds in found.items() if not holds] == [name]


def test_what_was_not_certified_is_not_asked() -> None:
    assert "return_mean_lower" not in statements(return_mean_lower=None)


def test_failure_is_what_the_certificate_says() -> None:
    certified = Certified.read(CERTIFICATE | {"declared": DECLARED | {"failure": "return < 11 or non-finite"}})
    assert certified is not None
    assert certified.checks(EPISODES)[0].figures["measured"] == pytest.approx(0.1)


def test_the_episodes_are_described() -> None:
    certified = Certified.read(CERTIFICATE)
    assert certified is not None
    assert (certified.declaration.episodes, certified.seed, certified.declaration.alpha) == (100, 3, 0.1)


def test_the_sentence_names_both_figures() -> None:
    certified = Certified.read(CERTIFICATE | {"return_mean_lower": 60.0})
    assert certified is not None
    sentence = next(one.sentence for one in certified.checks(EPISODES) if one.name == "return_mean_lower")
    assert "at least 60" in sentence and "50.5" in sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"episodes": 0},
        {"seed": -1},
        {"alpha": 2},
        {"confidence": 1.0},
        {"failure": "bad luck"},
        {"return_floor": None},
        {"return_cap": -1.0},
    ],
    ids=str,
)
def test_what_is_no_certificate_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="certificate"):
        Certified.read(CERTIFICATE | {"declared": DECLARED | changes})


@pytest.mark.parametrize("changes", [{"return_mean_lower": "much"}, {"declared": []}])
def test_nor_is_this(changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="certificate"):
        Certified.read(CERTIFICATE | changes)


def test_one_that_is_only_declared_promises_nothing() -> None:
    assert Certified.read(None) is None
    assert Certified.read({"declared": DECLARED, "policy_sha256": "0" * 64}) is None


def test_an_episode_that_went_non_finite_counts_as_the_floor() -> None:
    broken = dataclasses.replace(EPISODES, nonfinite=RETURNS == 100)
    certified = Certified.read(CERTIFICATE)
    assert certified is not None
    mean = next(check for check in certified.checks(broken) if check.name == "return_mean_lower")
    assert mean.figures["measured"] == pytest.approx(49.5) and not mean.passed
