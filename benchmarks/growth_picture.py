"""The curves of `growth.py` as a picture: a panel for each, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusedopt.cli.bench.picture import DPI, FLOOR, line

if TYPE_CHECKING:
    from growth import Point

ORDER = ("parameters", "tensors", "groups", "threads")
WIDTH, HEIGHT = 7.5, 4.8  # inches of a panel


def draw(path: Path, points: Sequence[Point]) -> None:
    """Draw what there is of the four curves; the suffix says the format."""
    from matplotlib.figure import Figure  # an extra, so not needed by anybody who asks for no picture

    shown = [[point for point in points if point.curve == name] for name in ORDER]
    panels = [panel for panel in shown if panel]
    lines = -(-len(panels) // 2)
    figure = Figure(figsize=(2 * WIDTH, HEIGHT * lines), layout="constrained")
    peers = list(dict.fromkeys(point.peer for point in points))
    for number, panel in enumerate(panels, 1):
        _curve(figure.add_subplot(lines, 2, number), panel, peers)
    first = points[0]
    figure.suptitle(f"How the cost of a step of Adam grows: {first.device}", fontweight="bold")
    about = f"fusedopt {first.version}, {first.date[:10]}; medians of at least {min(p.samples for p in points)} timings"
    floor = "dashed: a plain stream over the bytes that a step must move, at its speed far beyond the caches"
    figure.supxlabel(f"{about}\n{floor}; dotted: the host's part of fusedopt's", fontsize=8, color=FLOOR)
    figure.savefig(path, dpi=DPI)


def _curve(axes: Any, points: Sequence[Point], peers: Sequence[str]) -> None:
    """Time against what grows, a line for each way, with bars from quartile to quartile."""
    for peer in dict.fromkeys(point.peer for point in points):
        mine = sorted((point for point in points if point.peer == peer), key=lambda point: point.count)
        counts, times = [point.count for point in mine], [1e3 * point.seconds for point in mine]
        spread = (
            [1e3 * (point.seconds - point.seconds_low) for point in mine],
            [1e3 * (point.seconds_high - point.seconds) for point in mine],
        )
        look = line(peers.index(peer))
        axes.errorbar(counts, times, yerr=spread, label=peer, capsize=2, **look)
        if any(point.host_seconds for point in mine):
            hosts = [(point.count, 1e3 * point.host_seconds) for point in mine if point.host_seconds]
            axes.plot(*zip(*hosts), ":", color=look["color"], linewidth=1.5, label=f"{peer}, host")
    floor = sorted({(point.count, 1e3 * point.floor_seconds) for point in points})
    axes.plot(*zip(*floor), "--", color=FLOOR, linewidth=1.5, zorder=1, label="memory's floor")
    axes.set(xscale="log", yscale="log", xlabel=points[0].curve, ylabel="time of a step, ms", title=_title(points[0]))
    axes.grid(which="major", color="0.9", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _title(point: Point) -> str:
    """What stays as it is."""
    parts = {
        "parameters": f"{point.parameters:,} parameters",
        "tensors": f"{point.tensors:,} tensor" + "s" * (point.tensors > 1),
        "groups": f"{point.groups:,} group" + "s" * (point.groups > 1),
        "threads": f"{point.threads} threads",
    }
    return ", ".join(text for name, text in parts.items() if name != point.curve)
