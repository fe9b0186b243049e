"""What bounds a step of Adam in NumPy, arithmetic, memory or Python: `python benchmarks/cpu_limit.py`.

Each part is measured alone. The step's own calls on a block that stays in the cache are its arithmetic; a stream over
as many bytes is its memory; the same calls on blocks of one element are its Python.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import fusedopt
from compare import circumstances, write
from fusedopt.backends import numpy as backend
from fusedopt.backends.numpy import NumpyPlan
from fusedopt.backends.schedule import schedule
from fusedopt.backends.scratch import aligned_zeros
from fusedopt.backends.threads import on_all_threads
from fusedopt.cli.bench.machine import Cpu, Timer, nothing, wall_seconds
from fusedopt.cli.bench.measure import rounds
from fusedopt.cli.bench.peers_arrays import chosen
from fusedopt.cli.bench.work import equal_pieces
from growth import BYTES, stream_rate, threads
from record import RESULTS, figure_table
from timing import Figure, figure

KIBI = 1024
BLOCKS = tuple(n * KIBI for n in (8, 16, 32, 64, 128, 256))
FLOAT32 = (False, False, False)  # nothing is converted


class Block:
    """The calls of Adam's step on one block of `size` elements, again and again."""

    def __init__(self, size: int) -> None:
        parameter = fusedopt.Parameter(np.ones(1, np.float32))
        with chosen("numpy"):
            optimizer = fusedopt.Adam([parameter])
        parameter.grad = parameter.data
        optimizer.step()
        plan: Any = optimizer._plans[0]
        begun = plan._begin(1.0)[0]
        planned = schedule(begun.kind.traced, begun.conditions, FLOAT32, False)
        random = np.random.default_rng(0)
        arrays = [aligned_zeros(size, np.dtype(np.float32)) for _ in range(planned.memory + len(planned.scratch))]
        for array in arrays:
            array[...] = np.abs(random.standard_normal(size, np.float32))  # as the second moment is
        self._slots, self.calls = arrays + begun.values, planned.calls

    def step(self) -> None:
        for function, arguments in self.calls:
            function(*arguments(self._slots))

    def seconds(self) -> list[float]:
        """Of each call of a step."""
        clock = [time.perf_counter()]
        for function, arguments in self.calls:
            function(*arguments(self._slots))
            clock.append(time.perf_counter())
        return [end - start for start, end in itertools.pairwise(clock)]


def repeated(call: Callable[[], object], times: int) -> Timer:
    """A timing of so many calls."""
    return lambda: wall_seconds(call, nothing, times)


def passes(size: int, repeats: int) -> Iterator[Figure]:
    """Each call on a block in the cache, and all of them as often as `size` elements need."""
    block, tiny, blocks = Block(backend.BLOCK), Block(1), size / backend.BLOCK
    with np.errstate(all="ignore"):
        found = np.array([block.seconds() for _ in range(50 * repeats)]).T
    for number, ((function, _), times) in enumerate(zip(block.calls, found, strict=True), 1):
        title = f"pass {number}, {function.__name__}, in the cache"
        yield figure(title, "ns an element", (1e9 * times / backend.BLOCK).tolist())
    kinds = {
        "all passes, in the cache, one thread": repeated(block.step, 20),
        "all passes, in the cache, two threads": on_two_threads(20),
        "all passes, on blocks of one element, one thread": repeated(tiny.step, 500),
    }
    for name, times in rounds(kinds, repeats).items():
        yield figure(name, "ms", [1e3 * blocks * t for t in times])


def on_two_threads(times: int) -> Timer:
    """Time of a block, where two threads go through one each, so many times."""
    blocks = [Block(backend.BLOCK), Block(backend.BLOCK)]

    def both() -> None:
        waiting = iter(blocks)

        def work() -> None:
            for block in waiting:
                for _ in range(times):
                    block.step()

        on_all_threads(work, 2)

    return lambda: wall_seconds(both, nothing, 1) / (2 * times)


def steps(machine: Cpu, size: int, repeats: int) -> Iterator[Figure]:
    """The step, for each size of a block, on one thread and on two; and a stream over the bytes that it must move."""
    weights, gradients = ([array] for seed in (0, 1) for array in equal_pieces(size, 1).arrays(seed, 0.02))
    with chosen("numpy"):
        parameter = fusedopt.Parameter(np.array(weights[0]))
        optimizer = fusedopt.Adam([parameter])
    parameter.grad = gradients[0]
    timers = {
        (count, block): functools.partial(of_block, optimizer, machine, count, block)
        for count in (1, 2)
        for block in BLOCKS
    }
    found = rounds(timers, repeats)  # type: ignore[arg-type]  # its names may be anything
    for (count, block), times in found.items():
        title = f"step, blocks of {block // KIBI} Ki elements, {count} thread{'s' * (count > 1)}"
        yield figure(title, "ms", [1e3 * t for t in times])
    both = zip(found[1, backend.BLOCK], found[2, backend.BLOCK], strict=True)
    yield figure("two threads against one", "times as fast", [one / two for one, two in both])
    for count in (1, 2):
        with threads(count):
            rates = [stream_rate(machine, size) for _ in range(3)]
        title = f"stream over as many bytes, {count} thread{'s' * (count > 1)}"
        yield figure(title, "ms", [1e3 * BYTES * size / rate for rate in rates])


def of_block(optimizer: fusedopt.Adam, machine: Cpu, count: int, block: int) -> float:
    """A timing of the step on so many threads, with blocks of so many elements, the first such step apart."""
    changed = mock.patch.object(backend, "BLOCK", block)
    with threads(count), changed, mock.patch.object(NumpyPlan, "block", block):
        optimizer._forget_plans()
        optimizer.step()
        return machine.timer(optimizer.step)()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32 * 2**20, help="float32 parameters (32 Mi)")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each (9)")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu" / "limit.json", help="the result file")
    arguments = parser.parse_args()
    machine = Cpu()
    before = machine.condition()
    with threads(2):
        found = [*passes(arguments.size, arguments.repeats), *steps(machine, arguments.size, arguments.repeats)]
    about = {**circumstances(machine, arguments.size), "threads": 2}
    write(arguments.out, found, {**about, "condition_before": before, "condition_after": machine.condition()})
    print(figure_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
