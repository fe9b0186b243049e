"""The pictures of the study of quality: curves of the loss, and how far each choice ends from float32."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from fusedopt.cli.bench.picture import DPI, FLOOR, OTHERS, OURS
from quality_page import ALLOWED, apart
from quality_runs import FLOAT32, PLAIN, RANDOM_INT8, RECIPES, SPLIT, SPLIT24_INT8, Choice, Recipe
from record import ROOT

IMAGES = ROOT / "docs" / "images"
COLUMNS = 3  # of panels with curves
# Of the curves: few enough to be told apart. The others lie on float32's.
LOOKS: dict[str, dict[str, Any]] = {
    FLOAT32.title: {"color": "black", "linewidth": 4, "alpha": 0.3},
    PLAIN.title: {"color": OURS, "linewidth": 1.8},
    SPLIT.title: {"color": OTHERS[0], "linewidth": 1.4, "linestyle": "--"},
    SPLIT24_INT8.title: {"color": OTHERS[1], "linewidth": 1.4, "linestyle": "-."},
    RANDOM_INT8.title: {"color": OTHERS[3], "linewidth": 1.4, "linestyle": ":"},
}

Results = Mapping[str, Any]


def draw(found: Results) -> None:
    """Both, in the folder of the docs' images."""
    IMAGES.mkdir(exist_ok=True)
    shown = [recipe for recipe in RECIPES if mean_curve(found, recipe, FLOAT32)]
    _curves(found, shown)
    _distances(found, shown)


def mean_curve(found: Results, recipe: Recipe, choice: Choice) -> list[tuple[int, float]]:
    """Step and loss, the mean over the seeds."""
    name = recipe.task, recipe.optimizer, choice.title
    runs = [run for run in found["runs"].values() if (run["task"], run["optimizer"], run["choice"]) == name]
    return list(zip(runs[0]["steps"], map(statistics.mean, zip(*(run["losses"] for run in runs))))) if runs else []


def _curves(found: Results, recipes: list[Recipe]) -> None:
    """Loss against step, from where it has left its first fall: a panel for each training, and one for the names."""
    from matplotlib.figure import Figure  # an extra, so not needed by anybody who asks for no picture

    lines = -(-(len(recipes) + 1) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.6 * lines), layout="constrained")
    panels = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    for axes, recipe in zip(panels, recipes):
        for choice in recipe.choices:
            if choice.title in LOOKS:
                curve = mean_curve(found, recipe, choice)
                axes.plot(*zip(*curve[len(curve) // 5 :]), label=choice.title, **LOOKS[choice.title])
        axes.set(yscale="log", title=recipe.title, xlabel="step")
        axes.grid(which="major", color="0.92", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        _plain_numbers(axes)
    for axes in panels[len(recipes) :]:
        axes.axis("off")
    panels[len(recipes)].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False, handlelength=4)
    figure.supylabel("held-out loss, mean of the seeds", fontsize=10)
    figure.savefig(IMAGES / "quality_curves.png", dpi=DPI)


def _plain_numbers(axes: Any) -> None:
    """Ticks as 2.5: a panel spans less than a decade."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _distances(found: Results, recipes: list[Recipe]) -> None:
    """A point for each seed: how far its loss ends from float32's; linear up to what is allowed, then logarithmic."""
    from matplotlib.figure import Figure

    titles = list(dict.fromkeys(c.title for recipe in recipes for c in recipe.choices if c.title != FLOAT32.title))
    figure = Figure(figsize=(2.6 + 2.3 * len(recipes), 1.3 + 0.32 * len(titles)), layout="constrained")
    panels = list(figure.subplots(1, len(recipes), squeeze=False, sharey=True, sharex=True)[0])
    for axes, recipe in zip(panels, recipes):
        axes.axvspan(-ALLOWED, ALLOWED, color="0.93", zorder=0)
        axes.axvline(0, color=FLOOR, linewidth=0.8)
        for choice in recipe.choices:
            percent = apart(found, recipe, choice)
            if choice.title in titles and percent:
                place, color = titles.index(choice.title), OTHERS[0] if choice.promised else OURS
                axes.plot(percent, [place] * len(percent), "o", color=color, markersize=4, alpha=0.6)
                axes.plot(statistics.mean(percent), place, "|", color=color, markersize=16, markeredgewidth=2.5)
        axes.set_xscale("symlog", linthresh=ALLOWED)
        axes.set(title=recipe.title, yticks=range(len(titles)), yticklabels=titles)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.supxlabel("percent above the held-out loss of float32: seeds, and their mean; grey: 1 %", fontsize=9)
    figure.savefig(IMAGES / "quality_losses.png", dpi=DPI)
