"""The CPU in NumPy: a traced rule as ufunc calls on blocks that stay in the cache, over threads.

A block of every stream and of the scratch is small enough for a core's own cache, so that a step moves each array
through memory once, as the fused kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusedopt.backends.cpu import CpuPlan
from fusedopt.backends.jobs import Begun
from fusedopt.backends.schedule import schedule
from fusedopt.backends.scratch import scratch_slots
from fusedopt.backends.threads import on_all_threads
from fusedopt.layout import Span

# Elements: 256 KiB a float32 stream, of which Adam works on four at a time, in a core's 2 MiB. With half of it two
# threads meet at Python's lock more often: 68 ms instead of 58 for 32 Mi parameters.
BLOCK = 64 * 1024


class NumpyPlan(CpuPlan):
    """Spans of NumPy arrays, updated by ufuncs."""

    name, block = "numpy", BLOCK

    def __init__(self, spans: Sequence[Span], threads: Callable[[], int]) -> None:
        super().__init__(spans, threads)
        # Over small pieces two threads meet at Python's lock too often: 300 tensors of 4,096 took 8.1 ms, not 5.6.
        self.threaded = sum(span.size for span in spans) >= len(self.pieces) * BLOCK // 2

    def move(self, addresses: Sequence[int]) -> None:
        for job, address in zip(self.jobs, addresses):
            job.move(address)

    def _execute(self, begun: list[Begun], write_back: bool) -> None:
        pieces = iter(self.pieces)
        schedules = {id(it): schedule(it.kind.traced, it.conditions, it.kind.converted, write_back) for it in begun}

        def work() -> None:
            others: dict[tuple[int, int], list[Any]] = {}  # scratch and values, the same for pieces of one size
            with np.errstate(all="ignore"):  # errstate belongs to a thread
                for number, first, last in pieces:
                    it = begun[number]
                    planned = schedules[id(it)]
                    key = id(it), last - first
                    if key not in others:
                        others[key] = scratch_slots(planned.scratch, it.kind.real, last - first) + it.values
                    slots = self.jobs[number].slots(it.kind.traced, first, last) + others[key]
                    for function, arguments in planned.calls:
                        function(*arguments(slots))
                    if it.kind.masters and 0 in planned.written:
                        self.jobs[number].publish(first, last)

        if self.threaded:
            on_all_threads(work, min(len(self.pieces), self._threads()))
        else:
            work()
