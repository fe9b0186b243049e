"""Where things lie: flat buffers, spans over neighbouring parameters, and the chunks that a launch is cut into."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fusedopt.rounding import widen
from fusedopt.storage import MASTER, Storage, blocks_of, keys_of, storage_of
from fusedopt.stored_arrays import StoredArray, stored_arrays

if TYPE_CHECKING:
    from fusedopt.parameter import Parameter
    from fusedopt.rules.rule import Rule
    from fusedopt.sparse_gradient import SparseGradient

ALIGNMENT = 256  # bytes: every tensor starts at a multiple, the granularity of a CUDA allocation
SEGMENT = 4096  # elements that are added up together, in 32 tiles of 128: what the kernel's loops go by
NO_HISTORY = 0  # the cohort of parameters that no step has been attempted on


@dataclasses.dataclass
class Changes:
    """Counts of what the user changed; an optimizer compares them, rather than look at every parameter and option.

    Attributes:
        gradients, hyperparameters: How often some of them changed.
        steps: How often `step` was called.
        schedules: How many are installed.
    """

    gradients: int = 0
    hyperparameters: int = 0
    steps: int = dataclasses.field(default=0, compare=False)
    schedules: int = dataclasses.field(default=0, compare=False)


class Memory(Protocol):
    """What a layout needs of a backend: where arrays are made."""

    device: str

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Any:
        """A flat array of zeros."""

    def asarray(self, array: Any) -> Any:
        """A host array as one of this memory's."""

    def host(self, array: Any) -> np.ndarray[Any, Any]:
        """A copy of an array on the host."""

    def here(self) -> AbstractContextManager[Any]:
        """Where operations on this memory's arrays belong: its device is current, and earlier launches come first."""


class HasRule(Protocol):
    """A param group, as layouts and backends see it: its hyperparameters, as they are now.

    Attributes:
        rule: With their values.
        sources: One-element arrays on the device that the kernel reads instead of the value, by the number's place in
            `Rule.number_names`; the CPU knows none.
    """

    rule: Rule
    sources: dict[int, Any]


class Span(Protocol):
    """Memory that is updated as if it were one tensor. Its arrays are flat, and any that the backend takes."""

    @property
    def group(self) -> HasRule: ...

    @property
    def size(self) -> int:
        """Elements of the parameter, of the gradient, and of each state."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter, in the order in which its elements lie; of several, flat."""

    @property
    def storage(self) -> Storage:
        """How its arrays are kept."""

    @property
    def parameter(self) -> Any: ...

    @property
    def gradient(self) -> Any: ...

    @property
    def states(self) -> Sequence[Any]:
        """In the order of the rule's kept states, then what lies beside the parameter and the states, as
        `Storage.beside` says."""

    @property
    def counters(self) -> Any:
        """float64, a row for each parameter: its step, its scalar state, and a place for the kernel's ticket."""

    @property
    def parameters(self) -> int:
        """How many rows."""

    @property
    def number(self) -> int:
        """Of its first parameter in the optimizer, from 0: random numbers are drawn for it."""


def device_of(array: Any) -> str:
    """Where an array is, as backends name it: `cpu`, `cuda:0`. (CuPy's devices do not compare with text.)"""
    device = getattr(array, "device", None)
    return f"cuda:{device.id}" if device is not None and hasattr(device, "id") else str(device)


def on_device_of(array: Any) -> AbstractContextManager[Any]:
    """A context in which an array's device is current: CuPy copies to the current one, wherever an array is."""
    device: Any = getattr(array, "device", None)
    context: AbstractContextManager[Any] = device if hasattr(device, "__enter__") else contextlib.nullcontext()
    return context


def offsets_of(sizes: Sequence[int], itemsize: int) -> tuple[list[int], int]:
    """Each tensor's first element in a flat buffer, and the buffer's length, both in elements."""
    unit = ALIGNMENT // itemsize
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // unit) * unit
    return offsets, end


