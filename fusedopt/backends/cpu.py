"""What both ways of stepping on the CPU have in common: spans of NumPy arrays, and what a step starts from.

`backends.numpy` executes a rule as ufunc calls, `backends.numba` as a compiled loop, with the same bits.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fusedopt.backends.jobs import Array, Begun, Job, Kind
from fusedopt.backends.scratch import aligned_zeros
from fusedopt.backends.sums import take_stages
from fusedopt.layout import Span
from fusedopt.storage import Storage


class CpuPlan(ABC):
    """Spans of NumPy arrays, ready to be updated.

    Attributes:
        jobs: One for each span.
        pieces: Job, first and last element of what is done at a time.
    """

    name: str  # as FUSEDOPT_BACKEND has it
    block: int  # the most elements of a piece

    def __init__(self, spans: Sequence[Span], threads: Callable[[], int]) -> None:
        threads()  # a wrong FUSEDOPT_NUM_THREADS is refused before anything is done
        self._threads = threads
        self._kinds: dict[tuple[int, int, Storage], Kind] = {}
        self.jobs = [Job(span, self._kind(span)) for span in spans]
        self.staged = any(kind.traced.stages for kind in self._kinds.values())
        self.pieces = [
            (number, first, min(first + self.block, span.size))
            for number, span in enumerate(spans)
            for first in range(0, span.size, self.block)
        ]

    def _kind(self, span: Span) -> Kind:
        key = id(span.group), id(span.group.rule.form(span.shape)), span.storage
        if key not in self._kinds:
            self._kinds[key] = Kind(span.group, span.shape, span.storage)
        return self._kinds[key]

    def refresh(self) -> None:
        for kind in self._kinds.values():
            kind.refresh()

    @abstractmethod
    def move(self, addresses: Sequence[int]) -> None: ...

    @abstractmethod
    def _execute(self, begun: list[Begun], write_back: bool) -> None:
        """The arithmetic on all elements, from what each job begins with."""

    def step(self, grad_scale: Any, found_inf: Any, write_back: bool = False) -> None:
        if found_inf is not None and float(found_inf) != 0:
            return
        scale = 1.0 if grad_scale is None else float(grad_scale)
        if self.staged:
            take_stages(self.jobs, scale, self._threads)
        begun = self._begin(scale)
        self._execute(begun, write_back)
        for job, it in zip(self.jobs, begun):
            for column, value in it.after.items():
                job.columns[column] = value

    def _begin(self, scale: float) -> list[Begun]:
        """For each job what it starts from; made once for those of one kind whose counters and sums are equal."""
        made: dict[tuple[int, bytes, tuple[Any, ...]], Begun] = {}
        begun = []
        with np.errstate(all="ignore"):
            for job in self.jobs:
                key = id(job.kind), job.counter.tobytes(), tuple(job.sums.values()) if job.sums else ()
                if key not in made:
                    made[key] = job.kind.begin(job.counter, scale, job.sums)
                begun.append(made[key])
        return begun


class CpuBackend:
    """NumPy arrays, on the CPU.

    Args:
        kind: What its plans are, `NumpyPlan` or `NumbaPlan`, which gives it its name.
        threads: How many a step may take.
    """

    device = "cpu"

    def __init__(self, kind: type[CpuPlan], threads: Callable[[], int]) -> None:
        self.name, self._kind, self._threads = kind.name, kind, threads

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Array:
        return aligned_zeros(count, dtype)

    def asarray(self, array: Any) -> Array:
        return np.asarray(array)

    def host(self, array: Any) -> Array:
        return np.array(array)

    def here(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def plan(self, spans: Sequence[Span]) -> CpuPlan:
        return self._kind(spans, self._threads)
