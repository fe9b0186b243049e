"""What both ways of stepping on the CPU have in common: spans of NumPy arrays, and what a step starts from.

`backends.numpy` executes a rule as ufunc calls, `backends.numba` as a compiled loop, with the same bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fusedopt.backends.schedule import uniform_conditions
from fusedopt.layout import ALIGNMENT, HasRule, Span
from fusedopt.rules import Values
from fusedopt.tracing import CONSTANT, INPUT, WHERE, Traced, trace

Array = np.ndarray[Any, Any]


class Kind:
    """What spans of one group and one choice of dtypes have in common: a traced rule, and values made of constants."""

    def __init__(self, group: HasRule, dtypes: tuple[str, str, str]) -> None:
        self.group, self.dtypes, self.traced = group, dtypes, trace(group.rule)
        self.real: type = np.float64 if dtypes[0] == "float64" else np.float32
        self.uniform = _Uniform(self.traced, self.real)
        self.refresh()

    def refresh(self) -> None:
        self.rule, self.counts = self.group.rule.in_float64(), self.group.rule.counts

    def begin(self, row: Array, grad_scale: float) -> Begun:
        """What a step needs to know of the spans with this counter."""
        names = self.traced.scalar_state
        step = row[0] + 1
        a = Values(**{name: row[1 + i] for i, name in enumerate(names)})
        scalars = vars(self.rule.constants(step, a, np.float64(grad_scale)))
        after = {1 + i: scalars[name] for i, name in enumerate(names) if name in scalars}
        if self.counts:
            after[0] = step
        constants: Array = np.array([scalars[name] for name in self.traced.constants], self.real)
        values = self.uniform.values(constants)
        return Begun(self, values, tuple(bool(values[number]) for number in self.uniform.conditions), after)


@dataclasses.dataclass(frozen=True, eq=False)
class Begun:
    """What the arithmetic of a step starts from.

    Attributes:
        kind: Of the spans.
        values: Of the statements that are the same for all elements, as 0-d arrays; None for the others.
        conditions: Of `uniform_conditions`.
        after: The counters' columns after the step.
    """

    kind: Kind
    values: list[Any]
    conditions: tuple[bool, ...]
    after: dict[int, float]


class Job:
    """A span made ready: its kind, its arrays, its counters."""

    def __init__(self, span: Span, kind: Kind) -> None:
        counters = span.counters.reshape(span.parameters, -1)
        self.kind, self.size = kind, span.size
        self.counter = counters[0]  # of all its parameters, which have had the same steps
        self.columns = counters.T if span.parameters > 1 else self.counter  # numbers are written faster than rows
        self.memory: list[Array] = [span.parameter, span.gradient, *span.states]


class _Uniform:
    """The statements of a body that have one value for all elements: everything made of constants alone."""

    def __init__(self, traced: Traced, real: type) -> None:
        names = [f"c.{name}" for name in traced.constants]
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
        self._kinds: dict[tuple[int, tuple[str, str, str]], Kind] = {}
        self.jobs = [Job(span, self._kind(span.group, span.dtypes)) for span in spans]
        self.pieces = [
            (number, first, min(first + self.block, span.size))
            for number, span in enumerate(spans)
            for first in range(0, span.size, self.block)
        ]

    def _kind(self, group: HasRule, dtypes: tuple[str, str, str]) -> Kind:
        key = id(group), dtypes
        if key not in self._kinds:
            self._kinds[key] = Kind(group, dtypes)
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
        begun = self._begin(1.0 if grad_scale is None else float(grad_scale))
        self._execute(begun, write_back)
        for job, it in zip(self.jobs, begun):
            for column, value in it.after.items():
                job.columns[column] = value

    def _begin(self, scale: float) -> list[Begun]:
        """For each job what it starts from; made once for those of one kind whose counters are equal."""
        made: dict[tuple[int, bytes], Begun] = {}
        begun = []
        with np.errstate(all="ignore"):
            for job in self.jobs:
                key = id(job.kind), job.counter.tobytes()
                if key not in made:
                    made[key] = job.kind.begin(job.counter, scale)
                begun.append(made[key])
        return begun


def aligned_zeros(count: int, dtype: np.dtype[Any]) -> Array:
    """Zeros that start at a multiple of `ALIGNMENT`: an operation on arrays across cache lines takes twice as long."""
    memory = np.zeros(count * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count * dtype.itemsize].view(dtype)


@functools.cache
def _bytes(count: int) -> Any:
    return ctypes.c_char * count


def array_at(address: int, size: int, dtype: np.dtype[Any]) -> Array:
    """A flat array on memory that it does not own."""
    if size == 0:
        return np.empty(0, dtype)
    return np.frombuffer(_bytes(size * dtype.itemsize).from_address(address), dtype)


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
