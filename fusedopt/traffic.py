"""What a step of a traced rule moves: the arrays that it reads and writes, and their bytes."""

from __future__ import annotations

import dataclasses

import ml_dtypes  # noqa: F401  # makes "bfloat16" a name that NumPy knows
import numpy as np

from fusedopt.statements import INPUT
from fusedopt.storage import BLOCK, Kept, Storage
from fusedopt.tracing import Traced


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Names of the arrays of a step: `p`, `g` and the states.

    Attributes:
        read: Those that some result is made of; those that a stage reads before the update are there once more.
        written: Those that get another value. The gradient is none of them.
    """

    read: tuple[str, ...]
    written: tuple[str, ...]

    def bytes(self, itemsize: int = 4) -> int:
        """Moved for each parameter, where all arrays have elements of so many bytes."""
        return itemsize * (len(self.read) + len(self.written))


def traffic(traced: Traced) -> Traffic:
    """Of one step, after the first."""
    statements = traced.body.statements
    names = {number: s.value.removeprefix("s.") for number, s in enumerate(statements) if s.operation == INPUT}
    results = {name: number for name, number in traced.body.results.items() if name != "g"}
    written = {name: number for name, number in results.items() if names.get(number) != name}
    needed = set(written.values())
    for number in reversed(range(len(statements))):
        if number in needed:
            needed |= set(statements[number].operands)
    arrays = ("p", "g", *traced.states)
    read = {names[number] for number in needed if number in names}
    return Traffic((*summed(traced), *(a for a in arrays if a in read)), tuple(a for a in arrays if a in written))


def bytes_moved(traced: Traced, storage: Storage) -> float:
    """Of one step for each parameter, after the first, where arrays are kept so; a scale is shared by its block."""
    moved, kept = traffic(traced), dict(zip(("p", "g", *traced.states), storage.streams))
    loaded = (_bytes_of(kept[a]) - (_itemsize(kept[a].dtype) if kept[a].finer == "float32" else 0) for a in moved.read)
    return sum(loaded) + sum(_bytes_of(kept[a]) for a in moved.written)


def _bytes_of(kept: Kept) -> float:
    """Of an element, in both of a stream's arrays."""
    beside = _itemsize(kept.beside) if kept.beside else 0
    return _itemsize(kept.dtype) + (beside / BLOCK if kept.codes else beside)


def _itemsize(dtype: str) -> int:
    return int(np.dtype(dtype).itemsize)


def summed(traced: Traced) -> tuple[str, ...]:
    """The arrays that the launches before the update read, once for each of these."""
    arrays = ("p", "g", *traced.states)
    return tuple(a for stage in traced.stages for a in arrays if {a, f"s.{a}"} & stage.body.inputs)
