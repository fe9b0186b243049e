"""What docs/low_precision.md says of the study of quality, written from its results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from quality_runs import FLOAT32, RECIPES, Choice, Recipe
from record import ROOT
from tables import replaced

PAGE = ROOT / "docs" / "low_precision.md"
ALLOWED = 1.0  # percent of the float32 loss, the mean over the seeds

Results = Mapping[str, Any]  # as the result file has them


def losses(found: Results, recipe: Recipe, choice: Choice) -> dict[int, float]:
    """The last loss of each seed."""
    runs = found["runs"].values()
    return {
        run["seed"]: run["losses"][-1]
        for run in runs
        if (run["task"], run["optimizer"], run["choice"]) == (recipe.task, recipe.optimizer, choice.title)
    }


def apart(found: Results, recipe: Recipe, choice: Choice) -> list[float]:
    """How much larger than float32's the loss of each seed is, in percent of it."""
    reference, ours = losses(found, recipe, FLOAT32), losses(found, recipe, choice)
    return [100 * (ours[seed] / reference[seed] - 1) for seed in sorted(ours.keys() & reference.keys())]


def missed(found: Results) -> list[str]:
    """What was promised and is not so."""
    return [
        f"{recipe.title}: {choice.title} is {statistics.mean(percent):+.2f} % from float32"
        for recipe in RECIPES
        for choice in recipe.choices
        if choice.promised and (percent := apart(found, recipe, choice)) and statistics.mean(percent) > ALLOWED
    ]


def table(found: Results, recipes: Sequence[Recipe]) -> str:
    """A row for each choice, a column for each training: the distance from float32's loss."""
    shown = [recipe for recipe in recipes if losses(found, recipe, FLOAT32)]
    lines = [
        "| weights, states | " + " | ".join(recipe.title for recipe in shown) + " |",
        "| --- |" + " ---: |" * len(shown),
        "| float32: the loss | " + " | ".join(spread(found, recipe) for recipe in shown) + " |",
    ]
    for choice in dict.fromkeys(choice.title for recipe in recipes for choice in recipe.choices):
        if choice != FLOAT32.title:
            cells = [next((cell(found, r, c) for c in r.choices if c.title == choice), "") for r in shown]
            lines.append(f"| {choice} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(found: Results, recipe: Recipe) -> str:
    """The reference's loss: mean and standard deviation over the seeds."""
    values = list(losses(found, recipe, FLOAT32).values())
    return f"{statistics.mean(values):.3f} ± {deviation(values):.3f}"


def cell(found: Results, recipe: Recipe, choice: Choice) -> str:
    """The distance from float32's loss in percent, mean and standard deviation; bold beyond what is allowed."""
    percent = apart(found, recipe, choice)
    if not percent:
        return ""
    text = f"{statistics.mean(percent):+.2f} ± {deviation(percent):.2f}"
    return f"**{text}**" if statistics.mean(percent) > ALLOWED else text


def deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def masters(found: Results) -> str:
    """What the comparison of masters has found, in sentences."""
    return "\n".join(map(_sentences, found["masters"]))


def _sentences(one: Mapping[str, Any]) -> str:
    each = one["elements"] // max(1, one["unequal_seen"])
    return (
        f"{one['task'].capitalize()}, {one['optimizer']}, {one['steps']:,} steps, the same gradients for all: of"
        f" {one['elements']:,} weights, {one['unequal']['float32']:,} of the float32 master and"
        f" {one['unequal']['split']:,} of the split one are not to the bit what float32 weights are.\n"
        f"The bfloat16 that the model sees is another one in {one['unequal_seen']:,}, one of {each:,}: these lie in the"
        f" middle of two, from where one master is rounded to even and the other away from zero.\n"
        f"A weight of the 24-bit master is {one['split24_distance']:.1e} of the largest one away at the end, at most."
    )


def moments(found: Results) -> str:
    """A row for each way of keeping a second moment."""
    lines = ["| second moment | its root, float32's being 1 |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {times:.2f} |" for name, times in found["moments"].items())])


def about(found: Results) -> str:
    """Where and when."""
    runs, made = found["runs"].values(), found["about"]
    minutes = sum(run["seconds"] for run in runs) / 60
    return f"{len(runs)} trainings, {minutes:.0f} minutes of one core in all ({made['cpu']}, {made['date'][:10]})."


def page_with_tables(found: Results) -> str:
    """The page with its sections as the results have them."""
    text = replaced(PAGE.read_text(), "losses", f"{table(found, RECIPES)}\n\n{about(found)}")
    text = replaced(text, "moments", moments(found))
    return replaced(text, "masters", masters(found))
