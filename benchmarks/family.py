"""Each rule beside torch's for-loop class of its name: `python benchmarks/family.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compare import WAY, circumstances, ratios, rows_of, write
from fusedopt.cli.bench.machine import Cpu, Machine
from fusedopt.cli.bench.work import equal_pieces
from fusedopt.optimizers import RULES
from record import RESULTS, figure_table
from timing import Figure

LOOP, BAR = "torch for-loop", 2.0  # times as fast as that
BACKENDS = ("fusedopt, numba", "fusedopt, NumPy")


def measured(machine: Machine, size: int, repeats: int) -> Iterator[Figure]:
    """One tensor, with each backend and each rule that torch has; a rule with sums is measured for information."""
    for name, rule in RULES.items():
        optimizer = name.lower()
        if WAY[LOOP].missing(optimizer, "cpu"):
            continue
        bars = {} if getattr(rule, "reductions", ()) else {LOOP: BAR}
        for ours in BACKENDS:
            if why := WAY[ours].missing(optimizer, "cpu"):
                print(f"{ours}: {why}", file=sys.stderr)
                continue
            found = rows_of(machine, equal_pieces(size, 1), optimizer, [WAY[ours], WAY[LOOP]], repeats)
            yield from ratios(found, f"{name}: {ours}", bars)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=8 * 2**20, help="float32 parameters (default: 8 Mi)")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each (default: 7)")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu" / "family.json", help="the result file")
    arguments = parser.parse_args(words)
    machine = Cpu()
    before = machine.condition()
    figures = list(measured(machine, arguments.size, arguments.repeats))
    about = circumstances(machine, arguments.size)
    write(arguments.out, figures, {**about, "condition_before": before, "condition_after": machine.condition()})
    print(figure_table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
