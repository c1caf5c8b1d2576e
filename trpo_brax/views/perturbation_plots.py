"""Return and failure rate against how far the world is from the one trained in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_brax.views.plots import BLUE, ORANGE, trim

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {
    "mass": "body mass, factor",
    "friction": "friction, factor",
    "gravity": "gravity, factor",
    "gain": "actuator gain, factor",
    "observation_noise": "observation noise, std in training's",
    "delay": "observation delay, control steps",
}
_NOMINAL = {"observation_noise": 0.0, "delay": 0.0}


def perturbation_figure(perturbations: Mapping[str, Any]) -> Figure:
    """Return the picture of a certificate's `perturbations`: a row a perturbation, return left, failures right."""
    from matplotlib.figure import Figure

    worlds: Sequence[Mapping[str, Any]] = perturbations["worlds"]
    names = list(dict.fromkeys(world["perturbation"] for world in worlds if world["perturbation"] is not None))
    figure = Figure(figsize=(7.2, 2.3 * max(1, len(names))), layout="constrained")
    panels = figure.subplots(max(1, len(names)), 2, squeeze=False, sharey="col")
    for (left, right), name in zip(panels, names, strict=False):
        _draw(left, right, name, _rows(worlds, name))
    for panel, told in zip(panels[0], ("return", "failure rate"), strict=True):
        panel.set_title(told, fontsize=10)
        panel.legend(frameon=False, fontsize=8)
    return figure


def _rows(worlds: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, Mapping[str, Any]]]:
    """Return a perturbation's worlds by strength, the one trained in among them."""
    own = [(float(world["strength"]), world) for world in worlds if world["perturbation"] == name]
    trained = [(_NOMINAL.get(name, 1.0), world) for world in worlds if world["perturbation"] is None]
    return sorted(own + trained, key=lambda pair: pair[0])


def _draw(left: Axes, right: Axes, name: str, rows: Sequence[tuple[float, Mapping[str, Any]]]) -> None:
    strengths = [strength for strength, _ in rows]

    def column(key: str) -> np.ndarray:
        return np.array([world[key] for _, world in rows], np.float64)

    left.plot(strengths, column("return_mean"), color=BLUE, marker="o", ms=3, lw=1.4, label="mean")
    left.plot(strengths, column("return_mean_lower"), color=BLUE, lw=1, ls="--", label="mean, certified at least")
    left.plot(strengths, column("return_cvar_lower"), color=ORANGE, lw=1, ls=":", label="CVaR, certified at least")
    right.plot(strengths, column("failure_rate"), color=ORANGE, marker="o", ms=3, lw=1.4, label="observed")
    upper = column("failure_probability_upper")
    right.plot(strengths, upper, color=ORANGE, lw=1, ls="--", label="certified at most")
    right.set_ylim(-0.03, 1.03)
    for panel in (left, right):
        panel.set_xlabel(LABELS.get(name, name))
        panel.axvline(_NOMINAL.get(name, 1.0), color="0.6", lw=0.8, zorder=0)
        trim(panel)
