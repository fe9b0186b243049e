"""The CPU: a traced rule as ufunc calls on blocks that stay in the cache, over threads.

A block of every stream and of the scratch is small enough for a core's own cache, so that a step moves each array
through memory once, as the fused kernel does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import operator
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fusedopt.layout import ALIGNMENT, Span
from fusedopt.rules import Values
from fusedopt.tracing import CONSTANT, INPUT, WHERE, Program, Traced, trace

# Elements: 256 KiB a float32 stream, of which Adam works on four at a time, in a core's 2 MiB. With half of it the
# threads wait for Python's lock longer than they compute.
BLOCK = 64 * 1024

Array = np.ndarray[Any, Any]


# --- a body as instructions ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`function(*operands, out)`, all slots; an operand below zero, ~n, is the uniform value of statement n."""

    function: Callable[..., Any]
    operands: tuple[int, ...]
    out: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A body for one choice of its uniform conditions.

    Slots are the memory first (`p`, `g`, then the states), then the scratch, then the uniform values.

    Attributes:
        memory: How many slots are memory.
        scratch: For each scratch slot, whether it holds truth values.
    """

    instructions: tuple[Instruction, ...]
    memory: int
    scratch: tuple[bool, ...]

    @functools.cached_property
    def calls(self) -> list[tuple[Callable[..., Any], Callable[[list[Any]], tuple[Any, ...]]]]:
        """Each function, and what picks its arguments out of the slots: between calls a thread holds Python's lock, so
        the less there is to do, the less the threads wait for each other."""
        values = self.memory + len(self.scratch)
        return [
            (i.function, operator.itemgetter(*(o if o >= 0 else values + ~o for o in i.operands), i.out))
            for i in self.instructions
        ]


def _choose(condition: Array, then: Any, otherwise: Any, out: Array) -> None:
    if out is not otherwise:
        np.copyto(out, otherwise)
    np.copyto(out, then, where=condition if condition.dtype == bool else condition != 0)


def _convert(array: Any, out: Array) -> None:
    np.copyto(out, array, casting="unsafe")


@functools.cache
def schedule(traced: Traced, conditions: tuple[bool, ...], converted: bool) -> Schedule:
    """Instructions for a body: what the uniform conditions leave out is not computed, and scratch is reused.

    Args:
        conditions: The values of `uniform_conditions`, in order.
        converted: Whether memory holds another type than the arithmetic's, so that it is loaded and stored.
    """
    return _Scheduler(traced, dict(zip(uniform_conditions(traced.body), conditions)), converted).schedule()


@functools.cache
def uniform_conditions(program: Program) -> tuple[int, ...]:
    """Numbers of the statements that decide a `where` for all elements alike."""
    statements = program.statements
    found = {s.operands[0]: None for s in statements if s.operation == WHERE and statements[s.operands[0]].uniform}
    return tuple(found)


class _Scheduler:
    def __init__(self, traced: Traced, decided: dict[int, bool], converted: bool) -> None:
        self.statements, self.decided, self.converted = traced.body.statements, decided, converted
        names = ["p", "g", *(f"s.{name}" for name in traced.states)]
        self.memory = {number: names.index(s.value) for number, s in enumerate(self.statements) if s.value in names}
        self.results = {
            names.index(name if name == "p" else f"s.{name}"): self.source(number)
            for name, number in traced.body.results.items()
        }
        self.slots = len(names)
        self.scratch: list[bool] = []
        self.instructions: list[Instruction] = []

    def source(self, number: int) -> int:
        """The statement that a value comes from once the uniform conditions are decided."""
        statement = self.statements[number]
        while statement.operation == WHERE and statement.operands[0] in self.decided:
            number = statement.operands[1 if self.decided[statement.operands[0]] else 2]
            statement = self.statements[number]
        return number

    def operands(self, number: int) -> tuple[int, ...]:
        return tuple(self.source(operand) for operand in self.statements[number].operands)

    def live(self) -> list[int]:
        """The statements that must be computed for each element, in order."""
        needed = set(self.results.values())
        for number in reversed(range(len(self.statements))):
            if number in needed and not self.statements[number].uniform and number not in self.memory:
                needed |= set(self.operands(number))
        return [n for n in sorted(needed) if not self.statements[n].uniform and n not in self.memory]

    def schedule(self) -> Schedule:
        live = self.live()
        never = len(self.statements)
        last_use = {operand: number for number in live for operand in self.operands(number)}
        # A result that is no fresh value of its own (an input, a constant, or two results in one) is copied at the end.
        fresh = {n for n in self.results.values() if n in live and list(self.results.values()).count(n) == 1}
        copied = {slot: n for slot, n in self.results.items() if n not in fresh and self.memory.get(n) != slot}
        home = {n: slot for slot, n in self.results.items() if n in fresh and not self.converted}
        owner = {slot: number for number, slot in self.memory.items()}
        for slot, number in self.results.items():
            if slot in copied or (self.converted and number in live):
                last_use[number] = never
        at: dict[int, int] = {}  # where each value is now
        free: dict[bool, list[int]] = {False: [], True: []}
        late: list[Instruction] = []

        def new_scratch(boolean: bool) -> int:
            if free[boolean]:
                return free[boolean].pop()
            self.scratch.append(boolean)
            return self.slots + len(self.scratch) - 1

        for number, slot in self.memory.items():
            at[number] = slot
            if self.converted and number in last_use:
                at[number] = new_scratch(False)
                self.instructions.append(Instruction(_convert, (slot,), at[number]))
        # A state that goes to another's place is saved before anything is written; the gradient never is overwritten.
        saved = {}
        for number in copied.values():
            if self.memory.get(number, 1) != 1 and not self.converted:
                saved[number] = new_scratch(False)
                self.instructions.append(Instruction(_convert, (at[number],), saved[number]))
        for number in live:
            statement, operands = self.statements[number], self.operands(number)
            dying = [o for o in dict.fromkeys(operands) if o in at and last_use.get(o, -1) <= number]
            if statement.operation == WHERE:
                dying = [o for o in dying if o == operands[2] and o not in operands[:2]]
            slot = home.get(number, -1)
            unread = last_use.get(owner.get(slot, -1), -1) <= number
            # In place of the old value, if nothing reads that any more: then the result needs no copy.
            if slot >= 0 and unread and not self._reads(operands, at, slot, statement):
                at[number] = slot
            else:
                reusable = [
                    at[o]
                    for o in dying
                    if at[o] >= self.slots and not statement.boolean and not self.statements[o].boolean
                ]
                at[number] = reusable[0] if reusable else new_scratch(statement.boolean)
                if slot >= 0:
                    last_use[number] = never
                    late.append(Instruction(np.positive, (at[number],), slot))
            function = _choose if statement.operation == WHERE else statement.operation
            self.instructions.append(Instruction(function, tuple(at.get(o, ~o) for o in operands), at[number]))
            for operand in dict.fromkeys(operands):
                gone = operand in at and last_use.get(operand, -1) <= number and at[operand] >= self.slots
                if gone and at[operand] != at[number]:
                    free[self.statements[operand].boolean].append(at[operand])
        late += [Instruction(_convert, (saved.get(n, at.get(n, ~n)),), slot) for slot, n in copied.items()]
        if self.converted:
            late += [Instruction(_convert, (at[n],), slot) for slot, n in self.results.items() if n in fresh]
        return Schedule((*self.instructions, *late), self.slots, tuple(self.scratch))

    @staticmethod
    def _reads(operands: tuple[int, ...], at: dict[int, int], slot: int, statement: Any) -> bool:
        """Whether writing a `where` to a slot would spoil an operand that it still reads."""
        return statement.operation == WHERE and slot in (at.get(operands[0]), at.get(operands[1]))


# --- executing it ----------------------------------------------------------------------------------------------------


class _Job:
    """A span made ready: its arrays, its counters, its rule."""

    def __init__(self, span: Span) -> None:
        arena = span.arena
        self.span, self.traced = span, trace(arena.group.rule)
        self.real = np.float64 if arena.dtype == np.float64 else np.float32
        buffers = [arena.data, arena.gradients, *(arena.state(name) for name in self.traced.states)]
        self.memory = [buffer[span.start : span.stop] for buffer in buffers]
        self.counters: Array = arena.counters[span.first : span.last + 1]
        self.uniform, self.converted = _Uniform(self.traced, self.real), arena.dtype != self.real
        self.refresh()

    def refresh(self) -> None:
        self.rule = self.span.arena.group.rule.in_float64()

    def begin(self, grad_scale: float) -> tuple[Schedule, list[Any], dict[int, float]]:
        """What the step needs to know of this span: its instructions, its uniform values, and its counters after."""
        row, names = self.counters[0], self.traced.scalar_state
        step = row[0] + 1
        scalars = vars(self.rule.scalars(step, Values(**{name: row[1 + i] for i, name in enumerate(names)})))
        after = {1 + i: scalars[name] for i, name in enumerate(names) if name in scalars}
        if self.rule.counts:
            after[0] = step
        constants = np.array([*(scalars[name] for name in self.traced.constants), grad_scale], self.real)
        values = self.uniform.values(constants)
        conditions = tuple(bool(values[number]) for number in self.uniform.conditions)
        return schedule(self.traced, conditions, self.converted), values, after


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

    def __init__(self, spans: Sequence[Span]) -> None:
        self.jobs = [_Job(span) for span in spans]
        self.pieces = [
            (number, first, min(first + BLOCK, span.stop - span.start))
            for number, span in enumerate(spans)
            for first in range(0, span.stop - span.start, BLOCK)
        ]

    def refresh(self) -> None:
        for job in self.jobs:
            job.refresh()

    def step(self, grad_scale: Any, found_inf: Any) -> None:
        if found_inf is not None and float(found_inf) != 0:
            return
        scale = 1.0 if grad_scale is None else float(grad_scale)
        with np.errstate(all="ignore"):
            begun = [job.begin(scale) for job in self.jobs]
        pieces = iter(self.pieces)

        def work() -> None:
            with np.errstate(all="ignore"):  # errstate belongs to a thread
                for number, first, last in pieces:
                    plan, values, _ = begun[number]
                    job = self.jobs[number]
                    slots = [array[first:last] for array in job.memory]
                    slots += _scratch_slots(plan.scratch, job.real, last - first)
                    slots += values
                    for function, arguments in plan.calls:
                        function(*arguments(slots))

        _on_all_threads(work, alone=len(self.pieces) <= 1)
        for job, (_, _, after) in zip(self.jobs, begun):
            for column, value in after.items():
                job.counters[:, column] = value


def thread_count() -> int:
    """`FUSEDOPT_NUM_THREADS`, or as many as there are cores for this process."""
    text = os.environ.get("FUSEDOPT_NUM_THREADS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"FUSEDOPT_NUM_THREADS must be a whole number from 1, got {text!r}; unset it for all cores.")
    return int(text)


_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _on_all_threads(work: Callable[[], None], alone: bool) -> None:
    """Run `work` on this thread and on the pool's; it takes pieces from one iterator until there are none."""
    global _pool, _pool_size
    helpers = 0 if alone else thread_count() - 1
    if helpers == 0:
        return work()
    if _pool is None or _pool_size != helpers:
        _pool, _pool_size = ThreadPoolExecutor(helpers, "fusedopt"), helpers
    core = _current_core()
    futures = [_pool.submit(_elsewhere, core, work) for _ in range(helpers)]
    work()
    for future in futures:
        future.result()


def _elsewhere(core: int, work: Callable[[], None]) -> None:
    """Run `work` on another core than the caller's.

    Linux often wakes a thread on the core of its waker, and leaves it there for longer than a step takes: on a virtual
    machine of two cores, 32 M parameters took 88 ms so, and half of it with this.
    """
    if core >= 0 and _current_core() == core:
        others = _allowed_cores - {core}
        if others:
            os.sched_setaffinity(0, others)
    work()


def _current_core() -> int:
    return int(_getcpu()) if _getcpu is not None else -1


_allowed_cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


def _forget_pool() -> None:
    global _pool
    _pool = None  # a forked child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


class NumpyBackend:
    """NumPy arrays, on the CPU."""

    device = "cpu"

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Array:
        return aligned_zeros(count, dtype)

    def asarray(self, array: Any) -> Array:
        return np.asarray(array)

    def host(self, array: Any) -> Array:
        return np.array(array)

    def plan(self, spans: Sequence[Span]) -> NumpyPlan:
        return NumpyPlan(spans)


BACKEND = NumpyBackend()
