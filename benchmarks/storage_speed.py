"""A step of Adam with each storage beside float32 in NumPy, on the CPU: `python benchmarks/storage_speed.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compare import WAY, backends, circumstances, rows_of, write
from fusedopt.cli.bench.machine import Cpu, Machine
from fusedopt.cli.bench.peers import stored_way
from fusedopt.cli.bench.row import Row
from fusedopt.cli.bench.work import equal_pieces
from fusedopt.storage_choices import CHOICES
from record import RESULTS, figure_table
from timing import Figure

# The least share of the speed of float32 in NumPy, and the most memory of a step as a share of what is kept.
SPEED_BARS = {"master": 0.5, "split": 0.5, "split+bfloat16": 0.5, "split+int8": 0.2, "split24+int8": 0.2}
EXTRA_BAR = 0.01
FLOAT32 = {"numpy": "fusedopt, NumPy", "numba": "fusedopt, numba"}
Bar = float | None


def measured(machine: Machine, size: int, repeats: int, names: Sequence[str]) -> Iterator[Figure]:
    """Each storage with each backend against float32 in NumPy; numba's against float32 in numba too.

    Raises:
        RuntimeError: A storage cannot step.
    """
    work = equal_pieces(size, 1)
    for backend in backends():
        ways = [stored_way(CHOICES[name], backend) for name in names]
        for other in dict.fromkeys(("numpy", backend)):
            _, *others = rows_of(machine, work, "adam", [WAY[FLOAT32[other]], *ways], repeats)
            if len(others) < len(ways):
                raise RuntimeError(f"{backend}: some storages cannot step, which is said above.")
            for name, row in zip(names, others, strict=True):
                yield against(row, f"{name}, {backend} against {FLOAT32[other]}", SPEED_BARS.get(name), other)
                if other == backend:
                    yield Figure(f"{name}, {backend}", *_milliseconds(row))
                    yield extra(row, f"{name}, {backend}: extra memory of a step")


def _milliseconds(row: Row) -> tuple[float, str, float, float, int]:
    return 1e3 * row.seconds, "ms", 1e3 * row.seconds_low, 1e3 * row.seconds_high, row.samples


def against(row: Row, name: str, bar: Bar, other: str) -> Figure:
    """How many times as fast as float32 a storage is; the bar is that of float32 in NumPy."""
    low, high = 1 / row.ratio_high, 1 / row.ratio_low
    at_least = bar if other == "numpy" else None
    return Figure(name, 1 / row.ratio, "times as fast", low, high, row.samples, at_least=at_least)


def extra(row: Row, name: str) -> Figure:
    """The most memory that a step takes, as a share of what is kept."""
    share = (row.extra_bytes or 0) / (row.kept_bytes_a_parameter * row.parameters)
    return Figure(name, share, "of what is kept", share, share, 1, at_most=EXTRA_BAR)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32 * 2**20, help="parameters in one tensor (default: 32 Mi)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each (default: 7)")
    parser.add_argument("--storage", nargs="+", choices=CHOICES, default=[*CHOICES], help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu" / "storages.json", help="the result file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    arguments = parser.parse_args(words)
    machine = Cpu()
    before = machine.condition()
    figures = list(measured(machine, arguments.size, arguments.repeats, arguments.storage))
    about = circumstances(machine, arguments.size)
    write(arguments.out, figures, {**about, "condition_before": before, "condition_after": machine.condition()})
    print(figure_table(figures))
    missed = [found for found in figures if found.met is False]
    print(f"\n{len(missed)} bars are missed." if missed else "\nAll bars are met.")
    return 1 if missed and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
