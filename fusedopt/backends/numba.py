"""The CPU, compiled: numba makes one loop of a traced rule, and a step hands it a table of where the arrays are.

The loop does NumPy's operations in NumPy's order, one rounding each, so its bits are those of `backends.numpy`. All
values in between stay in registers: each array goes through memory once, whatever the size of the caches.
"""

from __future__ import annotations

import functools
import itertools
import platform
from collections.abc import Callable, Sequence

import numba
import numpy as np
from llvmlite import binding

from fusedopt.backends.cpu import CpuPlan
from fusedopt.backends.jobs import Array, Begun
from fusedopt.backends.numba_loop import COUNTS, LoopText
from fusedopt.backends.schedule import straightened
from fusedopt.backends.threads import on_all_threads
from fusedopt.layout import Span
from fusedopt.storage import Storage
from fusedopt.tracing import Traced

# Elements of a row of the table, and about as many of a task: some 40 us, so that threads end together and a task's
# microsecond of Python is little.
PIECE = 64 * 1024

# Tasks that one thread does alone, since another takes long to wake: after a pause, on a virtual machine, 300,000
# parameters took one thread 0.32 ms and two 0.50, a million 0.70 and 0.62.
ALONE = 7

COUNT, START, LENGTH, STEP, NUMBER, SEED = range(len(COUNTS))  # columns of the table

Loop = Callable[[Array, Array, int, int], None]


def processor_problem() -> str | None:
    """Why numba's code cannot convert float16 on this processor; None if it can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    features = numba.config.CPU_FEATURES  # type: ignore[attr-defined]  # numba makes its settings' names at run time
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    # LLVM would call functions of compiler-rt, which are not there: the process would end.
    return None if "+f16c" in features else "numba needs a processor with F16C, or NUMBA_CPU_NAME to be unset."


@functools.cache
def compiled(
    traced: Traced, conditions: tuple[bool, ...], storage: Storage, write_back: bool
) -> tuple[Loop, list[int]]:
    """The loop for one choice of uniform conditions and storage, which takes numba some tenths of a second."""
    loop_text = LoopText(straightened(traced, conditions, (), write_back), storage)
    names = loop_text.names()
    exec(compile(loop_text.text(), f"<{traced.title}, {storage.title}>", "exec"), names)
    signature = f"void(int64[:, ::1], {storage.real}[::1], int64, int64)"
    loop: Loop = numba.njit(signature, nogil=True, error_model="numpy")(names["loop"])
    return loop, loop_text.uniform


class NumbaPlan(CpuPlan):
    """Spans of NumPy arrays, updated by compiled loops over a table of addresses."""

    name, block = "numba", PIECE

    def __init__(self, spans: Sequence[Span], threads: Callable[[], int]) -> None:
        super().__init__(spans, threads)
        slots = max((len(job.memory) + len(job.rows) for job in self.jobs), default=2)
        pieces = np.array(self.pieces, np.int64).reshape(-1, 3)
        self._owners, first, last = pieces.T
        addresses, itemsizes, units = np.zeros((3, len(spans), slots), np.int64)
        units[:] = 1
        for number, job in enumerate(self.jobs):
            some = slice(len(job.memory))
            addresses[number, some] = [array.__array_interface__["data"][0] for array in job.memory]
            itemsizes[number, some] = [array.itemsize for array in job.memory]
            units[number, some] = job.kind.storage.units
            rows = slice(len(job.memory), len(job.memory) + len(job.rows))
            addresses[number, rows] = [array.__array_interface__["data"][0] for array in job.rows]
        # Of the pieces, in bytes. They begin where blocks do.
        self._starts = first[:, None] // units[self._owners] * itemsizes[self._owners]
        self._table = np.zeros((len(pieces), len(COUNTS) + slots), np.int64)
        self._table[:, COUNT], self._table[:, START] = last - first, first
        self._table[:, LENGTH] = np.array([job.row for job in self.jobs], np.int64)[self._owners]
        self._table[:, len(COUNTS) :] = addresses[self._owners] + self._starts
        self._draws = any(job.kind.storage.draws for job in self.jobs)
        self._full = np.diff((np.cumsum(last - first) - 1) // PIECE) != 0  # whether a task ends behind a row

    def move(self, addresses: Sequence[int]) -> None:
        self._table[:, len(COUNTS) + 1] = np.array(addresses, np.int64)[self._owners] + self._starts[:, 1]
        if self.staged:
            for job, address in zip(self.jobs, addresses):
                job.move(address)

    def _execute(self, begun: list[Begun], write_back: bool) -> None:
        if self._draws:
            counters = np.array([job.drawn_for for job in self.jobs], np.int64).reshape(-1, 3)
            self._table[:, STEP : SEED + 1] = counters[self._owners]
        tasks = self._tasks(begun, write_back)
        queue = iter(tasks)

        def work() -> None:
            for loop, constants, first, last in queue:
                loop(self._table, constants, first, last)

        on_all_threads(work, min(len(tasks), self._threads()) if len(tasks) > ALONE else 1)

    def _tasks(self, begun: list[Begun], write_back: bool) -> list[tuple[Loop, Array, int, int]]:
        """Rows of the table, about `PIECE` elements of them and all that start alike, with their loop and constants."""
        which = {id(it): number for number, it in enumerate(begun)}
        ready = {number: _ready(begun[number], write_back) for number in which.values()}
        starts = np.array([which[id(it)] for it in begun], np.int64)[self._owners]
        cuts = self._full if len(which) < 2 else self._full | (np.diff(starts) != 0)
        edges = [0, *(np.flatnonzero(cuts) + 1).tolist(), len(starts)] if len(starts) else []
        return [(*ready[int(starts[first])], first, last) for first, last in itertools.pairwise(edges)]


def _ready(begun: Begun, write_back: bool) -> tuple[Loop, Array]:
    """The loop and its constants."""
    kind = begun.kind
    loop, uniform = compiled(kind.traced, begun.conditions, kind.storage, write_back)
    return loop, np.array([begun.values[number] for number in uniform], kind.real)
