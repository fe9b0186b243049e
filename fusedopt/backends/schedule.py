"""A traced body as NumPy calls: what is not needed is left out, and each result has its place in memory or scratch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fusedopt.backends.kept import read, write
from fusedopt.statements import WHERE, Program, Statement
from fusedopt.tracing import Traced

Array = np.ndarray[Any, Any]
Call = tuple[Callable[..., Any], Callable[[list[Any]], tuple[Any, ...]]]


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
        written: The slots of memory that change.
    """

    instructions: tuple[Instruction, ...]
    memory: int
    scratch: tuple[bool, ...]
    written: frozenset[int]

    @functools.cached_property
    def calls(self) -> list[Call]:
        """Each function, and what picks its arguments out of the slots: between calls a thread holds Python's lock, so
        the less there is to do, the less the threads wait for each other."""
        values = self.memory + len(self.scratch)
        return [
            (i.function, operator.itemgetter(*(o if o >= 0 else values + ~o for o in i.operands), i.out))
            for i in self.instructions
        ]


_scratch = threading.local()


def choose(condition: Array, then: Any, otherwise: Any, out: Array) -> None:
    """`np.where`, into `out`, which is not `then`.

    A masked copy mispredicts: 4.7 ns an element where the condition is random, 0.1 where it is seldom other than usual.
    By bits it is always 0.6.
    """
    if condition.dtype != bool:
        condition = condition != 0
    true = np.count_nonzero(condition)
    if min(true, len(out) - true) * 32 < len(out):
        if out is not otherwise:
            np.copyto(out, otherwise)
        np.copyto(out, then, where=condition)
        return
    kind = f"i{out.itemsize}"
    kept = getattr(_scratch, kind, None)
    if kept is None or len(kept) < len(out):
        kept = np.empty(len(out), kind)
        setattr(_scratch, kind, kept)
    difference = kept[: len(out)]
    otherwise = otherwise.view(kind)
    np.bitwise_xor(then.view(kind), otherwise, difference)
    np.multiply(difference, condition, difference)
    np.bitwise_xor(difference, otherwise, out.view(kind))


def convert(array: Any, out: Array) -> None:
    np.copyto(out, array, casting="unsafe")


@functools.cache
def uniform_conditions(program: Program) -> tuple[int, ...]:
    """Numbers of the statements that decide a `where` for all elements alike."""
    statements = program.statements
    found = {s.operands[0]: None for s in statements if s.operation == WHERE and statements[s.operands[0]].uniform}
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Step:
    """One value made of others. Values are numbers: the statements', and further ones for loads, stores and copies."""

    function: Callable[..., Any]
    operands: tuple[int, ...]
    value: int
    boolean: bool = False


@dataclasses.dataclass(frozen=True)
class Straight:
    """A body for one choice of its uniform conditions, before anything has a place.

    Attributes:
        steps: What must be computed, in order; operands that no step gives and no memory holds are uniform values.
        homes: The slots of memory that change, by the values that belong there: one of its own for each.
        memory: The slots that statements read, by the statements' numbers. `p` is 0, `g` 1, then come the states.
        slots: How many slots of memory there are.
    """

    steps: list[Step]
    homes: dict[int, int]
    memory: dict[int, int]
    slots: int


def straightened(
    traced: Traced, conditions: tuple[bool, ...], converted: tuple[bool, ...], write_back: bool
) -> Straight:
    """What the uniform conditions leave of a body.

    Args:
        conditions: The values of `uniform_conditions`, in order.
        converted: Whether the parameter, the gradient and each state are kept in another way than as values of the
            arithmetic's type, so that loads and stores are steps of their own.
        write_back: Whether the unscaled gradient is stored.
    """
    names = traced.arrays
    memory = {number: names.index(s.value) for number, s in enumerate(traced.body.statements) if s.value in names}
    results = {names.index(n): number for n, number in traced.results.items() if write_back or n != "g"}
    decided = dict(zip(uniform_conditions(traced.body), conditions))
    others = {slot for slot, other in enumerate(converted) if other}
    steps, homes = _steps(traced.body.statements, decided, memory, results, others)
    return Straight(steps, homes, memory, len(names))


@functools.cache
def schedule(
    traced: Traced, conditions: tuple[bool, ...], converted: tuple[bool, ...], write_back: bool = False
) -> Schedule:
    """Instructions for a body, of which `straightened` has the arguments; scratch is reused."""
    return _placed(straightened(traced, conditions, converted, write_back))


