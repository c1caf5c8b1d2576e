"""What lasts and what has risen, by hand-worked cases and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trpo_brax.config import Config
from trpo_brax.diagnosis.evidence import Evidence
from trpo_brax.diagnosis.trends import has_risen, lasting, noise, window


def so(text: str) -> np.ndarray:
    return np.array([character == "x" for character in text])


def segment(text: str, share: float, unknown: str = "") -> tuple[int, int, float, bool] | None:
    """Return (first, last, share, current) of text's x; where `unknown` has a question mark nothing is known."""
    known = ~so(unknown.replace("?", "x").ljust(len(text), "."))
    found = lasting(so(text), known, share)
    return None if found is None else (found.first, found.last, round(found.share, 3), found.current)


class TestLasting:
    """Windows of five rows, as in all runs of fewer than sixty."""

    def test_a_window_is_a_tenth_of_the_run_within_limits(self) -> None:
        assert [window(rows) for rows in (1, 59, 60, 123, 500, 10_000)] == [5, 5, 6, 12, 50, 50]

    @pytest.mark.parametrize(
        ("text", "share", "wanted"),
        [
            ("..........", 0.8, None),
            ("xxxx", 0.8, None),
            ("xxxxx", 0.8, (0, 4, 1.0, True)),
            ("xx.xx", 0.8, (0, 4, 0.8, True)),
            ("x.x.x", 0.8, None),
            ("x.x.x", 0.5, (0, 4, 0.6, True)),
            (".....xxxxxxx", 0.8, (5, 11, 1.0, True)),
            ("..xxxxxx............", 0.8, (2, 7, 1.0, False)),
            # Of two segments the last one.
            ("xxxxx..........xxxxx", 0.8, (15, 19, 1.0, True)),
            ("xxxxx.........xxxxx.......", 0.8, (14, 18, 1.0, False)),
            # An interruption shorter than a window joins.
            ("xxxxx..xxxxx", 0.8, (0, 11, 0.833, True)),
        ],
    )
    def test_by_hand(self, text: str, share: float, wanted: tuple[int, int, float, bool] | None) -> None:
        assert segment(text, share) == wanted

    def test_unknown_rows_are_as_if_they_were_not_there(self) -> None:
        assert segment("x.x.x.x.x.", 0.8, ".?.?.?.?.?") == (0, 8, 1.0, True)
        assert segment("xxxxx", 0.8, "....?") is None

    @pytest.mark.parametrize("seed", range(5))
    def test_against_a_search_of_all_windows(self, seed: int) -> None:
        """The first and last x of the last group of usual windows that overlap or touch."""
        generator = np.random.default_rng(seed)
        for share, density in itertools.product((0.5, 0.8, 1.0), (0.2, 0.5, 0.8)):
            text = generator.random(80) < density
            size = 8
            usual = [start for start in range(73) if text[start : start + size].mean() >= share - 1e-12]
            found = lasting(text, np.ones(80, bool), share)
            if not usual:
                assert found is None
                continue
            begin = usual[-1]
            for start in reversed(usual):
                if begin - start <= size:
                    begin = start
            places = np.flatnonzero(text[begin : usual[-1] + size]) + begin
            assert found is not None and (found.first, found.last) == (places[0], places[-1])


class TestRisen:
    """A rise beyond noise."""

    def test_too_few_values_say_nothing(self) -> None:
        assert has_risen(np.arange(9.0)) is None and has_risen(np.empty(0)) is None
        assert has_risen(np.arange(10.0)) is True

    def test_what_stays_or_falls_has_not_risen(self) -> None:
        assert has_risen(np.full(40, 3.0)) is False
        assert has_risen(-np.arange(40.0)) is False

    def test_chance_seldom_looks_like_a_rise(self) -> None:
        """Of 1000 sequences without a trend at most 2% pass for one that rose, heavy tails included."""
        generator = np.random.default_rng(0)
        for draw in (
            generator.standard_normal,
            lambda size: generator.standard_t(3, size),
            generator.standard_exponential,
        ):
            assert sum(bool(has_risen(draw(60))) for _ in range(1000)) <= 20

    @pytest.mark.parametrize("rows", [20, 60, 400])
    def test_a_rise_of_a_few_noises_is_seen(self, rows: int) -> None:
        generator = np.random.default_rng(1)
        seen = [has_risen(np.linspace(0, 5, rows) + generator.standard_normal(rows)) for _ in range(200)]
        assert np.mean(seen) > 0.95

    def test_noise_is_the_standard_deviation_whatever_the_trend_and_the_outliers(self) -> None:
        values = 3.0 * np.random.default_rng(3).standard_normal(20_000)
        assert noise(values) == pytest.approx(3.0, rel=0.03)
        assert noise(values + np.linspace(0, 1000, values.size)) == pytest.approx(3.0, rel=0.03)
        values[::100] = 1e6
        assert noise(values) == pytest.approx(3.0, rel=0.06)
        assert noise(np.array([1.0])) == 0.0


def test_a_column_holds_numbers_or_nothing() -> None:
    records = [{"a": 1}, {"a": 2.5}, {"a": None}, {}, {"a": "3"}, {"a": True}, {"a": 1e308}, {"a": float("nan")}]
    np.testing.assert_array_equal(Evidence(records, Config()).column("a"), [1, 2.5, *[np.nan] * 6])