def row_length(shape: tuple[int, ...]) -> int:
    """Elements of a slice along the first axis of an array of this shape; of a vector there is one slice, itself."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


class Presence:
    """Which parameters of an arena have a gradient, and which are trained: all that a Parameter knows of its optimizer.

    Attributes:
        present: A byte a parameter: whether it has a gradient in the flat buffer.
        trainable: A byte a parameter: whether it requires one.
        rows: The gradients that are of some rows, by the parameter's index.
    """

    def __init__(self, count: int, changes: Changes) -> None:
        self.present, self.trainable, self._changes = bytearray(count), bytearray(count), changes
        self.rows: dict[int, SparseGradient] = {}

    def mark(self, index: int, present: bool, rows: SparseGradient | None = None) -> None:
        """Note that a parameter has a gradient now, in the flat buffer or of some rows, or none."""
        self.present[index] = present
        self.rows.pop(index, None)
        if rows is not None:
            self.rows[index] = rows
        self._changes.gradients += 1

    def train(self, index: int, trainable: bool) -> None:
        """Note that a parameter is trained from now on, or not."""
        self.trainable[index] = trainable
        self._changes.gradients += 1

    def clear(self) -> None:
        """Note that no parameter has a gradient."""
        self.present[:] = bytes(len(self.present))
        self.rows.clear()
        self._changes.gradients += 1

    @property
    def stepping(self) -> bytes:
        """A byte a parameter: whether the next step is for it."""
        both = np.frombuffer(self.present, np.uint8) & np.frombuffer(self.trainable, np.uint8)
        return both.tobytes()


class Arena:
    """The flat buffers of one group's parameters of one dtype on one device.

    Attributes:
        group: The param group, whose rule is read at each step.
        parameters: They lie in this order.
        numbers: Of each of them in the optimizer.
        data, gradients: Flat arrays; each parameter's `data` and `grad` are views of them.
        states: What is kept beside them: flat arrays by state dict key, made when a step first needs them.
        counters: float64 (parameters, 2 + scalar states): step, scalar state, and a place for the kernel's ticket.
        presence: Which parameters have a gradient, and which are trained.
        cohorts: A number a parameter; equal numbers have had the same steps attempted, so their counters are equal.
    """

    def __init__(
        self,
        memory: Memory,
        group: HasRule,
        parameters: Sequence[Parameter],
        changes: Changes,
        numbers: Sequence[int],
    ) -> None:
        self.memory, self.group, self.parameters = memory, group, tuple(parameters)
        self.numbers = tuple(numbers)
        self.dtype, self.grad_dtype = parameters[0].dtype, parameters[0].grad_dtype
        self.sizes = [parameter.size for parameter in parameters]
        unit = min(self.dtype.itemsize, self.grad_dtype.itemsize)
        self.offsets, length = offsets_of(self.sizes, unit)
        self._block_offsets, self._blocks = offsets_of([blocks_of(size) for size in self.sizes], 4)
        self.data, self.gradients = memory.zeros(length, self.dtype), memory.zeros(length, self.grad_dtype)
        self.states: dict[str, Any] = {}
        self._rule: Rule | None = None  # that `storage` and `stored` were asked of last
        self.initial = np.array([0.0, *group.rule.scalar_state.values(), 0.0])
        self.counters = memory.asarray(np.tile(self.initial, (len(parameters), 1)))
        self.presence = Presence(len(parameters), changes)
        self.cohorts = np.full(len(parameters), NO_HISTORY, np.int64)

    def _follow_rule(self) -> None:
        """Find out how things are kept with the group's rule as it is now."""
        rule, dtype, size = self.group.rule, self.dtype.name, max(self.sizes)
        if rule is not self._rule:
            self._storage = storage_of(rule, dtype, self.grad_dtype.name, size)
            self._stored = stored_arrays(rule, dtype, size)
            self._rule = rule

    @property
    def storage(self) -> Storage:
        """How the arrays of each of its parameters are kept."""
        self._follow_rule()
        return self._storage

    @property
    def stored(self) -> dict[str, StoredArray]:
        """What may lie beside parameters and gradients, by state dict key."""
        self._follow_rule()
        return self._stored

    @property
    def keys(self) -> tuple[str, ...]:
        """State dict keys of all that a step needs beside parameters and gradients, in a span's order."""
        return keys_of(self.group.rule, self.storage)

    def take_parameters(self) -> None:
        """Move the parameters' values and gradients into the buffers."""
        for index, parameter in enumerate(self.parameters):
            parameter.move_to(self.presence, index, self.view(self.data, index), self.view(self.gradients, index))

    def view(self, buffer: Any, index: int) -> Any:
        """One parameter's part of a flat buffer, in its shape."""
        start = self.offsets[index]
        return buffer[start : start + self.sizes[index]].reshape(self.parameters[index].shape)

    def part(self, key: str, index: int, buffer: Any = None) -> Any:
        """One parameter's part of what is kept under a key: in its shape, or a scale for each block.

        Args:
            buffer: A copy of the flat array that is kept, to take the part of.
        """
        buffer = self.states[key] if buffer is None else buffer
        if not self.stored[key].scales:
            return self.view(buffer, index)
        start = self._block_offsets[index]
        return buffer[start : start + blocks_of(self.sizes[index])]

    def length(self, key: str) -> int:
        """Elements of the flat buffer of what is kept under a key."""
        return self._blocks if self.stored[key].scales else len(self.data)

    def state(self, key: str) -> Any:
        """The flat buffer of what is kept under a key; when it is new, full of what it starts from."""
        if key not in self.states:
            stored = self.stored[key]
            self.states[key] = self.memory.zeros(self.length(key), np.dtype(stored.dtype))
            if stored.initial != 0:
                with self.memory.here():
                    self.states[key].fill(stored.initial)
        return self.states[key]

    def bytes_of(self, key: str) -> int:
        """Of the flat buffer of what is kept under a key, made already or not."""
        if key in self.states:
            return int(self.states[key].nbytes)
        return self.length(key) * np.dtype(self.stored[key].dtype).itemsize

    def begin(self, new: np.ndarray[Any, Any]) -> None:
        """Start what is kept of parameters without history from what the rule says now, and masters from them."""
        starting = np.flatnonzero(new & (self.cohorts == NO_HISTORY)).tolist()
        # Buffers are full of what these were when they were made.
        changing = [key for key in self.states if self.stored[key].varies]
        with self.memory.here():
            for index in starting:
                for key in changing:
                    self.part(key, index)[...] = self.stored[key].initial
            self.begin_masters(starting)

    def begin_masters(self, indices: Sequence[int]) -> None:
        """Start what keeps these parameters finer from what they are now."""
        key = self.storage.parameter.beside_key
        for index in indices if key else ():
            part = self.part(key, index, self.state(key))
            if key == MASTER:
                widen(self.view(self.data, index), part)
            else:
                part[...] = 0

    def part_cohorts(self, stepping: np.ndarray[Any, Any]) -> None:
        """Number the cohorts of those that step afresh: from here on, the others of a cohort have another history."""
        _, rank = np.unique(self.cohorts[stepping], return_inverse=True)
        self.cohorts[stepping] = self.cohorts.max(initial=NO_HISTORY) + 1 + rank

    def join_cohorts(self, histories: Sequence[object]) -> None:
        """Number the cohorts by what each parameter's counter holds; None is no history."""
        numbers: dict[object, int] = {None: NO_HISTORY}
        self.cohorts[:] = [numbers.setdefault(history, len(numbers)) for history in histories]