def _steps(
    statements: tuple[Statement, ...],
    decided: dict[int, bool],
    memory: dict[int, int],
    results: dict[int, int],
    converted: set[int],
) -> tuple[list[Step], dict[int, int]]:
    """The steps of a `Straight`, and its homes."""

    def source(number: int) -> int:
        """The statement that a value comes from, now that the uniform conditions are decided."""
        while statements[number].operation == WHERE and statements[number].operands[0] in decided:
            condition, then, otherwise = statements[number].operands
            number = then if decided[condition] else otherwise
        return number

    needed = {source(number) for number in results.values()}
    for number in reversed(range(len(statements))):
        if number in needed and not statements[number].uniform:
            needed |= {source(operand) for operand in statements[number].operands}
    computed = [n for n in sorted(needed) if not statements[n].uniform and n not in memory]
    new = itertools.count(len(statements))
    loaded = {number: next(new) for number, slot in memory.items() if slot in converted and number in needed}
    steps = [Step(read, (number,), value) for number, value in loaded.items()]
    for number in computed:
        statement = statements[number]
        operands = tuple(loaded.get(source(operand), source(operand)) for operand in statement.operands)
        function = choose if statement.operation == WHERE else statement.operation
        steps.append(Step(function, operands, number, statement.boolean))
    homes: dict[int, int] = {}
    for slot, number in ((slot, source(number)) for slot, number in results.items()):
        if memory.get(number) == slot:
            continue  # unchanged
        value = number
        # Stored as another type; or an input, a constant, a second result.
        if slot in converted or number not in computed or number in homes:
            value = next(new)
            steps.append(Step(write if slot in converted else convert, (loaded.get(number, number),), value))
        homes[value] = slot
    return steps, homes


def _placed(straight: Straight) -> Schedule:
    slots = _Slots(straight)
    instructions = [slots.place(number, step) for number, step in enumerate(straight.steps)]
    written = frozenset(straight.homes.values())
    return Schedule((*instructions, *slots.late), straight.slots, tuple(slots.scratch), written)


class _Slots:
    """Gives each value a slot: its home as soon as the old value there is not read any more; else the home of a later
    value, until that is made; else scratch. The less scratch there is, the more of the rest stays in the cache.

    Attributes:
        scratch: For each scratch slot, whether it holds truth values.
        late: Copies to a home that was not free in time.
    """

    def __init__(self, straight: Straight) -> None:
        steps, self._homes, self._memory = straight.steps, straight.homes, straight.slots
        self._end = len(steps)
        self._last_use = {operand: number for number, step in enumerate(steps) for operand in step.operands}
        self._at = dict(straight.memory)
        # Homes by the step after which they may be written to, and by the one that makes what belongs there. A home of
        # another type than the arithmetic's is written by `convert`, and no place for values in between.
        self._opens = {slot: self._last_use.get(value, -1) for value, slot in straight.memory.items()}
        made = {step.value: number for number, step in enumerate(steps) if step.function not in (convert, write)}
        self._closes = {home: made[value] for value, home in straight.homes.items() if value in made}
        self._free: dict[bool, list[int]] = {False: [], True: []}
        self.scratch: list[bool] = []
        self.late: list[Instruction] = []

    def place(self, number: int, step: Step) -> Instruction:
        """The step with its slots. Steps come in order."""
        # `choose` writes its result before it has read all: it may stand in for its last operand alone.
        spoiled = {self._at.get(operand) for operand in step.operands[:2]} if step.function is choose else set()
        out = self._home(number, step, spoiled)
        if out is None:
            out = self._scratch(number, step, spoiled)
        operands = tuple(self._at.get(operand, ~operand) for operand in step.operands)
        for operand in set(step.operands):
            slot = self._at.get(operand, -1)
            if slot >= self._memory and slot != out and self._last_use[operand] == number:
                self._free[self.scratch[slot - self._memory]].append(slot)
        self._at[step.value] = out
        return Instruction(step.function, operands, out)

    def _home(self, number: int, step: Step, spoiled: set[int | None]) -> int | None:
        """Its own, or one that is lent to it; None where none is free."""
        if step.value in self._homes:
            home = self._homes[step.value]
            return home if self._opens.get(home, -1) <= number and home not in spoiled else None
        until = self._last_use.get(step.value, number)
        for home, closes in self._closes.items():
            if self._opens.get(home, -1) <= number and until <= closes and home not in spoiled and not step.boolean:
                self._opens[home] = until
                return home
        return None

    def _scratch(self, number: int, step: Step, spoiled: set[int | None]) -> int:
        """That of an operand which is not read any more, or a free one, or a new one."""
        slots = [self._at.get(operand, -1) for operand in step.operands if self._last_use[operand] == number]
        scratch = [slot for slot in slots if slot >= self._memory and slot not in spoiled]
        reusable = [slot for slot in scratch if self.scratch[slot - self._memory] == step.boolean]
        if reusable or self._free[step.boolean]:
            out = reusable[0] if reusable else self._free[step.boolean].pop()
        else:
            out = self._memory + len(self.scratch)
            self.scratch.append(step.boolean)
        if step.value in self._homes:
            self.late.append(Instruction(convert, (out,), self._homes[step.value]))
            self._last_use[step.value] = self._end
        return out
