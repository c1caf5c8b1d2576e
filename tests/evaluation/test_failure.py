"""What counts as a failed episode, against episodes counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trpo_brax.errors import ConfigError
from trpo_brax.evaluation import DEFAULT_FAILURE, Episodes, Failure, summarize

FIVE = Episodes(
    returns=np.array([10.0, 500.0, 499.9, 900.0, 700.0], np.float32),
    lengths=np.array([5, 100, 99, 1000, 1000], np.int32),
    terminated=np.array([True, True, False, False, False]),
    nonfinite=np.array([False, False, False, True, False]),
)


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("terminated", [1, 1, 0, 1, 0]),
        ("return < 500", [1, 0, 1, 1, 0]),
        ("return<=500", [1, 1, 1, 1, 0]),
        ("return > 6e2", [0, 0, 0, 1, 1]),
        ("length >= 1000", [0, 0, 0, 1, 1]),
        ("length < 100 or return > 600", [1, 0, 1, 1, 1]),
        ("return < -1 or terminated", [1, 1, 0, 1, 0]),
    ],
)
def test_each_form(text: str, failed: list[int]) -> None:
    failure = Failure(text)
    np.testing.assert_array_equal(failure(FIVE), np.array(failed, bool))
    report = summarize(FIVE, failure)
    assert report.failure_rate == pytest.approx(sum(failed) / 5)
    assert report.failure == f"{text} or non-finite"


def test_by_default_an_episode_that_ended_early_or_broke_has_failed() -> None:
    np.testing.assert_array_equal(DEFAULT_FAILURE(FIVE), [True, True, False, True, False])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "return",
        "return < ",
        "return < many",
        "return < nan",
        "return < inf",
        "return < 1e999",
        "reward < 5",
        "return = 5",
        "return < 5 and length < 3",
        "return < 5 or",
        "__import__('os')",
        "x" * 5000,
    ],
)
def test_what_is_no_predicate_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Failure(text)
    message = str(caught.value)
    assert message.startswith("failure must be like") and message.endswith(".") and len(message) < 300


def test_the_episodes_are_left_as_they_were() -> None:
    before = FIVE.nonfinite.copy()
    Failure("return < 1e9")(FIVE)
    np.testing.assert_array_equal(FIVE.nonfinite, before)
