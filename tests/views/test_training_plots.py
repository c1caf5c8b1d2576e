"""The panels show what the records hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from PIL import Image

from trpo_brax.config import Config, override
from trpo_brax.views.curves import RecordedRun
from trpo_brax.views.plots import COLOURS, save_figure
from trpo_brax.views.training_plots import OUTCOMES, outcome_shares, training_figure

CONFIG = override(Config(), task="hopper", max_kl=0.02)
NAN = float("nan")


def records(seed: int = 0, count: int = 4, **columns: Any) -> list[dict[str, Any]]:
    """Return records whose quantities are all different; the third step is refused."""
    generator = np.random.default_rng(seed)
    names = (
        "kl_mean",
        "max_kl",
        "surrogate_improvement",
        "surrogate_improvement_predicted",
        "entropy",
        "explained_variance",
    )
    return [
        {
            **{"seed": seed, "iteration": i, "env_steps": 1000 * i, "wall_time_s": 2.0 * i},
            **{name: float(generator.random()) for name in names},
            "steps_per_second": 500.0 + i,
            "step_outcome": "accepted" if i != 3 else "kl_exceeded",
            **columns,
        }
        for i in range(1, count + 1)
    ]


def panels(figure: Figure) -> dict[str, Axes]:
    return {panel.get_title(): panel for panel in figure.axes}


def lines(panel: Axes) -> list[tuple[str, str, float, list[list[float]]]]:
    """Return the (colour, style, alpha, points) of a panel's curves."""
    return [
        (
            to_hex(line.get_color()).upper(),
            line.get_linestyle(),
            line.get_alpha() or 1.0,
            np.array(line.get_xydata()).tolist(),
        )
        for line in panel.lines
        if line.get_xydata().size and line.get_transform() == panel.transData
    ]


def points(rows: list[dict[str, Any]], name: str, x: str = "env_steps") -> list[list[float]]:
    return [[row[x], row[name]] for row in rows]


def test_one_seed() -> None:
    rows = records()
    shown = panels(training_figure(RecordedRun("hopper, seed 0", CONFIG, rows[::-1])))
    assert len(shown) == 6
    ((colour, style, alpha, entropy),) = lines(shown["entropy of the policy"])
    assert (colour, style, alpha, entropy) == (COLOURS[0], "-", 1.0, points(rows, "entropy"))
    ((*_, speed),) = lines(shown["throughput"])
    assert speed == points(rows, "steps_per_second") and shown["throughput"].get_ylim()[0] == 0
    (*_, kl), (*_, limit) = lines(shown["mean KL of accepted steps"])
    np.testing.assert_array_equal(kl, [*points(rows, "kl_mean")[:2], [3000, NAN], [4000, rows[3]["kl_mean"]]])
    np.testing.assert_array_equal(limit, points(rows, "max_kl"))
    actual, predicted = lines(shown["improvement of the surrogate"])
    assert (actual[0], predicted[0], predicted[1]) == (COLOURS[0], COLOURS[1], ":")
    for drawn, name in ((actual, "surrogate_improvement"), (predicted, "surrogate_improvement_predicted")):
        np.testing.assert_array_equal(np.delete(drawn[-1], 2, 0), np.delete(points(rows, name), 2, 0))
    assert shown["entropy of the policy"].get_xlabel() == "control steps"
    assert all(panel.get_ylabel() for panel in shown.values())


def test_seeds_are_thin_and_their_median_is_thick() -> None:
    rows = [*records(0), *records(1), *records(2, 3)]
    figure = training_figure(RecordedRun("hopper", override(CONFIG, num_seeds=3), rows))
    *seeds, median = lines(panels(figure)["entropy of the policy"])
    assert [one[-1] for one in seeds] == [
        points(rows[:4], "entropy"),
        points(rows[4:8], "entropy"),
        points(rows[8:], "entropy"),
    ]
    assert all(one[2] < 0.5 for one in seeds) and median[2] == 1.0
    values = [[row["entropy"] for row in rows if row["iteration"] == i] for i in range(1, 5)]
    assert [len(one) for one in values] == [3, 3, 3, 2]
    assert median[-1] == [[1000.0 * i, np.median(one)] for i, one in enumerate(values, 1)]


def test_against_time_and_under_the_name_of_the_run() -> None:
    rows = records(0)
    figure = training_figure(RecordedRun("runs/a$b$", CONFIG, rows), "wall_time")
    ((*_, explained),) = lines(panels(figure)["variance explained by the critic"])
    assert explained == points(rows, "explained_variance", "wall_time_s")
    assert panels(figure)["throughput"].get_xlabel() == "wall-clock seconds"
    assert figure.get_suptitle() == r"runs/a\$b\$"


def test_step_outcomes_are_stacked_to_one() -> None:
    rows = [*records(0), *records(1, step_outcome="no_improvement")]
    shown = panels(training_figure(RecordedRun("hopper", override(CONFIG, num_seeds=2), rows)))["step outcomes"]
    drawn = {patch.get_label(): patch for patch in shown.patches if isinstance(patch, StepPatch)}
    assert {name: to_hex(patch.get_facecolor()) for name, patch in drawn.items()} == {
        name.replace("_", " "): OUTCOMES[name].lower() for name in ("accepted", "kl_exceeded", "no_improvement")
    }
    tops = {name: patch.get_data().values.tolist() for name, patch in drawn.items()}
    assert tops == {
        "accepted": [0.5, 0.5, 0, 0.5],
        "kl exceeded": [0.5, 0.5, 0.5, 0.5],
        "no improvement": [1, 1, 1, 1],
    }
    assert drawn["accepted"].get_data().edges.tolist() == [0, 1000, 2000, 3000, 4000]


@pytest.mark.parametrize("count", [1, 49, 50, 51, 100, 137, 1000])
def test_shares_are_counted_in_bins(count: int) -> None:
    """Against a count of every iteration in whatever bin its end lies in."""
    generator = np.random.default_rng(count)
    ends = 64.0 * np.arange(1, count + 1)
    seeds = [
        (ends, generator.choice(list(OUTCOMES), count)),
        (ends[: count // 2], generator.choice(list(OUTCOMES), count // 2)),
    ]
    edges, shares = outcome_shares(seeds)
    assert len(edges) - 1 <= 50 and edges[0] == 0 and edges[-1] == ends[-1] and (np.diff(edges) > 0).all()
    for index in range(len(edges) - 1):
        inside = [
            word
            for places, words in seeds
            for place, word in zip(places, words, strict=True)
            if edges[index] < place <= edges[index + 1]
        ]
        for outcome in OUTCOMES:
            assert shares[outcome][index] == pytest.approx(inside.count(outcome) / len(inside))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        records(count=1),
        records(count=1, step_outcome="zero_gradient"),
        [{"seed": 0, "iteration": 1, "env_steps": 64}],
        records(entropy=None, explained_variance=None, steps_per_second=None, step_outcome="nonsense $x^$"),
        records(entropy=1e300, explained_variance=-1e30, kl_mean=10**30),
    ],
    ids=["none", "one", "refused", "older", "nulls", "absurd"],
)
def test_little_to_draw_is_no_error(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    save_figure(training_figure(RecordedRun("t", CONFIG, rows)), tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as image:
        assert image.format == "PNG" and 780 <= image.width <= 820
    assert [path.name for path in tmp_path.iterdir()] == ["training.png"]


def test_a_long_run_is_a_modest_file(tmp_path: Path) -> None:
    rows = [row for seed in range(3) for row in records(seed, 700)]
    save_figure(training_figure(RecordedRun("t", override(CONFIG, num_seeds=3), rows)), tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size < 150_000
