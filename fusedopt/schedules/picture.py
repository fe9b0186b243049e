"""Schedules as a picture."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
DASHES = ("-", "--", ":", "-.")


def plot(
    schedules: Callable[[int], float] | Iterable[Callable[[int], float]] | Mapping[str, Callable[[int], float]],
    steps: int,
    path: str | Path | None = None,
) -> Any:
    """Draw schedules against the step.

    Args:
        schedules: One function of the step, a list of several, or a dict of several by the names that the picture shall
            have. (Values of one, step by step, are `Table(values)`.)
        steps: How many of them, from step 0.
        path: Where to write the picture; its suffix says the format.

    Returns:
        The matplotlib Figure.

    Raises:
        ImportError: matplotlib is not installed; pip install 'fusedopt[plot]'.
        TypeError: `schedules` holds something else; or `steps` is no whole number.
    """
    named = _by_name(schedules)
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral):
        raise TypeError(f"plot: steps must be a whole number, got {steps!r}.")
    try:
        from matplotlib.figure import Figure  # an extra
    except ImportError as error:
        raise ImportError(f"plot needs matplotlib ({error}); pip install 'fusedopt[plot]'.") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, schedule) in enumerate(named.items()):
        colour, dash = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
        values = [schedule(step) for step in range(steps)]
        axes.step(range(steps), values, where="post", label=name, color=colour, linestyle=dash)
    axes.set(xlabel="step", ylabel="value", ylim=(0, None))
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _by_name(schedules: Any) -> dict[str, Callable[[int], float]]:
    if isinstance(schedules, Mapping):
        named = dict(schedules)
    else:
        single = callable(schedules) or not isinstance(schedules, Iterable)
        named = {str(schedule): schedule for schedule in ([schedules] if single else schedules)}
    for schedule in named.values():
        if not callable(schedule) or isinstance(schedule, type):
            raise TypeError(
                f"plot: schedules must be a function of the step, as Cosine(1e-3, 100), or a list or dict of several, "
                f"got {schedule!r}; a list of values is one as Table(values)."
            )
    return named
