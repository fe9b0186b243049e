"""What `state_codes.py` measured as a picture: how fine the codes are, and what that costs an update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fusedopt.cli.bench.picture import DPI, FLOOR, OTHERS, OURS
from state_code_candidates import CHOSEN, candidates

BESIDE = ("dynamic, nearest", "E5M3, nearest", "square, stochastic", "fourth power, stochastic", "E5M3, stochastic")
COLORS = dict(zip((*BESIDE, CHOSEN), (*OTHERS[: len(BESIDE)], OURS)))
MARKERS = dict(zip((*BESIDE, CHOSEN), "sD^vPo"))


def draw(path: Path, result: dict[str, Any]) -> None:
    """Draw both panels; the suffix says the format."""
    from matplotlib.figure import Figure  # an extra, so not needed by anybody who asks for no picture

    figure = Figure(figsize=(15, 5.2), layout="constrained")
    steps, errors = figure.subplots(1, 2, width_ratios=(2, 3))
    _steps(steps)
    _errors(errors, result)
    title = "Adam's states in a byte an element: the library's code is tapered, with stochastic rounding"
    figure.suptitle(title, fontweight="bold")
    about = "betas (0.9, 0.999), blocks of 128; error: |update - float32's| / |float32's|, after the last step"
    figure.supxlabel(about, fontsize=8, color=FLOOR)
    figure.savefig(path, dpi=DPI)


def _steps(axes: Any) -> None:
    """From one level of v to the next, over the level; roundings share a line."""
    for code in candidates():
        if code.name in (*BESIDE[:1], *BESIDE[2:], CHOSEN):
            levels = code.v.levels[1:] / code.v.levels[-1]
            label = code.name.rpartition(",")[0]
            axes.plot(levels[:-1], np.diff(levels) / levels[:-1], color=COLORS[code.name], label=label, linewidth=1.6)
    axes.set(xscale="log", yscale="log", xlim=(1e-10, 1), ylim=(3e-3, 1))
    axes.set(xlabel="v, as a share of its block's largest", ylabel="step to the next level, as a share of the level")
    _finish(axes)


def _errors(axes: Any, result: dict[str, Any]) -> None:
    """Of the update, on each kind of gradient."""
    last: dict[tuple[str, str], float] = {}
    for row in result["errors"]:
        if tuple(row["betas"]) == (0.9, 0.999):
            last[row["gradients"], row["code"]] = row["error"]  # rows are in the order of steps
    kinds = sorted({kind for kind, _ in last}, key=lambda kind: last[kind, CHOSEN])
    for name in (*BESIDE, CHOSEN):
        values = [last[kind, name] for kind in kinds]
        axes.plot(range(len(kinds)), values, MARKERS[name], color=COLORS[name], label=name, markersize=7)
    axes.set(yscale="log", ylabel="error of the update")
    axes.set_xticks(range(len(kinds)), kinds, rotation=35, ha="right")
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.grid(which="major", color="0.9", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
