"""The figures of `bench` as a picture: time against size where there are several sizes, else a bar for each way."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fusedopt.cli.bench.row import Row
from fusedopt.cli.bench.table import device_title, task_title, three_digits

# Okabe and Ito's palette, which colour-blind readers can tell apart; vermilion is fusedopt's alone.
OURS = "#D55E00"
OTHERS = ("#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#E69F00", "#000000", "#7F7F7F")
MARKERS = "sD^vP*X<>hp8"
BAR, FLOOR = "#A6B8C7", "#444444"
NOTE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
DPI = 150
TITLE = 70  # characters of a line


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Draw a panel for each optimizer and model, or for each optimizer with all sizes; the suffix says the format."""
    from matplotlib.figure import Figure  # an extra, so not needed by anybody who asks for no picture

    panels = list(_panels(rows))
    widest = 2 if len(panels) > 1 else 1
    lines = -(-len(panels) // widest)
    heights = [max(3.2, 0.32 * len({row.peer for row in panel}) + 1.6) for panel in panels]
    figure = Figure(figsize=(8.5 * widest, max(4.8, max(heights)) * lines), layout="constrained")
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(lines, widest, number)
        (_roofline if len({row.parameters for row in panel}) > 1 else _bars)(axes, panel)
    first = rows[0]
    figure.suptitle(f"Time of an optimizer step: {device_title(first)}", fontweight="bold")
    samples = min(row.samples for row in rows)
    about = f"fusedopt {first.version}, {first.date[:10]}; medians of at least {samples} timings"
    floor = f"caches {first.cache}; dashed: plain streams over the bytes that a step must move"
    figure.supxlabel(f"{about}\n{floor}", fontsize=8, color=FLOOR)
    figure.savefig(path, dpi=DPI)


def _panels(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that belong together: of one optimizer, and of one model or of all sizes."""
    order = sorted(rows, key=lambda row: (row.optimizer, row.title if row.model else ""))  # stable
    for _, panel in groupby(order, key=lambda row: (row.optimizer, row.title if row.model else "")):
        yield list(panel)


def _roofline(axes: Any, rows: Sequence[Row]) -> None:
    """Time against parameters, both logarithmic, over the time of the same bytes at the streams' best speed."""
    largest = max(row.parameters for row in rows)
    peers = list(dict.fromkeys(row.peer for row in rows))
    slowest_first = sorted(rows, key=lambda row: (row.parameters != largest, -row.seconds))
    for peer in dict.fromkeys(row.peer for row in slowest_first):  # the legend lists them as they lie
        points = sorted((row.parameters, 1e3 * row.seconds) for row in rows if row.peer == peer)
        axes.plot(*zip(*points), label=peer, **line(peers.index(peer)))
    sizes = sorted({row.parameters for row in rows})
    each = rows[0].bytes_a_step / rows[0].parameters
    for name, style, rate in (
        ("copy", ":", max(row.copy_bytes_per_second for row in rows)),
        ("stream", "--", max(row.stream_bytes_per_second for row in rows)),
    ):
        label = f"its bytes at {three_digits(rate / 1e9)} GB/s ({name})"
        axes.plot(sizes, [1e3 * each * size / rate for size in sizes], style, color=FLOOR, label=label, zorder=1)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="time of a step, ms")
    axes.set_title(f"{rows[0].optimizer}, {rows[0].dtype}")
    axes.grid(which="both", color="0.9", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def line(number: int) -> dict[str, Any]:
    """How the line of a way looks; fusedopt's is the first, and above the others."""
    if number == 0:
        return {"color": OURS, "marker": "o", "linewidth": 3.5, "markersize": 8, "zorder": 5}
    look = OTHERS[(number - 1) % len(OTHERS)], MARKERS[(number - 1) % len(MARKERS)]
    return {"color": look[0], "marker": look[1], "linewidth": 1.3, "markersize": 5}


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    """A bar for each way, the fastest on top: its time over fusedopt's, of timings that were taken side by side."""
    order = sorted(rows, key=lambda row: -row.ratio)
    ours = rows[0]
    ratios = [row.ratio for row in order]
    spread = [row.ratio - row.ratio_low for row in order], [row.ratio_high - row.ratio for row in order]
    colours = [OURS if row is ours else BAR for row in order]
    bars = axes.barh([row.peer for row in order], ratios, xerr=spread, color=colours, ecolor=FLOOR, capsize=2)
    notes = [f"{three_digits(row.ratio)} x, {three_digits(1e3 * row.seconds)} ms" for row in order]
    axes.bar_label(bars, notes, padding=6, fontsize=8, bbox=NOTE)
    axes.axvline(ours.share_of_stream, linestyle="--", color=FLOOR, linewidth=1.5)
    axes.set(
        xlabel="time of a step over fusedopt's",
        title=textwrap.fill(task_title(ours), TITLE),
        xlim=(0, 1.3 * max(row.ratio_high for row in rows)),
    )
    for label in axes.get_yticklabels():
        if label.get_text() == ours.peer:
            label.set(color=OURS, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
