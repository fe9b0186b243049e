"""A step beside all its peers: models' own tensors, and one tensor of several sizes: `python benchmarks/models.py`.

What `python -m fusedopt bench` measures, with fewer repeats for large models, as rows and as pictures in `results/cpu`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compare import rows_of
from fusedopt.cli.bench.machine import Cpu, Machine
from fusedopt.cli.bench.models import MODELS
from fusedopt.cli.bench.peers import WAYS, Way
from fusedopt.cli.bench.picture import draw
from fusedopt.cli.bench.row import Row, save
from fusedopt.cli.bench.work import Work, equal_pieces, slice_of
from record import RESULTS

NAMES = ("resnet-50", "gpt2", "vit-b", "moe", "gpt2-xl", "llama-3-8b")
SIZES, SIZED = (10**6, 10**7, 10**8), ("sgd", "adam")
# What else would say the same here: the automatic choice is numba, and the rule unfused is NumPy's whole arrays.
LEFT_OUT = {"fusedopt, numba", "the rule, unfused"}
# Tensors that a compiler takes about a minute for. XLA took 23 GB for the 10,053 of `moe`, and had not ended.
MOST_COMPILED = {"torch compile": 200, "optax jit": 1_000}
MOST_BYTES = 12.5e9  # that a comparison may take, some 230 M parameters: larger ones take ten minutes


def ways_for(work: Work) -> list[Way]:
    """Those that are measured with these tensors."""
    left_out = LEFT_OUT | {title for title, most in MOST_COMPILED.items() if len(work.shapes) > most}
    return [way for way in WAYS if way.title not in left_out]


def repeats_for(work: Work) -> int:
    """So many that one way takes some ten seconds at most."""
    if len(work.shapes) > 1_000:  # torch's for-loop takes seconds
        return 3
    return 9 if work.parameters < 3 * 10**7 else 5 if work.parameters < 10**8 else 3


def of_models(machine: Machine, names: Sequence[str], most_bytes: float) -> Iterator[Row]:
    """AdamW over each model, or over as many of its layers as fit."""
    for name in names:
        free = machine.free_bytes()
        work = slice_of(MODELS[name], None, int(min(most_bytes, most_bytes if free is None else free)))
        yield from told(rows_of(machine, work, "adamw", ways_for(work), repeats_for(work)))


def of_sizes(machine: Machine, sizes: Sequence[int]) -> Iterator[Row]:
    """SGD and Adam over one tensor of each size."""
    for optimizer in SIZED:
        for size in sizes:
            work = equal_pieces(size, 1)
            yield from told(rows_of(machine, work, optimizer, ways_for(work), repeats_for(work)))


def told(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, once their times are printed."""
    print(f"{rows[0].optimizer}, {rows[0].title}, {rows[0].parameters:,} parameters in {rows[0].tensors:,} tensors")
    for row in rows:
        print(f"    {row.peer:22} {1e3 * row.seconds:10.2f} ms {row.ratio:7.2f} x", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=NAMES, default=NAMES, metavar="NAME", help="default: all")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, metavar="N", help="default: 10^6, 10^7, 10^8")
    parser.add_argument("--most-bytes", type=float, default=MOST_BYTES, help="of a comparison (10e9)")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu", help="the folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine, start = Cpu(), time.monotonic()
    sections = {
        "models": of_models(machine, arguments.models, arguments.most_bytes),
        "sizes": of_sizes(machine, arguments.sizes),
    }
    for name, section in sections.items():
        rows: list[Row] = []
        for row in section:
            rows.append(row)
            save(arguments.out / f"{name}.json", rows)  # now: what is measured is not lost where a later one fails
        if rows:
            draw(arguments.out / f"{name}.png", rows)
    print(f"{time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
