"""The CPU: a traced rule as ufunc calls on blocks that stay in the cache, over threads.

A block of every stream and of the scratch is small enough for a core's own cache, so that a step moves each array
through memory once, as the fused kernel does.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fusedopt.backends.schedule import Call, schedule, uniform_conditions
from fusedopt.backends.threads import on_all_threads, thread_count
from fusedopt.layout import ALIGNMENT, HasRule, Span
from fusedopt.rules import Values
from fusedopt.tracing import CONSTANT, INPUT, WHERE, Traced, trace

# Elements: 256 KiB a float32 stream, of which Adam works on four at a time, in a core's 2 MiB. With half of it two
# threads meet at Python's lock more often: 68 ms instead of 58 for 32 Mi parameters.
BLOCK = 64 * 1024

Array = np.ndarray[Any, Any]
# Calls, layout of the scratch, type of the arithmetic, uniform values, and the counters' columns after the step.
_Begun = tuple[list[Call], tuple[bool, ...], type, list[Any], dict[int, float]]


class _Kind:
    """What spans of one group and one choice of dtypes have in common: instructions, and values made of constants."""

    def __init__(self, group: HasRule, dtypes: tuple[str, str, str]) -> None:
        self.group, self.traced = group, trace(group.rule)
        self.real: type = np.float64 if dtypes[0] == "float64" else np.float32
        self.uniform = _Uniform(self.traced, self.real)
        self.converted = tuple(dtype != self.real.__name__ for dtype in dtypes)
        self.refresh()

    def refresh(self) -> None:
        self.rule, self.counts = self.group.rule.in_float64(), self.group.rule.counts

    def begin(self, row: Array, grad_scale: float, write_back: bool) -> _Begun:
        """What a step needs to know of the spans with this counter."""
        names = self.traced.scalar_state
        step = row[0] + 1
        scalars = vars(self.rule.scalars(step, Values(**{name: row[1 + i] for i, name in enumerate(names)})))
        after = {1 + i: scalars[name] for i, name in enumerate(names) if name in scalars}
        if self.counts:
            after[0] = step
        constants: Array = np.array([*(scalars[name] for name in self.traced.constants), grad_scale], self.real)
        values = self.uniform.values(constants)
        conditions = tuple(bool(values[number]) for number in self.uniform.conditions)
        planned = schedule(self.traced, conditions, self.converted, write_back)
        return planned.calls, planned.scratch, self.real, values, after


class _Job:
    """A span made ready: its arrays, its counters, its kind."""

    def __init__(self, span: Span, kind: _Kind) -> None:
        self.kind, self.counters = kind, span.counters.reshape(span.parameters, -1)
        self.memory: list[Array] = [span.parameter, span.gradient, *span.states]


class _Uniform:
    """The statements of a body that have one value for all elements: everything made of constants alone."""

    def __init__(self, traced: Traced, real: type) -> None:
        names = [f"c.{name}" for name in (*traced.constants, "grad_scale")]
        statements = traced.body.statements
        self.conditions = uniform_conditions(traced.body)
        self._known: list[Any] = [np.array(s.value, real) if s.operation == CONSTANT else None for s in statements]
        uniform = [(number, s) for number, s in enumerate(statements) if s.uniform and s.operation != CONSTANT]
        self._inputs = [(number, names.index(s.value)) for number, s in uniform if s.operation == INPUT]
        self._others = [(number, s.operation, s.operands) for number, s in uniform if s.operation != INPUT]

    def values(self, constants: Array) -> list[Any]:
        """The value of each statement as a 0-d array, which ufuncs take faster than a scalar; None for the others."""
        values = list(self._known)
        for number, column in self._inputs:
            values[number] = constants[column, ...]
        for number, operation, operands in self._others:
            arguments = [values[operand] for operand in operands]
            if operation == WHERE:
                values[number] = arguments[1] if arguments[0] else arguments[2]
            else:
                values[number] = np.asarray(operation(*arguments))
        return values


def aligned_zeros(count: int, dtype: np.dtype[Any]) -> Array:
    """Zeros that start at a multiple of `ALIGNMENT`: an operation on arrays across cache lines takes twice as long."""
    memory = np.zeros(count * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count * dtype.itemsize].view(dtype)


_scratch = threading.local()


def _scratch_slots(layout: tuple[bool, ...], real: type, count: int) -> list[Array]:
    """This thread's scratch, made once for each layout and kept: a few blocks."""
    kept: dict[Any, list[Array]] = _scratch.__dict__
    key = f"{real.__name__} {layout}"
    if key not in kept:
        kept[key] = [aligned_zeros(BLOCK, np.dtype(bool if boolean else real)) for boolean in layout]
    return [slot[:count] for slot in kept[key]]


