"""What the experience shows: environments, observations, actions, returns, and what the critic makes of them."""

from __future__ import annotations

import numpy as np

from trpo_brax.config import SQUARABLE
from trpo_brax.diagnosis.evidence import MOSTLY, USUAL, Evidence, Finding, Level
from trpo_brax.diagnosis.trends import Lasting, has_risen, lasting, window

EXPLAINED = 0.05
"""Explained variance of a critic that explains nothing: its sample estimate strays by a few percent about 0."""
CRITIC_START = 10
"""Iterations in which a critic that knows nothing yet is no finding: reacher's predicts nothing before its first
episodes end, in iteration 4, and for as long again."""
NOTHING_TO_EXPLAIN = 0.01
"""Where returns spread by less than this share of the range that they have gone through, the critic has nothing left
to explain: a balanced double pendulum's returns are 9340 +- 0.3, and the explained variance is below 0."""
SATURATED = 0.5
"""Share of action components that are clipped; a policy begins with 0.1 at the default standard deviation."""
MANY_COMPONENTS = 0.5
"""Share of constant observation components from which on the policy is all but blind; fewer may well be a task's way,
as the height of reacher's target."""
EXPLODING = 5.0
"""In units of observation_clip. Contacts throw healthy observations past the clip, but not by several times."""
SQUEEZED = 0.02
"""Usual distance of a component from its mean, in standard deviations and counted as 1 at most, which is 0.63 for
normal ones: with less, a network that takes inputs of order 1 hardly sees it vary. Healthy runs keep 0.07 (reacher,
one component of which hardly ever changes) to 0.5."""
SQUEEZED_SHARE = 0.1
"""Of the largest such distance before: what the policy had learned to see has been pushed together. Learning to stand
brings a double pendulum's from 0.5 to 0.25."""
LEAST_RETURNS = 20
"""Iterations with a return, before it can be called flat."""
LEAST_EPISODES = 5
"""One after the other in an environment, before their return can be called flat: 20 iterations of 128 steps are less
than three episodes of 1,000, and two pushers of three had not risen after four."""
LOST = 2.0**-23
"""Of the largest advantage: what a float32 rounds away beside it."""

SHORTFALL = 0.05
"""Of the range of returns: by so much the mean action may fall short of sampled ones without a finding."""


def environments_nonfinite(evidence: Evidence) -> Finding | None:
    """Transitions that are not finite: ever is a note, often a problem."""
    share = evidence.column("nonfinite_share")
    metric = "nonfinite_share"
    if np.isnan(share).all():
        share, metric = evidence.column("nonfinite_envs") / evidence.config.rollout.num_envs, "nonfinite_envs"
    where = _ever(share > 0)
    if where is None:
        return None
    what = "transitions" if metric == "nonfinite_share" else "environments"
    explanation = (
        f"{np.sum(share > 0)} of {share.size} iterations met states or rewards that are not finite, at worst "
        f"{np.nanmax(share):.2g} of the {what}; they are cut off and learned from no further."
    )
    advice = "Train with --check-finite and read the dump with trpo-brax replay; a shorter time step often helps."
    return evidence.finding("environments_nonfinite", metric, where, explanation, advice)


def reward_scale(evidence: Evidence) -> Finding | None:
    """Rewards are so large that their sums overflow once squared, or so small that nothing is left of them."""
    rewards, loss = evidence.column("reward_max_abs"), evidence.column("critic_loss")
    settings, longest = evidence.config.trust_region, evidence.config.rollout.episode_length
    discount = max(settings.discount, settings.final_discount or 0.0)
    sums = rewards * (longest if discount == 1 else min(longest, 1 / (1 - discount)))
    refused = np.array([row.get("step_outcome") == "non_finite" for row in evidence.rows])
    beyond = (sums >= SQUARABLE) & (refused | np.isnan(loss))
    small = (rewards > 0) & ((rewards < LOST * evidence.column("advantage_max_abs")) | (sums <= 1 / SQUARABLE))
    if (where := _ever(beyond)) is not None:
        explanation = (
            f"In {np.sum(beyond)} of {beyond.size} iterations rewards of up to {np.max(rewards[beyond]):.2g} added up "
            "to more than single precision can square (1.8e19): nothing was learned from them."
        )
    elif (where := lasting(small, ~np.isnan(rewards), USUAL)) is not None:
        explanation = (
            f"Rewards were at most {np.nanmax(rewards[where.first : where.last + 1]):.2g}: single precision loses them "
            "beside the critic's values, or rounds their squares to 0."
        )
    else:
        return None
    advice = "Scale the rewards in the environment, so that they are of order 1; bound them where a few stand out."
    return evidence.finding("reward_scale", "reward_max_abs", where, explanation, advice)


def observation_exploding(evidence: Evidence) -> Finding | None:
    """Observations lie far outside everything seen before, or have left next to nothing of all others."""
    largest, least = evidence.column("observation_max_abs"), evidence.column("observation_spread_min")
    clip = evidence.config.network.observation_clip
    # The first iteration's are raw: there are no statistics yet.
    known = ~np.isnan(largest) & ~np.isnan(least) & (evidence.column("iteration") > 1)
    before = np.fmax.accumulate(np.where(known, least, np.nan))
    outside, squeezed = largest > EXPLODING * clip, least < np.fmax(SQUEEZED, SQUEEZED_SHARE * before)
    where = lasting(outside | squeezed, known, MOSTLY)
    if where is None:
        return None
    part = slice(where.first, where.last + 1)
    explanation = (
        f"Observations came to lie up to {np.nanmax(largest[part]):.2g} standard deviations from the mean (they are "
        f"clipped at {clip:g}), and their statistics leave a component as little as {np.nanmin(least[part]):.1g} "
        "standard deviations of usual variation."
    )
    advice = "Look for states in which the simulation diverges, end episodes there, or bound what is observed."
    return evidence.finding("observation_exploding", "observation_max_abs", where, explanation, advice)


