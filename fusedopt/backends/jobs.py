"""Spans of NumPy arrays made ready for a step on the CPU, and what a step, or a stage of one, starts from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fusedopt.backends.kept import Noise, Piece
from fusedopt.backends.schedule import uniform_conditions
from fusedopt.backends.scratch import array_at
from fusedopt.layout import HasRule, Span, row_length
from fusedopt.rounding import narrow
from fusedopt.rules import Values
from fusedopt.statements import CONSTANT, INPUT, WHERE
from fusedopt.storage import BLOCK, Storage
from fusedopt.tracing import Traced, trace

Array = np.ndarray[Any, Any]


class Kind:
    """What spans of one group, form and storage have in common: a traced rule, and what is made of it.

    Attributes:
        converted: For each stream whether what is read and written is kept in another way than as values of the
            arithmetic's type.
        masters: Whether the parameter's values are those of a master.
    """

    def __init__(self, group: HasRule, shape: tuple[int, ...], storage: Storage) -> None:
        self.group, self._shape, self.storage = group, shape, storage
        self.real: type = np.float64 if storage.real == "float64" else np.float32
        self.masters = storage.parameter.finer == "float32"
        self.converted = tuple(not kept.is_plain(storage.real) for kept in storage.streams)
        if self.masters:  # they are updated where they are, and rounded from there
            self.converted = (False, *self.converted[1:])
        self.traced = trace(group.rule.form(shape))
        self._uniform = {id(one): _Uniform(one, self.real) for one in (*self.traced.stages, self.traced)}
        self.refresh()

    def refresh(self) -> None:
        rule = self.group.rule.form(self._shape)
        self.rule, self.counts = rule.in_float64(), rule.counts

    def begin(self, row: Array, grad_scale: float, sums: dict[str, Any], stage: Traced | None = None) -> Begun:
        """What a step, or a stage of one, needs to know of the spans with this counter and these sums."""
        traced = stage or self.traced
        names = traced.scalar_state
        step = row[0] + 1
        a = Values(**{name: row[1 + i] for i, name in enumerate(names)})
        scalars = vars(self.rule.constants(step, a, np.float64(grad_scale), Values(**sums)))
        after = {1 + i: scalars[name] for i, name in enumerate(names) if name in scalars}
        if self.counts:
            after[0] = step
        constants: Array = np.array([scalars[name] for name in traced.constants], self.real)
        uniform = self._uniform[id(traced)]
        values = uniform.values(constants)
        return Begun(self, values, tuple(bool(values[number]) for number in uniform.conditions), after)


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
    """A span made ready: its kind, its arrays, its counters, and what stages find out about it.

    Attributes:
        memory: Its arrays.
        row: Elements of a slice along the first axis.
        rows: What stages find out for each of these slices, an array each.
        sums: What they sum over the whole span, by name.
    """

    def __init__(self, span: Span, kind: Kind) -> None:
        counters = span.counters.reshape(span.parameters, -1)
        self.kind, self.size = kind, span.size
        self.counter = counters[0]  # of all its parameters, which have had the same steps
        self.columns = counters.T if span.parameters > 1 else self.counter  # numbers are written faster than rows
        self.memory: list[Array] = [span.parameter, span.gradient, *span.states]
        self._number = span.number
        self.row = max(1, row_length(span.shape))
        self.rows: list[Array] = [np.zeros(self.size // self.row, kind.real) for _ in kind.traced.rows]
        self.sums: dict[str, Any] = {}
        streams, storage = len(kind.storage.streams), kind.storage
        beside = dict(zip(storage.beside, self.memory[streams:]))
        self._values = [beside[0], *self.memory[1:streams]] if kind.masters else self.memory[:streams]
        # Streams that are not read and written as they are: place, how it is kept, and what lies beside it, of which
        # one element is for so many.
        self._kept = [
            (place, kept, beside.get(place, self.memory[place]), BLOCK if kept.codes else 1)
            for place, kept in enumerate(storage.streams)
            if (kept.beside or kept.stochastic) and not (kind.masters and place == 0)
        ]

    def move(self, address: int) -> None:
        """Read the gradient from elsewhere."""
        self.memory[1] = self._values[1] = array_at(address, self.size, self.memory[1].dtype)

    def slots(self, traced: Traced, first: int, last: int) -> list[Any]:
        """These elements of its streams, and, where a launch reads that, for each what was found out about its row."""
        slots = self._streams(first, last)
        if traced.rows:
            edges = np.arange(first // self.row, -(-last // self.row) + 1) * self.row
            within = np.clip(edges, first, last)
            counts = within[1:] - within[:-1]
            of = slice(first // self.row, first // self.row + len(counts))
            slots += [np.repeat(row[of], counts) for row in self.rows]
        return slots

    def publish(self, first: int, last: int) -> None:
        """Round these elements of the master into the parameter."""
        narrow(self._values[0][first:last], self.memory[0][first:last])

    def _streams(self, first: int, last: int) -> list[Any]:
        streams: list[Any] = [array[first:last] for array in self._values]
        noise = self._noise(first, last) if self.kind.storage.draws else None
        for place, kept, beside, unit in self._kept:
            some = beside[first // unit : -(-last // unit)]
            streams[place] = Piece(kept, streams[place], some, first, noise, max(0, place - 1))
        return streams

    @property
    def drawn_for(self) -> tuple[int, int, int]:
        """What random words of this step depend on beside the element: the step, the parameter's number, the seed."""
        return int(self.counter[0]) + 1, self._number, int(self.kind.rule.seed)

    def _noise(self, first: int, last: int) -> Noise:
        step, number, seed = self.drawn_for
        return Noise(seed, step, number, first, last - first)


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