class NumpyPlan:
    """Spans of NumPy arrays, ready to be updated."""

    def __init__(self, spans: Sequence[Span], threads: Callable[[], int]) -> None:
        threads()  # a wrong FUSEDOPT_NUM_THREADS is refused before anything is done
        self._threads = threads
        self._kinds: dict[tuple[int, tuple[str, str, str]], _Kind] = {}
        self.jobs = [_Job(span, self._kind(span.group, span.dtypes)) for span in spans]
        self.pieces = [
            (number, first, min(first + BLOCK, span.size))
            for number, span in enumerate(spans)
            for first in range(0, span.size, BLOCK)
        ]
        # Over small pieces two threads meet at Python's lock too often: 300 tensors of 4,096 took 8.1 ms, not 5.6.
        self.threaded = sum(span.size for span in spans) >= len(self.pieces) * BLOCK // 2

    def _kind(self, group: HasRule, dtypes: tuple[str, str, str]) -> _Kind:
        key = id(group), dtypes
        if key not in self._kinds:
            self._kinds[key] = _Kind(group, dtypes)
        return self._kinds[key]

    def refresh(self) -> None:
        for kind in self._kinds.values():
            kind.refresh()

    def move(self, gradients: Sequence[Any]) -> None:
        for job, gradient in zip(self.jobs, gradients):
            job.memory[1] = gradient

    def step(self, grad_scale: Any, found_inf: Any, write_back: bool = False) -> None:
        if found_inf is not None and float(found_inf) != 0:
            return
        scale = 1.0 if grad_scale is None else float(grad_scale)
        begun = self._begin(scale, write_back)
        pieces = iter(self.pieces)

        def work() -> None:
            others: dict[tuple[int, int], list[Any]] = {}  # scratch and values, the same for pieces of one size
            with np.errstate(all="ignore"):  # errstate belongs to a thread
                for number, first, last in pieces:
                    calls, scratch, real, values, _ = begun[number]
                    key = id(values), last - first
                    if key not in others:
                        others[key] = _scratch_slots(scratch, real, last - first) + values
                    slots = [array[first:last] for array in self.jobs[number].memory] + others[key]
                    for function, arguments in calls:
                        function(*arguments(slots))

        if self.threaded:
            on_all_threads(work, min(len(self.pieces), self._threads()))
        else:
            work()
        for job, (*_, after) in zip(self.jobs, begun):
            for column, value in after.items():
                job.counters[:, column] = value

    def _begin(self, scale: float, write_back: bool) -> list[_Begun]:
        """For each job what it starts from; made once for those of one kind whose counters are equal."""
        made: dict[tuple[int, bytes], _Begun] = {}
        begun = []
        with np.errstate(all="ignore"):
            for job in self.jobs:
                row = job.counters[0]
                key = id(job.kind), row.tobytes()
                if key not in made:
                    made[key] = job.kind.begin(row, scale, write_back)
                begun.append(made[key])
        return begun


class NumpyBackend:
    """NumPy arrays, on the CPU.

    Args:
        threads: How many a step may take.
    """

    device = "cpu"

    def __init__(self, threads: Callable[[], int] = thread_count) -> None:
        self._threads = threads

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Array:
        return aligned_zeros(count, dtype)

    def asarray(self, array: Any) -> Array:
        return np.asarray(array)

    def host(self, array: Any) -> Array:
        return np.array(array)

    def here(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def plan(self, spans: Sequence[Span]) -> NumpyPlan:
        return NumpyPlan(spans, self._threads)


BACKEND = NumpyBackend()
