"""What backends are given: memory, spans of it, and the chunks that a launch is cut into; and how tensors lie in it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fusedopt.storage import Storage

if TYPE_CHECKING:
    from fusedopt.rules.rule import Rule
    from fusedopt.sparse_gradient import SparseGradient

ALIGNMENT = 256  # bytes: every tensor starts at a multiple, the granularity of a CUDA allocation
SEGMENT = 4096  # elements that are added up together, in 32 tiles of 128: what the kernel's loops go by


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


@dataclasses.dataclass(eq=False)
class RuleGroup:
    """A rule where a param group is asked for; the numbers are the rule's."""

    rule: Rule
    sources: dict[int, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TensorSpan:
    """One tensor as a `Span`."""

    group: HasRule
    size: int
    shape: tuple[int, ...]
    storage: Storage
    parameter: Any
    gradient: Any
    states: Sequence[Any]
    counters: Any
    number: int = 0
    parameters: int = 1


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
