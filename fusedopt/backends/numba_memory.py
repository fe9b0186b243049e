"""Elements at an address, read and written by numba's loops: widened to the arithmetic's type, rounded at the store.

Each function is made for one way to keep a stream.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import types
from numba.extending import intrinsic

from fusedopt.backends import numba_formats as formats
from fusedopt.backends.llvm_values import FLOAT, WORD, Value
from fusedopt.backends.numba_formats import TYPES
from fusedopt.storage import Kept


class Memory:
    """An array at an address."""

    def __init__(self, builder: Any, address: Any, kind: Any) -> None:
        self._builder = builder
        self._start = builder.inttoptr(address, kind.as_pointer())

    def load(self, index: Any) -> Value:
        return Value(self._builder, self._builder.load(self._place(index), align=1))

    def store(self, value: Value, index: Any) -> None:
        self._builder.store(value.value, self._place(index), align=1)

    def _place(self, index: Any) -> Any:
        return self._builder.gep(self._start, [index])


@functools.cache
def reader(kept: Kept, real: str) -> Any:
    """`read(address, beside, index)` of a stream without codes: the element as a `real`."""

    @intrinsic
    def read(typing_context: Any, address: Any, beside: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at, other_at, place = arguments
            if not kept.finer:
                stored = Memory(builder, at, TYPES[kept.dtype]).load(place)
                return formats.widened(stored, kept.dtype, TYPES[real]).value
            other = Memory(builder, other_at, TYPES[kept.beside]).load(place)
            if kept.finer == "float32":
                return other.value
            stored = Memory(builder, at, TYPES[kept.dtype]).load(place)
            if kept.finer == "kahan":
                lost = formats.widened(other, kept.dtype, FLOAT)
                return (formats.widened(stored, kept.dtype, FLOAT) + lost).value
            return formats.joined(stored, other).value

        return getattr(types, real)(types.int64, types.int64, types.int64), generate

    return read


@functools.cache
def writer(kept: Kept, real: str, stream: int) -> Any:
    """`write(address, beside, index, value, drawn, place)` of a `real` to a stream without codes.

    Random words are at the address `drawn`, and the element's at `place` of them.

    Args:
        stream: Whose noise it is.
    """

    @intrinsic
    def write(typing_context: Any, address: Any, beside: Any, index: Any, value: Any, drawn: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at, other_at, index, number, drawn_at, place = arguments
            value = Value(builder, number)
            noise = None
            if kept.stochastic:
                noise = formats.noise(Memory(builder, drawn_at, WORD).load(place), stream)
            memory = Memory(builder, at, TYPES[kept.dtype])
            if kept.finer in ("split", "split24"):
                high, below = formats.split(value, TYPES[kept.beside], noise)
                memory.store(high, index)
                Memory(builder, other_at, TYPES[kept.beside]).store(below, index)
                return context.get_dummy_value()
            rounded = (
                formats.narrowed(value, kept.dtype)
                if noise is None
                else formats.narrowed_stochastically(value, kept.dtype, noise)
            )
            memory.store(rounded, index)
            if kept.finer == "float32":
                Memory(builder, other_at, FLOAT).store(value, index)
            elif kept.finer == "kahan":
                lost = value - formats.widened(rounded, kept.dtype, FLOAT)
                Memory(builder, other_at, TYPES[kept.dtype]).store(formats.narrowed(lost, kept.dtype), index)
            return context.get_dummy_value()

        return types.none(
            types.int64, types.int64, types.int64, getattr(types, real), types.int64, types.int64
        ), generate

    return write
