"""What is stated of given episodes, against the bounds by themselves, hand-worked cases and what must not be stated."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
from scipy import stats

from trpo_brax.certification.certificate import (
    CVAR,
    FAILURE,
    LOW_QUANTILE,
    MEAN,
    STATEMENTS,
    Declaration,
    ReturnRange,
    Statement,
    certify_episodes,
    observed_range,
)
from trpo_brax.evaluation import Episodes, Failure

ZERO_TO_1000 = ReturnRange(0.0, "known", 1000.0, "known")


def drawn(returns: np.ndarray, failed: int = 0, nonfinite: int = 0) -> Episodes:
    """Return episodes of which the first `failed` ended early and the last `nonfinite` went non-finite."""
    count = len(returns)
    return Episodes(
        np.asarray(returns, np.float32),
        np.full(count, 100, np.int32),
        np.arange(count) < failed,
        np.arange(count) >= count - nonfinite,
    )


def declared(episodes: int, returns: ReturnRange = ZERO_TO_1000, **options: float | int) -> Declaration:
    """Return a declaration at 95%, of the worst 5%."""
    settings: dict[str, float | int] = {"confidence": 0.95, "alpha": 0.05, "worlds": 1} | options
    return Declaration(
        episodes=episodes,
        confidence=settings["confidence"],
        alpha=settings["alpha"],
        failure=Failure("terminated"),
        returns=returns,
        worlds=int(settings["worlds"]),
    )


def by_name(statements: tuple[Statement, ...]) -> dict[str, Statement]:
    """Return the statements by their keys."""
    assert tuple(statement.name for statement in statements) == STATEMENTS
    return {statement.name: statement for statement in statements}


def test_a_perfect_record_by_hand() -> None:
    """1,000 episodes of 1,000 each, none failed: the failure bound is 1 - 0.0125^(1/1000), the quantile is 1,000."""
    found = by_name(certify_episodes(drawn(np.full(1000, 1000.0)), declared(1000)))
    assert found[FAILURE].bound == pytest.approx(1.0 - 0.0125 ** (1 / 1000), rel=1e-9)
    assert found[LOW_QUANTILE].bound == 1000.0
    for name, least in ((MEAN, 990.0), (CVAR, 800.0)):
        bound = found[name].bound
        assert bound is not None and least < bound < 1000.0
    assert "0 of 1,000 did" in found[FAILURE].sentence


@pytest.mark.parametrize("worlds", [1, 31])
def test_every_statement_has_its_share_of_the_allowance(worlds: int) -> None:
    """The failure bound solves P(Binomial(n, p) <= k) = 0.05 / (4 worlds); the quantile's rank by the binomial."""
    generator = np.random.default_rng(0)
    episodes = drawn(generator.uniform(0.0, 1000.0, 2000), failed=7)
    declaration = declared(2000, worlds=worlds)
    allowed = 0.05 / (4 * worlds)
    assert declaration.confidence_each == pytest.approx(1.0 - allowed, rel=1e-12)
    found = by_name(certify_episodes(episodes, declaration))
    bound = found[FAILURE].bound
    assert bound is not None and stats.binom.cdf(7, 2000, bound) == pytest.approx(allowed, rel=1e-6)
    rank = max(k for k in range(1, 2001) if stats.binom.cdf(k - 1, 2000, 0.05) <= allowed)
    assert found[LOW_QUANTILE].bound == np.sort(episodes.returns.astype(np.float64))[rank - 1]
    mean, worst = found[MEAN].bound, found[CVAR].bound
    assert mean is not None and worst is not None
    assert worst < 25.0 < mean < found[MEAN].observed and mean > 450.0


def test_alpha_is_of_the_cvar_alone() -> None:
    episodes = drawn(np.random.default_rng(1).uniform(0.0, 1000.0, 4000))
    few, many = (by_name(certify_episodes(episodes, declared(4000, alpha=alpha))) for alpha in (0.05, 0.5))
    assert few[LOW_QUANTILE].bound == many[LOW_QUANTILE].bound and few[MEAN].bound == many[MEAN].bound
    half, whole = many[CVAR].bound, few[CVAR].bound
    assert half is not None and whole is not None and 200.0 < half < 250.0 and whole < 25.0
    assert "worst 50%" in many[CVAR].sentence


