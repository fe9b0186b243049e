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
    return with_spread(list(losses(found, recipe, FLOAT32).values()), ".3f")


def cell(found: Results, recipe: Recipe, choice: Choice) -> str:
    """The distance from float32's loss in percent, mean and standard deviation; bold beyond what is allowed."""
    percent = apart(found, recipe, choice)
    if not percent:
        return ""
    text = with_spread(percent, "+.2f")
    return f"**{text}**" if statistics.mean(percent) > ALLOWED else text


def with_spread(values: Sequence[float], form: str) -> str:
    """Their mean, and their standard deviation where there are several."""
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form.lstrip('+'))}" if len(values) > 1 else mean


def masters(found: Results) -> str:
    """A row for each comparison of masters."""
    lines = [
        "| the same gradients for all | weights, over all steps | float32 master unequal | split master unequal |"
        " other bfloat16 seen | split24: furthest |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found["masters"]:
        cells = (
            f"{one['task']}, {one['optimizer']}, {one['steps']:,} steps",
            f"{one['elements']:,}",
            *(f"{count:,}" for count in one["unequal"].values()),
            f"{one['unequal_seen']:,} (one in {one['elements'] // max(1, one['unequal_seen']):,})",
            f"{one['split24_distance']:.1e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def moments(found: Results) -> str:
    """A row for each way of keeping a second moment."""
    lines = ["| second moment | its root, float32's being 1 |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {times:.2f} |" for name, times in found["moments"].items())])


def about(found: Results) -> str:
    """Where and when."""
    runs, made = found["runs"].values(), found["about"]
    seeds, minutes = len({run["seed"] for run in runs}), sum(run["seconds"] for run in runs) / 60
    return (
        f"{len(runs)} trainings, {seeds} seed{'s' * (seeds > 1)}, {minutes:.0f} minutes of one core in all"
        f" ({made['cpu']}, {made['date'][:10]})."
    )


def page_with_tables(found: Results) -> str:
    """The page with its sections as the results have them."""
    text = replaced(PAGE.read_text(), "losses", f"{table(found, RECIPES)}\n\n{about(found)}")
    text = replaced(text, "moments", moments(found))
    return replaced(text, "masters", masters(found))
