"""The formats of `rounding`, `eight_bits` and `philox` once more: of one element, as numba's loops compute them."""

from __future__ import annotations

from typing import Any

from fusedopt.backends.llvm_values import BYTE, DOUBLE, FLOAT, FLOAT16, HALF, WORD, Value
from fusedopt.eight_bits import SMALLEST_SCALE, Code
from fusedopt.philox import MASK, MULTIPLIERS, ROUNDS, WEYL, multiplier
from fusedopt.rounding import EXPONENT, HALF_SMALLEST, NAN, SIGN

TYPES: dict[str, Any] = {
    "float32": FLOAT,
    "float64": DOUBLE,
    "float16": FLOAT16,
    "bfloat16": HALF,
    "int16": HALF,
    "int8": BYTE,
    "uint8": BYTE,
}
MAGNITUDE = int(~SIGN)
NAN_16 = int(NAN) >> 16


def widened(stored: Value, dtype: str, real: Any) -> Value:
    """An element as the arithmetic has it."""
    if dtype == "bfloat16":  # the upper half of a float32
        return (stored.widened(WORD) << 16).seen_as(FLOAT)
    return stored if stored.type == real else stored.widened(real)


def narrowed(value: Value, dtype: str) -> Value:
    """Rounded to the nearest, to even in the middle."""
    if dtype == "bfloat16":
        bits = value.seen_as(WORD)
        rounded = bits + ((bits >> 16 & 1) + 0x7FFF) >> 16
        return (value != value).chosen(NAN_16, rounded.cut(HALF))  # adding to a NaN could carry into infinity
    return value if value.type == TYPES[dtype] else value.rounded(TYPES[dtype])


def narrowed_stochastically(value: Value, dtype: str, noise: Value) -> Value:
    """Up or down, by 16 random bits."""
    bits = value.seen_as(WORD)
    if dtype == "bfloat16":
        return (value != value).chosen(NAN_16, (bits + noise >> 16).cut(HALF))
    moved = (bits + (noise >> 3) & 0xFFFFE000).seen_as(FLOAT).rounded(FLOAT16).seen_as(HALF)
    magnitude = (bits & MAGNITUDE).seen_as(FLOAT)
    small = magnitude < float(HALF_SMALLEST)
    multiples = small.chosen(magnitude * 2.0**40, 0.0).whole() + noise >> 16
    halves = small.chosen((multiples | (bits & int(SIGN)) >> 16).cut(HALF), moved)
    return (value != value).chosen(0x7E00, halves).seen_as(FLOAT16)


def joined(high: Value, low: Value) -> Value:
    """bfloat16 and what lies beside it."""
    below: Value = low.extended(WORD) << (16 - low.type.width)
    return ((high.widened(WORD) << 16) + below).seen_as(FLOAT)


def split(value: Value, low: Any, noise: Value | None) -> tuple[Value, Value]:
    """The other way, with an integer type for what lies beside; with 8 bits, rounded to the nearest or by noise."""
    bits = value.seen_as(WORD)
    if low == BYTE:
        bits = bits + ((bits >> 8 & 1) + 0x7F if noise is None else noise >> 8)
    nan, high = value != value, (bits + 0x8000 >> 16).cut(HALF)
    below = (bits >> (16 - low.width)).cut(low)
    return nan.chosen(NAN_16, high), nan.chosen(0, below)


def decoded(code: Value, scale: Value, of: Code) -> Value:
    """The value of a code."""
    number = code.widened(WORD) & of.largest
    magnitude = (number == 0).chosen(0.0, _magnitude(number, of)) * scale
    return (
        (magnitude.seen_as(WORD) | (code.widened(WORD) & of.largest + 1) << 24).seen_as(FLOAT)
        if of.signed
        else magnitude
    )


def _magnitude(number: Value, of: Code) -> Value:
    """Of a number that is not 0, for a scale of 1."""
    depth = ((number ^ of.largest) << of.dropped) + of.nearest
    bits = depth.seen_as(FLOAT).whole()
    return (bits * -1 + of.ceiling).seen_as(FLOAT)


def scale_of(largest: Value) -> Value:
    """The scale of a block, from the bits of its largest magnitude."""
    bits = (largest < int(SMALLEST_SCALE)).chosen(int(SMALLEST_SCALE), largest)
    bits = (largest == 0).chosen(0, bits)
    return (largest >= int(EXPONENT)).chosen(int(NAN), bits).seen_as(FLOAT)


def encoded(value: Value, inverse: Value, of: Code, noise: Value) -> Value:
    """The code of a value, with 1 / scale, or 0 where that is 0 or NaN."""
    magnitude = (value.seen_as(WORD) & MAGNITUDE).seen_as(FLOAT) * inverse
    magnitude = (inverse > 0.0).chosen(magnitude, 0.0)
    depth = (magnitude.seen_as(WORD) * -1 + of.ceiling).real().seen_as(WORD)
    odd = noise << 1 | 1
    steps = (depth - of.nearest + (odd << of.dropped - 17)).shifted_down(of.dropped)
    number = steps.negative().chosen(0, steps) ^ of.largest
    least = odd.real() * float(of.smallest * 2.0**-17) if of.signed else 0.0
    number = (magnitude < float(of.smallest)).chosen((magnitude > least).widened(WORD), number)
    if of.signed:
        number = number | ((value < 0.0) & (number != 0)).widened(WORD) << 7
    return number.cut(BYTE)


def drawn(quad: Value, step: Value, number: Value, seed: Value) -> tuple[Value, Value, Value, Value]:
    """Philox's four words for four elements; arguments of 64 bits."""
    c0, c1, c2, c3 = quad & MASK, quad >> 32, step & MASK, number & MASK
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = second >> 32 ^ c1 ^ k0, second & MASK, first >> 32 ^ c3 ^ k1, first & MASK
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return c0.cut(WORD), c1.cut(WORD), c2.cut(WORD), c3.cut(WORD)


def noise(word: Value, stream: int) -> Value:
    """16 random bits of a word, others for each stream."""
    return word * multiplier(stream) >> 16