class TestTheFloor:
    """What rests on it, and what is said where it does not hold."""

    @pytest.mark.parametrize("source", ["assumed", "given"])
    def test_an_assumption_is_called_one(self, source: str) -> None:
        returns = ReturnRange(-50.0, source, 1000.0, "observed")  # type: ignore[arg-type]
        found = by_name(certify_episodes(drawn(np.linspace(500, 900, 1000)), declared(1000, returns)))
        word = {"assumed": "assuming", "given": "given"}[source]
        for name in (MEAN, CVAR):
            assert f"{word} that no return is below -50" in found[name].sentence
        for name in (FAILURE, LOW_QUANTILE):
            assert "below" not in found[name].sentence

    def test_an_episode_below_it_voids_what_rests_on_it_and_no_more(self) -> None:
        returns = np.append(np.linspace(500, 900, 999), -51.0)
        episodes = drawn(returns)
        declaration = declared(1000, ReturnRange(-50.0, "assumed", 1000.0, "observed"))
        found = by_name(certify_episodes(episodes, declaration))
        for name in (MEAN, CVAR):
            assert found[name].bound is None and "Nothing is stated" in found[name].sentence
            assert "-51" in found[name].sentence and "-50" in found[name].sentence
        assert found[FAILURE].bound is not None and found[LOW_QUANTILE].bound is not None

    def test_an_episode_that_broke_counts_as_the_floor_and_as_failed(self) -> None:
        """1,000 each but for 40 that broke at 900: their mean is 960, not 996; the worst 4% say nothing of the 5%."""
        order = np.random.default_rng(0).permutation(1000)
        ordered = drawn(np.append(np.full(960, 1000.0), np.full(40, 900.0)), nonfinite=40)
        episodes = Episodes(*(part[order] for part in vars(ordered).values()))
        found = by_name(certify_episodes(episodes, declared(1000)))
        assert found[MEAN].observed == pytest.approx(960.0)
        assert found[FAILURE].observed == pytest.approx(0.04) and found[CVAR].observed == pytest.approx(200.0)
        quantile, mean = found[LOW_QUANTILE], found[MEAN].bound
        assert mean is not None and mean < 960.0
        assert quantile.bound is None and "non-finite" in quantile.sentence

    def test_what_is_above_the_cap_counts_as_the_cap(self) -> None:
        high = ReturnRange(0.0, "known", 600.0, "given")
        capped, whole = (
            by_name(certify_episodes(drawn(np.linspace(500, 900, 2000)), declared(2000, returns)))[MEAN].bound
            for returns in (high, ZERO_TO_1000)
        )
        assert capped is not None and whole is not None and 540.0 < capped < 587.5 < whole < 700.0


class TestTheRangeDeclared:
    """From what is given, known, or seen in other episodes."""

    SEEN = np.array([300.0, 500.0, 900.0])

    def test_nothing_known(self) -> None:
        assert observed_range(self.SEEN, (None, None), (None, None)) == ReturnRange(
            -600.0, "assumed", 900.0, "observed"
        )

    def test_negative_returns(self) -> None:
        found = observed_range(-self.SEEN, (None, None), (None, None))
        assert found == ReturnRange(-1500.0, "assumed", -300.0, "observed")

    def test_known_and_given(self) -> None:
        assert observed_range(self.SEEN, (None, None), (0.0, 1000.0)) == ReturnRange(0.0, "known", 1000.0, "known")
        assert observed_range(self.SEEN, (-5.0, 2.0), (0.0, 1000.0)) == ReturnRange(-5.0, "given", 2.0, "given")

    def test_all_alike(self) -> None:
        assert observed_range(np.full(9, -20.0), (None, None), (None, None)).floor == -22.0

    def test_a_given_floor_above_all_that_was_seen(self) -> None:
        found = observed_range(self.SEEN, (2000.0, None), (None, None))
        assert found.floor == found.cap == 2000.0


def test_numbers_in_sentences_are_never_better_than_the_bounds() -> None:
    generator = np.random.default_rng(3)
    for _ in range(30):
        scale = 10.0 ** generator.integers(-3, 5)
        values = generator.normal(0.0, scale, 500)
        returns = ReturnRange(float(np.float32(values.min()) - scale), "assumed", float(values.max()), "observed")
        for statement in certify_episodes(
            drawn(values, failed=int(generator.integers(0, 100))), declared(500, returns)
        ):
            assert statement.bound is not None
            words = statement.sentence.split(" (")[0].split(", assuming")[0].replace("95% of", "")
            told = [float(word.replace(",", "")) for word in re.findall(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?", words)][-1]
            tolerance = 2e-6 * max(abs(told), abs(statement.bound))
            if statement.name == FAILURE:
                assert told >= 100 * statement.bound - 100 * tolerance
            else:
                assert told <= statement.bound + tolerance
            assert math.isclose(told, statement.bound * (100 if statement.name == FAILURE else 1), rel_tol=1e-3)


def test_another_number_of_episodes_than_declared_is_refused() -> None:
    with pytest.raises(ValueError, match="999 episodes were declared"):
        certify_episodes(drawn(np.full(1000, 5.0)), declared(999))


def test_the_order_of_drawing_is_kept() -> None:
    """The CVaR's threshold is of the first fifth: with the bad ones there it is another number than without."""
    values = np.append(np.zeros(100), np.full(900, 1000.0))
    first, last = (
        by_name(certify_episodes(drawn(order), declared(1000)))[CVAR].bound for order in (values, values[::-1])
    )
    assert first != last


def test_a_declaration_tells_all_that_shapes_the_statements() -> None:
    declaration = declared(1000, ReturnRange(-1.0, "assumed", 2.0, "given"), worlds=5)
    told = declaration.to_dict()
    for field in dataclasses.fields(Declaration):
        assert field.name in told or field.name == "returns"
    assert told["failure"] == "terminated or non-finite"
    assert (told["return_floor"], told["return_floor_source"]) == (-1.0, "assumed")
    assert (told["return_cap"], told["return_cap_source"]) == (2.0, "given")
