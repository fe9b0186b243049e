"""Schedules as a picture."""

from __future__ import annotations

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
        schedules: One function of the step, several, or several by the name that the picture shall have.
        steps: How many of them.
        path: Where to write the picture; its suffix says the format.

    Returns:
        The matplotlib Figure.

    Raises:
        ImportError: matplotlib is not installed; pip install 'fusedopt[plot]'.
    """
    try:
        from matplotlib.figure import Figure  # an extra
    except ImportError as error:
        raise ImportError(f"plot needs matplotlib ({error}); pip install 'fusedopt[plot]'.") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for place, (name, schedule) in enumerate(_by_name(schedules).items()):
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
        return dict(schedules)
    some = [schedules] if callable(schedules) else list(schedules)
    return {str(schedule): schedule for schedule in some}
