"""What a policy's updates show: entropy, refused steps, short steps, unsolved directions."""

from __future__ import annotations

from collections import Counter

import numpy as np

from trpo_brax.diagnosis.evidence import MOSTLY, USUAL, Evidence, Finding
from trpo_brax.diagnosis.trends import has_risen, lasting, window

ENTROPY_FALL = 2.0
"""Nats an action component: its standard deviation is a seventh of what it was. Reacher's falls by as much while its
return rises, so a fall alone is none of the findings."""
ENTROPY_FLOOR = -3.0
"""Nats an action component: a standard deviation of 1.2% of half the action range, with which little is explored."""
SMALL_KL = 0.1
"""Share of max_kl: KL grows with the square of the step, so the step is a third of what it may be."""
UNSOLVED = 1.0
"""Relative residual of a direction that solves the equation no better than no direction at all. The tolerance is no
measure: healthy runs end far above it, at 0.2 to 0.6, as ten iterations are worth more than a precise direction."""
_UNIT_NORMAL = 0.5 * float(np.log(2 * np.pi * np.e))
"""Entropy of a normal distribution of standard deviation 1, in nats."""
_REFUSALS = {
    "kl_exceeded": (
        "the shortest step tried still went beyond max_kl",
        "Raise damping, fisher_fraction or cg_iterations, so that the step's length is better known, or "
        "line_search_steps, so that shorter ones are tried.",
    ),
    "no_improvement": (
        "no step tried improved the surrogate by enough of what was predicted",
        "Lower max_kl or acceptance_ratio, or gather more steps an iteration (num_envs, unroll_length), so that the "
        "gradient is less noise.",
    ),
    "non_finite": (
        "the gradient, or where the steps tried led, was not finite",
        "Train with --check-finite and read the dump with trpo-brax replay; rewards or observations of a huge scale "
        "are the usual cause.",
    ),
    "zero_gradient": (
        "the gradient was zero: no action was better than another",
        "Check that rewards depend on the actions, and that actions are not all clipped to the same bound.",
    ),
    "bad_curvature": (
        "conjugate gradient met a direction without positive curvature",
        "Raise damping or fisher_fraction.",
    ),
}
"""Step outcome -> what it means and what to do."""


def entropy_collapse(evidence: Evidence) -> Finding | None:
    """Entropy an action component far below where it began without any gain, or hardly any left."""
    size, entropy = _action_size(evidence), evidence.column("entropy")
    if size is None or evidence.config.network.final_log_std is not None:  # led, it falls as it was asked to
        return None
    known, components = ~np.isnan(entropy), entropy / size
    start = components[np.flatnonzero(known)[0]]
    advice = (
        "Set final_log_std and anneal_steps, lower max_kl, or take a penalty on actions out of the reward: sampling "
        "less is the cheapest way to lower it."
    )
    fell = lasting(known & (components <= start - ENTROPY_FALL), known, USUAL)
    if fell is not None:
        returns = evidence.column("episode_return_mean")[: fell.first + window(known.size) + 1]
        if has_risen(returns[~np.isnan(returns)]) is False:
            fall = start - components[fell.first]
            explanation = (
                f"Entropy had fallen by {fall:.1f} nats an action component while the return had not risen: the "
                "policy stopped exploring before it learned."
            )
            return evidence.finding("entropy_collapse", "entropy", fell, explanation, advice)
    low = lasting(known & (components <= ENTROPY_FLOOR), known, USUAL)
    if low is None:
        return None
    risen = has_risen(evidence.returns())
    outcome = {True: "the return rose all the same", False: "the return did not rise", None: "it hardly explores"}
    explanation = (
        f"Entropy is {components[low.first]:.1f} nats an action component, a standard deviation of about "
        f"{100 * np.exp(components[low.first] - _UNIT_NORMAL):.1g}% of half the action range; {outcome[risen]}."
    )
    return evidence.finding(
        "entropy_collapse", "entropy", low, explanation, advice, "problem" if risen is False else "note"
    )


def _action_size(evidence: Evidence) -> int | None:
    """Return the number of action components, None where it cannot be told.

    All components begin at initial_log_std, so the first iteration's entropy is about as many times one's.
    """
    first = evidence.column("entropy")[0]
    one = _UNIT_NORMAL + evidence.config.network.initial_log_std
    if np.isnan(first) or abs(one) < 0.1 or evidence.rows[0]["iteration"] != 1:
        return None
    return max(round(first / one), 0) or None


def steps_rejected(evidence: Evidence) -> Finding | None:
    """Most steps are refused, for one reason before others."""
    outcomes = np.array([str(row.get("step_outcome")) for row in evidence.rows])
    refused = np.isin(outcomes, list(_REFUSALS))
    where = lasting(refused, refused | (outcomes == "accepted"), MOSTLY)
    if where is None:
        return None
    part = slice(where.first, where.last + 1)
    (reason, count), *_ = Counter(outcomes[part][refused[part]].tolist()).most_common(1)
    meaning, advice = _REFUSALS[reason]
    total = int(refused[part].sum())
    explanation = f"{where.share:.0%} of the steps were refused, {count} of {total} as {reason}: {meaning}."
    return evidence.finding("steps_rejected", "step_outcome", where, explanation, advice)


def kl_below_limit(evidence: Evidence) -> Finding | None:
    """Accepted steps use a small part of the trust region."""
    limit, kl = evidence.column("max_kl"), evidence.column("kl_mean")
    limit = np.where(np.isnan(limit), evidence.config.trust_region.max_kl, limit)
    accepted = np.array([row.get("step_outcome") == "accepted" for row in evidence.rows])
    where = lasting(kl < SMALL_KL * limit, accepted & ~np.isnan(kl), USUAL)
    if where is None:
        return None
    part = slice(where.first, where.last + 1)
    used, allowed = (float(np.median(values[part][accepted[part]])) for values in (kl, limit))
    fractions = evidence.column("step_fraction")[part][accepted[part]]
    if np.mean(fractions < np.sqrt(SMALL_KL)) >= MOSTLY:
        advice = "The line search shortens the steps: lower max_kl to what holds, or gather more steps an iteration."
    else:
        advice = "Full steps are this short: lower damping, or raise fisher_fraction."
    explanation = (
        f"Accepted steps moved the policy by a KL of {used:.2g}, {used / allowed:.1%} of max_kl {allowed:g}: it learns "
        "far slower than it may."
    )
    return evidence.finding("kl_below_limit", "kl_mean", where, explanation, advice)


def cg_residual_high(evidence: Evidence) -> Finding | None:
    """Conjugate gradient ends with a direction that does not solve its equation at all."""
    residual = evidence.column("cg_relative_residual")
    where = lasting(residual >= UNSOLVED, ~np.isnan(residual), USUAL)
    if where is None:
        return None
    explanation = (
        f"In {where.share:.0%} of the iterations conjugate gradient ended with a residual at least as large as the "
        "gradient, so the step is hardly a natural gradient's."
    )
    advice = "Raise cg_iterations, damping or fisher_fraction."
    return evidence.finding("cg_residual_high", "cg_relative_residual", where, explanation, advice)