def arenas_of(group: Any, memories: Sequence[Memory], changes: Changes, first: int) -> list[Arena]:
    """The flat buffers of a param group: parameters on one device that are kept in the same way lie together.

    Args:
        group: A param group.
        memories: Of each of its parameters.
        first: Number of its first parameter in the optimizer.
    """
    members: dict[tuple[str, Storage], list[int]] = {}
    for place, (parameter, memory) in enumerate(zip(group["params"], memories)):
        kept = storage_of(group.rule, parameter.dtype.name, parameter.grad_dtype.name, parameter.size)
        members.setdefault((memory.device, kept), []).append(place)
    return [
        Arena(memories[some[0]], group, [group["params"][i] for i in some], changes, [first + i for i in some])
        for some in members.values()
    ]


@dataclasses.dataclass(frozen=True)
class ArenaSpan:
    """Neighbouring parameters of an arena with one history, as a span.

    Attributes:
        first, last: Indices of the first and the last parameter.
        start, stop: Elements of the flat buffers.
    """

    arena: Arena
    first: int
    last: int
    start: int
    stop: int

    def single(self) -> list[ArenaSpan]:
        """Each of the parameters by itself."""
        arena, indices = self.arena, range(self.first, self.last + 1)
        starts = [arena.offsets[index] for index in indices]
        return [ArenaSpan(arena, i, i, start, start + arena.sizes[i]) for i, start in zip(indices, starts)]

    @property
    def group(self) -> HasRule:
        return self.arena.group

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arena.parameters[self.first].shape if self.first == self.last else (self.size,)

    @property
    def storage(self) -> Storage:
        return self.arena.storage

    @property
    def parameter(self) -> Any:
        return self.arena.data[self.start : self.stop]

    @property
    def gradient(self) -> Any:
        return self.arena.gradients[self.start : self.stop]

    @property
    def states(self) -> list[Any]:
        arena = self.arena
        if arena.storage.merges:
            return [arena.state(key)[self.start : self.stop] for key in arena.keys]
        return [arena.part(key, self.first, arena.state(key)).reshape(-1) for key in arena.keys]

    @property
    def counters(self) -> Any:
        return self.arena.counters[self.first : self.last + 1]

    @property
    def parameters(self) -> int:
        return self.last - self.first + 1

    @property
    def number(self) -> int:
        return self.arena.numbers[self.first]


def spans_of(arena: Arena, stepping: np.ndarray[Any, Any]) -> list[ArenaSpan]:
    """The fewest spans that cover the stepping parameters and nothing else; one a parameter where the rule has sums, or
    the storage counts elements from its start."""
    runs: list[list[int]] = []
    merging = not arena.group.rule.stages and arena.storage.merges
    for index in np.flatnonzero(stepping).tolist():
        if merging and runs and runs[-1][1] == index - 1 and arena.cohorts[index] == arena.cohorts[index - 1]:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return [
        ArenaSpan(arena, first, last, arena.offsets[first], arena.offsets[last] + arena.sizes[last])
        for first, last in runs
    ]


CHUNK_RECORD = np.dtype([("first", "u8"), ("count", "u4"), ("span", "u4")])


def chunks_of(counts: Sequence[int], chunk: int | Sequence[int]) -> np.ndarray[Any, Any]:
    """Spans of so many elements cut into pieces of at most `chunk`; an empty span has one empty piece."""
    longest = np.broadcast_to(np.asarray(chunk, np.int64), len(counts))
    pieces = np.maximum(1, -(-np.asarray(counts, np.int64) // longest))
    table = np.zeros(int(pieces.sum()), CHUNK_RECORD)
    table["span"] = np.repeat(np.arange(len(counts)), pieces)
    place = np.arange(len(table)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    longest = longest[table["span"]]
    table["first"] = place * longest
    table["count"] = np.minimum(np.asarray(counts, np.int64)[table["span"]] - place * longest, longest)
    return table