def observation_constant(evidence: Evidence) -> Finding | None:
    """Components of the observation are the same in all environments and steps of an iteration."""
    share = evidence.column("observation_constant_share")
    where = lasting(share > 0, ~np.isnan(share), USUAL)
    if where is None:
        return None
    usual = float(np.nanmedian(share[where.first : where.last + 1]))
    level: Level = "problem" if usual >= MANY_COMPONENTS else "note"
    explanation = f"{usual:.0%} of the observation's components did not vary at all, and tell the policy nothing."
    advice = "Check that the environment fills them in; if they are constant by design, leave them out."
    return evidence.finding("observation_constant", "observation_constant_share", where, explanation, advice, level)


def actions_saturated(evidence: Evidence) -> Finding | None:
    """Most action components are clipped to their bounds."""
    share = evidence.column("action_saturation")
    where = lasting(share > SATURATED, ~np.isnan(share), USUAL)
    if where is None:
        return None
    explanation = (
        f"{np.nanmedian(share[where.first : where.last + 1]):.0%} of all action components were clipped to their "
        "bounds, where the environment cannot tell one action from another."
    )
    advice = "Lower initial_log_std, or widen the action bounds if the environment takes more than they say."
    # Where the best actions are the extreme ones, as in many tasks, a policy that learns is clipped.
    level: Level = "note" if has_risen(evidence.returns()) else "problem"
    return evidence.finding("actions_saturated", "action_saturation", where, explanation, advice, level)


def explained_variance(evidence: Evidence) -> Finding | None:
    """The critic predicts returns hardly better than their mean does, or worse, beyond the first iterations."""
    explained, spread = evidence.column("explained_variance"), evidence.column("episode_return_std")
    returns = evidence.returns()
    range_ = np.ptp(returns) if returns.size else 0.0
    something = ~(spread <= NOTHING_TO_EXPLAIN * range_)
    late = evidence.column("iteration") > CRITIC_START
    where = lasting((explained <= EXPLAINED) & something, late & ~np.isnan(explained), USUAL)
    if where is None:
        return None
    return evidence.finding(
        "explained_variance_low",
        "explained_variance",
        where,
        f"In {where.share:.0%} of the iterations the critic explained next to none of the returns' variance, so that "
        "advantages are as noisy as returns.",
        "Raise critic_steps (of adam: critic_epochs, or change critic_learning_rate) or critic_hidden_sizes, and check "
        "that observations hold what the reward depends on.",
    )


def return_flat(evidence: Evidence) -> Finding | None:
    """Return has never risen above where it began."""
    returns = evidence.column("episode_return_mean")
    places = np.flatnonzero(~np.isnan(returns))
    lengths = evidence.column("episode_length_mean")[places]
    steps = places.size * evidence.config.rollout.unroll_length
    if (
        places.size < LEAST_RETURNS
        or np.any(steps < LEAST_EPISODES * lengths)
        or has_risen(returns[places]) is not False
    ):
        return None
    explanation = (
        f"In {places.size} iterations with a return it never rose above where it began by more than its noise "
        f"(median {np.median(returns[places]):.4g})."
    )
    advice = (
        "Start from the other findings, if there are any; else check the reward's sign and whether it can be "
        "reached by chance, and try a larger batch, a larger max_kl or more steps."
    )
    where = Lasting(int(places[0]), int(places[-1]), 1.0, True)
    return evidence.finding("return_flat", "episode_return_mean", where, explanation, advice)


def mean_action_below_samples(evidence: Evidence) -> Finding | None:
    """The last evaluation, by the policy's mean action, ended far below what sampled actions reached at the time."""
    evaluated, sampled = evidence.column("evaluation_return_mean"), evidence.column("episode_return_mean")
    places = np.flatnonzero(~np.isnan(evaluated) & ~np.isnan(sampled))
    if not places.size:
        return None
    last = int(places[-1])
    led = evidence.config.network.final_log_std is not None
    if led and evidence.column("env_steps")[last] < (evidence.config.anneal_steps or 0):
        return None  # with as much noise as is still to go
    shortfall = sampled[last] - evaluated[last]
    spreads = (evidence.column(name)[last] for name in ("evaluation_return_std", "episode_return_std"))
    episodes = evidence.config.record.eval_episodes, max(evidence.column("episodes")[last], 1.0)
    error = np.hypot(*(np.nan_to_num(spread) / np.sqrt(n) for spread, n in zip(spreads, episodes, strict=True)))
    if shortfall <= max(SHORTFALL * np.ptp(evidence.returns()), 4.0 * error):
        return None
    explanation = (
        f"By its mean action the policy reached {evaluated[last]:.4g}, and {sampled[last]:.4g} by samples: it "
        "does worse without the noise that it was rewarded with."
    )
    advice = "Train longer, raise trace_decay or lower max_kl towards the end; or take the best checkpoint."
    return evidence.finding(
        "mean_action_below_samples", "evaluation_return_mean", Lasting(last, last, 1.0, True), explanation, advice
    )


def _ever(so: np.ndarray) -> Lasting | None:
    """Return from where to where something was so at all, and whether it mostly is in the end; None if it never was."""
    struck = np.flatnonzero(so)
    if not struck.size:
        return None
    often = bool(np.mean(so[-window(so.size) :]) >= MOSTLY)
    return Lasting(int(struck[0]), int(struck[-1]), struck.size / so.size, often)
