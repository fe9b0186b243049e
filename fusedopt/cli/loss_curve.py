"""A loss curve in the terminal's own characters, and as a picture where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# A braille character is a grid of 2 x 4 dots; these are their bits, row by row from the top.
BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def text_curve(
    steps: Sequence[int], losses: Sequence[float], width: int = 64, height: int = 8, ascii_only: bool = False
) -> str:
    """The curve in `height` lines of `width` braille characters (or `*`), axes and their labels beside it."""
    columns = np.linspace(steps[0], steps[-1], 2 * width)
    values = np.interp(columns, steps, losses)
    low, high = float(values.min()), float(values.max())
    rows = np.rint((high - values) / ((high - low) or 1.0) * (4 * height - 1)).astype(int)

    cells = np.zeros((height, width), int)
    for column, row in enumerate(rows):
        before = rows[max(column - 1, 0)]
        for y in range(min(row, before + 1), max(row, before - 1) + 1):  # down to its neighbour: no gaps when steep
            cells[y // 4, column // 2] |= DOTS[y % 4][column % 2]

    def drawn(line: np.ndarray[tuple[int], np.dtype[np.int64]]) -> str:
        return "".join(" " if not cell else "*" if ascii_only else chr(BRAILLE + cell) for cell in line).rstrip()

    bar, corner, dash = ("|", "+", "-") if ascii_only else ("│", "└", "─")
    labels = {0: f"{high:.2f}", height - 1: f"{low:.2f}"}
    lines = [f"{labels.get(index, ''):>6} {bar}{drawn(line)}" for index, line in enumerate(cells)]
    lines.append(f"{'':>6} {corner}{dash * width}")
    lines.append(f"{'':>8}{steps[0]}{f'step {steps[-1]}':>{width - len(str(steps[0]))}}")
    return "\n".join(lines)


def save_picture(path: Path, steps: Sequence[int], losses: Sequence[float], uniform: float) -> None:
    """Write the curve to `path`, in the format that its ending names (`.png`, `.svg`, `.pdf`)."""
    from matplotlib.figure import Figure  # an extra, so not needed by anybody who asks for no picture

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, label="held-out text")
    axes.axhline(uniform, color="gray", linestyle="--", linewidth=1, label="uniform guess")
    axes.set(xlabel="step", ylabel="loss (nats a character)", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
