"""A certificate as a page that a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trpo_brax.views.page import document, picture, table, text
from trpo_brax.views.perturbation_plots import LABELS, perturbation_figure
from trpo_brax.views.plots import png_of

_SOURCES = {
    "given": "given by whoever asked for the certificate",
    "known": "what the task's reward allows",
    "assumed": "an assumption, made from other episodes before these were drawn",
    "observed": "the highest of other episodes",
}
_NAMES = {
    "failure_probability_upper": "failure probability, at most",
    "return_quantile_05_lower": "5% quantile of return, at least",
    "return_mean_lower": "mean return, at least",
    "return_cvar_lower": "CVaR of return, at least",
}


def certificate_page(certificate: Mapping[str, Any]) -> str:
    """Return certificate.html of what certificate.json holds."""
    title = f"Certificate: {certificate['task']}"
    return document(title, f"<h1>{text(title)}</h1>\n{certificate_body(certificate)}")


def certificate_body(certificate: Mapping[str, Any]) -> str:
    """Return a certificate as HTML without a heading of its own."""
    parts = [_statements(certificate), _grounds(certificate)]
    if certificate["training_runs"] is not None:
        parts.append(_training_runs(certificate["training_runs"]))
    if certificate["perturbations"] is not None:
        parts.append(perturbations_body(certificate["perturbations"]))
    parts.append(_identity(certificate))
    return "\n".join(parts)


def _statements(certificate: Mapping[str, Any]) -> str:
    seen = f"seen in the {certificate['episodes']:,} episodes"
    items = "\n".join(f"<li>{text(one['sentence'])}</li>" for one in certificate["statements"])
    rows = [(_NAMES[one["name"]], one["bound"], one["observed"]) for one in certificate["statements"]]
    return (
        f"<p>Of this policy, acting by its mean action in this environment, all of the following holds together with "
        f"{100 * certificate['confidence']:g}% confidence:</p>\n"
        f'<ol class="statements">\n{items}\n</ol>\n'
        f"{table(('', 'stated', seen), rows)}"
    )


def _grounds(certificate: Mapping[str, Any]) -> str:
    declared = certificate["declared"]
    chosen = declared["chosen_by"]
    choice = f" The checkpoint was chosen by {chosen}, on other episodes." if chosen else ""
    earlier = certificate["earlier_certificates"]
    again = (
        f" Of this policy there {'were' if earlier > 1 else 'was'} at least {int(earlier)} earlier: to pick the best "
        "of several certificates would void the confidence."
        if earlier
        else ""
    )
    return (
        "<h3>What this rests on</h3>\n"
        f"<p>These statements, the {declared['episodes']:,} episodes they are made from and their seed were declared "
        f"at {text(declared['at'])}, before the first of those episodes was drawn.{text(choice)}{text(again)} Each "
        f"statement by itself has {100 * declared['confidence_each']:.6g}% confidence, so that all hold together "
        "(Bonferroni). None assumes anything of the shape of the distribution: the failure probability is Clopper "
        "and Pearson's one-sided bound, the quantile an order statistic, mean and CVaR are bounded by betting "
        f"(Waudby-Smith and Ramdas 2024).</p>\n"
        f"<p>Failed means: {text(declared['failure'])}. Mean and CVaR rest on no return being below "
        f"{declared['return_floor']:,.6g}: {_SOURCES[declared['return_floor_source']]}. Returns above "
        f"{declared['return_cap']:,.6g} count as that much ({_SOURCES[declared['return_cap_source']]}), which can only "
        "lower what is stated. An episode that goes non-finite has failed and counts as the lowest return.</p>\n"
        "<p>It is about the simulator it was drawn in, starting states and time limit included, and about no other "
        "world; how far it carries is what perturbed worlds show.</p>"
    )


def _training_runs(runs: Mapping[str, Any]) -> str:
    items = "\n".join(f"<li>{text(sentence)}</li>" for sentence in runs["sentences"])
    figures = ", ".join(f"{figure:,.6g}" for figure in runs["figures"])
    return (
        "<h3>The next training run</h3>\n"
        f"<p>By the {text(runs['figure'])}; of the {int(runs['runs'])} seeds: {text(figures)}. Each of these holds by "
        f"itself, if the seeds are all that differs and none was left out.</p>\n<ul>\n{items}\n</ul>"
    )


def perturbations_body(perturbations: Mapping[str, Any]) -> str:
    """Return the section on perturbed worlds."""
    rows = [
        (
            "as trained" if world["perturbation"] is None else LABELS.get(world["perturbation"], world["perturbation"]),
            None if world["perturbation"] is None else float(world["strength"]),
            float(world["return_mean"]),
            world["return_mean_lower"],
            world["return_quantile_05_lower"],
            world["return_cvar_lower"],
            float(world["failure_rate"]),
            world["failure_probability_upper"],
        )
        for world in perturbations["worlds"]
    ]
    header = ("world", "", "mean", "mean, at least", "5% quantile, at least", "CVaR, at least")
    missing = perturbations["not_applicable"]
    note = f" This environment has no bodies to change, so without {', '.join(missing)}." if missing else ""
    drawn = png_of(perturbation_figure(perturbations))
    return (
        "<h3>In other worlds</h3>\n"
        f"<p>The same statements in worlds that differ from the training's in one thing each, from "
        f"{perturbations['episodes']:,} episodes a world, all rows together with "
        f"{100 * perturbations['confidence']:g}% confidence.{text(note)}</p>\n"
        f"{picture(drawn, 'Return and failure rate against the strength of each perturbation')}\n"
        f"{table((*header, 'failed', 'failing, at most'), rows)}"
    )


def _identity(certificate: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in certificate["versions"].items())
    where = (
        certificate["task"] if certificate["backend"] is None else f"{certificate['task']} ({certificate['backend']})"
    )
    declared = certificate["declared"]
    rows = [
        ("environment", where),
        ("time limit", f"{certificate['episode_length']} control steps, action repeat {certificate['action_repeat']}"),
        ("checkpoint", f"iteration {certificate['checkpoint']}, SHA-256 {certificate['checkpoint_sha256']}"),
        ("policy", f"seed {certificate['policy_seed']}, SHA-256 {certificate['policy_sha256']}"),
        ("episodes", f"seed {declared['seed']}, stream {declared['stream']}"),
        ("versions", versions),
    ]
    return f"<h3>What it is about</h3>\n{table(('', ''), rows)}"
