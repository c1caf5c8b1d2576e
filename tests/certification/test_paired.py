"""Comparing two policies: the stopping rule by hand, the episodes without it, and what is refused."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from tests.tiny_environments import History
from tests.tiny_runs import TINY, train_tiny
from trpo_brax.certification.paired import LOOK, compare, difference_bounds, differences
from trpo_brax.certification.settings import Listener, Pairing
from trpo_brax.config import override
from trpo_brax.environments import own_task
from trpo_brax.errors import ConfigError
from trpo_brax.evaluation import EpisodeRunner, Episodes, EvaluationStopped, policy_actor
from trpo_brax.randomness import Stream, stream_key
from trpo_brax.runs.folder import RunFolder
from trpo_brax.runs.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with checkpoints after its iterations 2 and 4."""
    return train_tiny(tmp_path_factory.mktemp("compared") / "run")


def test_a_constant_difference_is_known_when_a_gambler_has_won_enough() -> None:
    """A difference d out of +-w is (1 + d / w) / 2 of the range. Who stakes 3/4 on more than 1/2, all that he may, has
    (1 + 3 d / 4 w)^n after n of them; two bounds at 95% together are shown at a capital of 40."""
    for difference, largest in ((1.0, 100.0), (0.5, 2.0), (3.0, 3.0)):
        needed = math.ceil(math.log(40.0) / math.log1p(0.75 * difference / largest))
        for sign in (1.0, -1.0):
            enough, less = (
                difference_bounds(np.full(n, sign * difference), largest, 0.95) for n in (needed, needed - 1)
            )
            assert enough is not None and less is not None
            assert (enough[0] > 0.0, enough[1] < 0.0) == (sign > 0, sign < 0)
            assert less[0] <= 0.0 <= less[1]


def test_bounds_only_draw_together_and_those_of_a_turned_question_are_turned() -> None:
    found = np.random.default_rng(0).normal(0.3, 1.0, 400).clip(-5.0, 5.0)
    looks = [difference_bounds(found[:n], 5.0, 0.9) for n in range(1, 401, 7)]
    lower, upper = np.transpose([look for look in looks if look is not None])
    assert np.all(np.diff(lower) >= 0.0) and np.all(np.diff(upper) <= 0.0) and 0.0 < lower[-1] < 0.3 < upper[-1]
    turned = difference_bounds(-found, 5.0, 0.9)
    assert turned == pytest.approx((-difference_bounds(found, 5.0, 0.9)[1], -difference_bounds(found, 5.0, 0.9)[0]))
    assert difference_bounds(np.array([0.0, -5.1]), 5.0, 0.9) is None


def test_an_episode_that_went_non_finite_has_lost_by_the_largest_difference() -> None:
    def of(returns: list[float], nonfinite: list[bool]) -> Episodes:
        zeros = np.zeros(4, np.int32)
        return Episodes(np.asarray(returns, np.float32), zeros, zeros > 0, np.asarray(nonfinite))

    a, b = of([1.0, 2.0, 3.0, 4.0], [False, True, False, True]), of([6.0, 2.5, 9.0, 9.0], [False, False, True, True])
    np.testing.assert_array_equal(differences(a, b, 100.0), [5.0, 100.0, -100.0, 0.0])


def test_it_is_of_the_same_episodes_of_its_own_stream(run: Run) -> None:
    pairing = Pairing(episodes=300, largest_difference=1e6, failure="length < 4")
    comparison = compare(run, run, pairing, checkpoint=2, environment=History())
    assert comparison.episodes == 300
    key = stream_key(jax.random.PRNGKey(0), Stream.COMPARISON)
    act = policy_actor(run.policy().specification, stochastic=False)
    runner = EpisodeRunner(own_task(History(), TINY.rollout), act, batch=300, episode_length=16)
    pair = []
    for which in (2, 4):
        policy = run.policy(which)
        pair.append(runner.run((policy.parameters, policy.statistics), key, episodes=comparison.episodes))
    for ours, episodes in zip(comparison.return_means, pair, strict=True):
        assert ours == pytest.approx(episodes.returns.mean(), rel=1e-5)
    assert comparison.failure_rates == tuple(float((one.lengths < 4).mean()) for one in pair)
    assert comparison.difference_mean == pytest.approx(float((pair[1].returns - pair[0].returns).mean()), rel=1e-4)


def test_it_stops_at_the_first_look_that_knows(run: Run) -> None:
    """Within a range in which their difference shows, it is known early and turned where the two are; in one of a
    million times that, never; and a policy is no better than itself."""
    few = Pairing(episodes=LOOK)
    largest = 20.0 * abs(compare(run, run, few, checkpoint=2, environment=History()).difference_mean)
    pairing = Pairing(episodes=10 * LOOK, largest_difference=largest)
    early = compare(run, run, pairing, checkpoint=2, environment=History())
    turned = compare(run, run, pairing, other_checkpoint=2, environment=History())
    assert {early.verdict, turned.verdict} == {"better", "worse"}
    assert early.episodes == turned.episodes < 10 * LOOK and early.episodes % LOOK == 0
    never = compare(
        run, run, Pairing(episodes=300, largest_difference=1e6 * largest), checkpoint=2, environment=History()
    )
    itself = compare(run, run, Pairing(episodes=300), environment=History())
    for one in (never, itself):
        assert one.verdict == "undecided" and one.episodes == 300
    assert itself.difference_mean == 0.0 and itself.largest_difference_source == "assumed"


def test_nothing_is_stated_where_a_difference_is_larger_than_the_largest(run: Run) -> None:
    comparison = compare(run, run, Pairing(largest_difference=1e-9), checkpoint=2, environment=History())
    assert comparison.verdict == "undecided" and comparison.episodes == LOOK
    assert comparison.difference_lower is None and "Nothing is stated" in comparison.lines()[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"episode_length": 15}, "one episode_length, and theirs are 16 and 15"),
        ({"environment": "tests.tiny_environments:Countdown"}, r"one task, and theirs are .*:History and .*:Countdown"),
        ({"environment_arguments": "{}"}, r"one environment_arguments, and theirs are None and \{\}"),
    ],
)
def test_two_worlds_are_refused_by_what_differs(run: Run, changes: dict[str, object], words: str) -> None:
    other = Run(RunFolder(run.path), override(run.config, **changes))
    with pytest.raises(ConfigError, match=f"compare needs two runs of {words}"):
        compare(run, other, environment=History())


def test_a_pairing_is_one(run: Run) -> None:
    with pytest.raises(ConfigError, match="pairing must be a Pairing, not 300"):
        compare(run, run, 300, environment=History())  # type: ignore[arg-type]


def test_whoever_listens_may_stop_it(run: Run) -> None:
    with pytest.raises(EvaluationStopped):
        compare(run, run, environment=History(), listener=Listener(stopped=lambda: True))
