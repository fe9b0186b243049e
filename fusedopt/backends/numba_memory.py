"""Elements at an address, read and written by numba's loops: widened to the arithmetic's type, rounded at the store."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

TYPES: dict[str, Any] = {
    "float32": ir.FloatType(),
    "float64": ir.DoubleType(),
    "float16": ir.HalfType(),
    "bfloat16": ir.IntType(16),
}


@functools.cache
def reader(stored: str, real: str) -> Any:
    """`read(address, index)` of an array of `stored`: the element as a `real`."""

    @intrinsic
    def read(typing_context: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _widened(builder, builder.load(_place(builder, arguments, stored), align=1), stored, TYPES[real])

        return getattr(types, real)(types.int64, types.int64), generate

    return read


@functools.cache
def writer(stored: str, real: str) -> Any:
    """`write(address, index, value)` of a `real` to an array of `stored`."""

    @intrinsic
    def write(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            narrow = _narrowed(builder, arguments[2], stored, TYPES[real])
            builder.store(narrow, _place(builder, arguments, stored), align=1)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, getattr(types, real)), generate

    return write


def _place(builder: Any, arguments: Any, stored: str) -> Any:
    """A pointer to the element."""
    return builder.gep(builder.inttoptr(arguments[0], TYPES[stored].as_pointer()), [arguments[1]])


def _widened(builder: Any, value: Any, stored: str, real: Any) -> Any:
    if stored == "bfloat16":  # the upper half of a float32
        bits = builder.shl(builder.zext(value, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, real)
    return value if value.type == real else builder.fpext(value, real)


def _narrowed(builder: Any, value: Any, stored: str, real: Any) -> Any:
    """Rounded to the nearest, to even in the middle."""
    if stored == "bfloat16":
        return _narrowed_to_bfloat16(
            builder, builder.bitcast(value, ir.IntType(32)), builder.fcmp_unordered("uno", value, value)
        )
    return value if TYPES[stored] == real else builder.fptrunc(value, TYPES[stored])


def _narrowed_to_bfloat16(builder: Any, bits: Any, nan: Any) -> Any:
    word, half = ir.IntType(32), ir.IntType(16)
    odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF))), ir.Constant(word, 16))
    # Adding to a NaN could carry into infinity.
    return builder.select(nan, ir.Constant(half, 0x7FC0), builder.trunc(rounded, half))
