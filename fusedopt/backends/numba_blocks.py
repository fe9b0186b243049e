"""What numba's loops do block by block: random words are drawn, and 8-bit states written once their scale is known."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fusedopt.backends import numba_formats as formats
from fusedopt.backends.llvm_values import BYTE, FLOAT, LONG, WORD, Value
from fusedopt.backends.numba_memory import Memory
from fusedopt.eight_bits import CODES
from fusedopt.storage import BLOCK

INDEX = types.int64


@intrinsic
def buffer(typing_context: Any) -> Any:
    """`buffer()`: the address of memory for the words of a block, in the loop's own frame."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = cgutils.alloca_once(builder, ir.ArrayType(WORD, BLOCK))  # type: ignore[no-untyped-call]
        return builder.ptrtoint(memory, LONG)

    return INDEX(), generate


@intrinsic
def draw(typing_context: Any, drawn: Any, place: Any, quad: Any, step: Any, number: Any, seed: Any) -> Any:
    """`draw(drawn, place, quad, step, number, seed)`: the words of a quad of elements, to a place of a buffer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = Memory(builder, arguments[0], WORD)
        found = formats.drawn(*(Value(builder, argument) for argument in arguments[2:]))
        for lane, word in enumerate(found):
            memory.store(word, builder.add(arguments[1], ir.Constant(LONG, lane)))
        return context.get_dummy_value()

    return types.none(*[INDEX] * 6), generate


@functools.cache
def loading(dtype: str) -> Any:
    """`load(address, index)` of an array of float32, or of the bits of its magnitudes for "uint32"."""

    @intrinsic
    def load(typing_context: Any, address: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if dtype == "float32":
                return Memory(builder, arguments[0], FLOAT).load(arguments[1]).value
            return (Memory(builder, arguments[0], WORD).load(arguments[1]) & formats.MAGNITUDE).value

        return getattr(types, dtype)(INDEX, INDEX), generate

    return load


@intrinsic
def store(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """`store(address, index, value)` to an array of float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        Memory(builder, arguments[0], FLOAT).store(Value(builder, arguments[2]), arguments[1])
        return context.get_dummy_value()

    return types.none(INDEX, INDEX, types.float32), generate


@functools.cache
def decoding(codes: str) -> Any:
    """`decode(address, scale, index)`: the value of a code."""

    @intrinsic
    def decode(typing_context: Any, address: Any, scale: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code = Memory(builder, arguments[0], BYTE).load(arguments[2])
            return formats.decoded(code, Value(builder, arguments[1]), CODES[codes]).value

        return types.float32(INDEX, types.float32, INDEX), generate

    return decode


@intrinsic
def scale_of(typing_context: Any, largest: Any) -> Any:
    """`scale_of(largest)`: the scale of a block, from the bits of its largest magnitude."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return formats.scale_of(Value(builder, arguments[0])).value

    return types.float32(types.uint32), generate


@functools.cache
def encoding(codes: str, stream: int) -> Any:
    """`encode(address, index, kept, drawn, place, inverse)`: the code of a value at a place of a buffer.

    Args:
        stream: Whose noise it is.
    """

    @intrinsic
    def encode(typing_context: Any, address: Any, index: Any, kept: Any, drawn: Any, place: Any, inverse: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at, index, kept_at, drawn_at, place, inverse = arguments
            value = Memory(builder, kept_at, FLOAT).load(place)
            noise = formats.noise(Memory(builder, drawn_at, WORD).load(place), stream)
            code = formats.encoded(value, Value(builder, inverse), CODES[codes], noise)
            Memory(builder, at, BYTE).store(code, index)
            return context.get_dummy_value()

        return types.none(*[INDEX] * 5, types.float32), generate

    return encode
