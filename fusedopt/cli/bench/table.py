"""The figures of `bench` in the terminal."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fusedopt.cli.bench.row import Row
from fusedopt.cli.side_by_side import TOGETHER
from fusedopt.storage import ITEMSIZE

NONE = "-"  # not defined here
UNKNOWN = "?"
BUSY = 0.5  # load of a thread's core by others
WIDEST = 200  # columns


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str], None]]:
    """Says on stderr what is being measured, where that is a terminal; nothing moves while it is measured."""
    shown = sys.stderr.isatty()

    def say(what: str) -> None:
        if shown:
            print(f"\r\033[K{title}: {what} ...", end="", file=sys.stderr, flush=True)

    try:
        yield say
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def show(console: Console, rows: Sequence[Row], absent: Mapping[str, str]) -> None:
    """Print the rows of one task, and a line for each peer that is not here."""
    first = rows[0]
    others = " but for the storages" if any(row.dtype != first.dtype for row in rows) else ""
    console.print(Text(f"{task_title(first)}{others}; {device_title(first)}", "bold"), soft_wrap=True)
    table = Table(box=SIMPLE, collapse_padding=True)
    table.add_column(no_wrap=True)
    columns = {heading: [cell(row) for row in rows] for heading, cell in COLUMNS.items()}
    shown = {heading: cells for heading, cells in columns.items() if set(cells) != {NONE}}
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        name = Text(row.peer, "bold" if row is first else "")
        table.add_row(name, *(cells[number] for cells in shown.values()))
    # Never narrower than its figures: a terminal wraps the lines of a wide one, where rich would cut numbers.
    width = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    usual, console.width = console.width, max(console.width, width)
    console.print(table)
    console.width = usual
    console.print(_streams(first), soft_wrap=True)
    for peer, why in absent.items():
        console.print(Text(f"{peer}: {why}"), soft_wrap=True)
    console.print()


COLUMNS: dict[str, Callable[[Row], str]] = {
    "ms": lambda row: three_digits(row.seconds * 1e3),
    "±": lambda row: f"{(row.seconds_high - row.seconds_low) / 2 / row.seconds:.0%}",
    "ratio": lambda row: three_digits(row.ratio),
    "GB/s": lambda row: three_digits(row.bytes_per_second / 1e9),
    "of\nstream": lambda row: f"{row.share_of_stream:.0%}",
    "of\ncopy": lambda row: f"{row.share_of_copy:.0%}",
    "graph\nms": lambda row: NONE if row.graph_seconds is None else three_digits(row.graph_seconds * 1e3),
    "host\nµs": lambda row: NONE if row.host_seconds is None else three_digits(row.host_seconds * 1e6),
    "moved\nB": lambda row: NONE if row.dtype == "float32" else f"{row.bytes_a_step / row.parameters:.4g}",
    "extra\nMB": lambda row: UNKNOWN if row.extra_bytes is None else f"{row.extra_bytes / 1e6:,.1f}",
    "beside\nB": lambda row: f"{row.kept_bytes_a_parameter - 2 * ITEMSIZE[row.dtype]:.1f}",
}


def launches(rows: Sequence[Row]) -> str:
    """Kernels of a step, a line for each task."""
    tasks: dict[str, list[str]] = {}
    for row in rows:
        count = UNKNOWN if row.launches is None else f"{row.launches:,}"
        tasks.setdefault(task_title(row), []).append(f"{row.peer} {count}")
    return "\n".join(["Kernels of a step:", *(f"  {title}: {', '.join(counts)}" for title, counts in tasks.items())])


def task_title(row: Row) -> str:
    """What is stepped, and by which optimizer."""
    many = f": {row.parameters:,} parameters in {row.tensors:,} tensors" if row.model else ""
    return f"{row.optimizer}, {row.title}{many}, {row.dtype}"


def device_title(row: Row) -> str:
    """What it is stepped on."""
    return f"{row.threads} threads of {row.device}, fusedopt by {row.backend}" if _on_cpu(row) else row.device


def _on_cpu(row: Row) -> bool:
    return row.host_seconds is None


def _streams(row: Row) -> str:
    return (
        f"GB/s: of the {row.bytes_a_step // row.parameters} bytes a parameter that a step must move; stream"
        f" {three_digits(row.stream_bytes_per_second / 1e9)}: {row.stream}; copy"
        f" {three_digits(row.copy_bytes_per_second / 1e9)}. Caches {row.cache}. Before: {row.condition_before}; after:"
        f" {row.condition_after}."
    )


def warning(row: Row) -> str | None:
    """Where the machine had other work, that this is no measurement."""
    found = re.match(r"load ([\d.]+)", row.condition_before)
    if not _on_cpu(row) or found is None or float(found[1]) < BUSY * row.threads:
        return None
    return (
        f"This machine was busy before (load {found[1]}): libraries whose threads wait for each other, as torch's do,"
        " lose most by that. Measure again when it is quiet."
    )


def method(rows: Sequence[Row]) -> str:
    """How to read the tables."""
    compared = [row for row in rows if row.difference is not None]
    worst = max(compared, key=lambda row: (row.difference or 0.0) / row.allowed_difference)
    stored = any(row.dtype != rows[0].dtype for row in rows)
    moved = " Moved: what a step with that storage must move, which its GB/s are of." if stored else ""
    gpu = "" if _on_cpu(rows[0]) else " Graph: a step in a CUDA graph. Host: until step() returns."
    return (
        f"fusedopt and one peer at a time, {TOGETHER} steps of warm-up, then rounds in which each of them and the"
        f" streams are timed in turn: medians, ± half the span of the middle half. Ratio: the peer's time over"
        f" fusedopt's in the same round; the first row's ms are over all rounds, so a ratio need not be that of two ms."
        f" A copy stores to what it has not read, which costs a CPU more, so shares of it can pass 100 %. Gradients"
        f" stay where they are between the steps. Extra: the most memory that a step takes beyond what is kept;"
        f" beside: bytes kept beside a parameter and its gradient: states, and arrays for what lies between."
        f"{moved}"
        f"{gpu} Parameters differ from fusedopt's by {worst.difference:.1e} at most, allowed is"
        f" {worst.allowed_difference:.1e}."
    )


def three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"
