"""float32 values as one byte each, in blocks with a scale: 8-bit floats, rounded up or down at random.

A scale is a power of two, so that only the rounding to 3 bits after the point loses anything, and all devices have the
same bits. `docs/state_codes.md` compares it with other codes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fusedopt.philox import Words
from fusedopt.rounding import EXPONENT, NAN, SIGN
from fusedopt.spare import spare
from fusedopt.storage import BLOCK, Kept

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Code:
    """An 8-bit float below 2, with gradual underflow to zero: 2^(e - E) (1 + m/8), and m/8 2^(1 - E) where e is 0.

    Attributes:
        signed: Whether the highest bit is the sign.
        exponents: E, the largest e.
        mantissa: Bits of m.
    """

    signed: bool
    exponents: int
    mantissa: int

    @property
    def largest(self) -> int:
        """The code of the largest value."""
        return 127 if self.signed else 255

    @property
    def dropped(self) -> int:
        """Bits of a float32's mantissa that it has not."""
        return 23 - self.mantissa

    @property
    def offset(self) -> int:
        """What a code lacks of the first bits of the float32 of its value."""
        return 127 - self.exponents << self.mantissa

    @property
    def smallest(self) -> np.float32:
        """The smallest value with all bits of its mantissa, 2^(1 - E)."""
        smallest: np.float32 = np.float32(2.0 ** (1 - self.exponents))
        return smallest

    @property
    def lowest(self) -> np.uint32:
        """The bits of the smallest scale: with it all values of codes are float32's, the smallest one 2^-149."""
        lowest: np.uint32 = np.uint32(max(1, self.exponents + self.mantissa - 23) << 23)
        return lowest


CODES = {"signed": Code(True, 15, 3), "unsigned": Code(False, 31, 3)}
LEADING = np.uint32(1 << 23)  # one more in a float32's exponent
HIGHEST = np.uint32(0x7F000000)  # the bits of the largest scale, 2^127


def decoded(codes: Array, scales: Array, code: Code, to: Array) -> None:
    """The values of codes, with a scale for each, into an array of float32."""
    bits, raised = to.view(np.uint32), spare("raised", to)
    bits[...] = codes & np.uint8(0x7F) if code.signed else codes
    bits += np.uint32(code.offset)
    bits <<= np.uint32(code.dropped)
    # Where e is 0 there is no leading 1: it is added and subtracted. That makes all other values larger.
    np.add(bits, LEADING, out=raised)
    without = raised.view(np.float32)
    without -= code.smallest
    np.minimum(to, without, out=to)
    to *= scales
    if code.signed:
        signs = spare("raised", to).view(np.int32)
        signs[...] = codes.view(np.int8)
        signs &= SIGN.view(np.int32)
        bits |= signs.view(np.uint32)


def scales_of(magnitudes: Array, code: Code) -> Array:
    """The scale of each row of a matrix of the bits of magnitudes: NaN where one is not finite, 0 where all are 0."""
    largest = np.maximum.reduce(magnitudes, axis=1)
    # The exponent of the largest as it may be rounded up: that never has to be cut.
    scales = np.clip(largest + np.uint32((1 << code.dropped) - 1) & EXPONENT, code.lowest, HIGHEST)
    scales[largest == 0] = 0
    scales[largest >= EXPONENT] = NAN
    as_float: Array = scales.view(np.float32)
    return as_float


def encode_blocks(values: Array, codes: Array, scales: Array, code: Code, noise: Words) -> None:
    """The codes of a flat array's values, and the scales of its blocks.

    Args:
        noise: 16 random bits for each value, which are written over.
    """
    padded = spare("magnitudes", values, len(scales) * BLOCK)
    magnitudes = padded[: len(values)]
    np.bitwise_and(values.view(np.uint32), ~SIGN, out=magnitudes)
    padded[len(values) :] = 0
    scales[...] = scales_of(padded.reshape(-1, BLOCK), code)
    _round(magnitudes, scales, code, noise, codes)
    if code.signed:
        codes |= np.signbit(values).view(np.uint8) << np.uint8(7)
    if np.isnan(scales).any():  # the signs of NaNs differ by chip
        codes[np.isnan(spread(scales, 0, len(values)))] = 0


def _round(magnitudes: Words, scales: Array, code: Code, noise: Words, to: Array) -> None:
    """The codes of the bits of magnitudes, which are written over."""
    zero = magnitudes == 0
    fractions, raised = magnitudes.view(np.float32), spare("raised", magnitudes)
    with np.errstate(all="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
        fractions *= spread(inverse, 0, len(magnitudes))
    np.add(fractions, code.smallest, out=raised.view(np.float32))
    raised -= LEADING
    np.maximum(magnitudes, raised, out=magnitudes)  # what is below `smallest` has all bits of a code, the first one 0
    noise <<= np.uint32(code.dropped - 16)
    magnitudes += noise
    magnitudes >>= np.uint32(code.dropped)
    magnitudes -= np.uint32(code.offset)
    if (scales.view(np.uint32) == HIGHEST).any():
        np.minimum(magnitudes, np.uint32(code.largest), out=magnitudes)
    to[...] = magnitudes
    if not code.signed:
        np.maximum(to, ~zero, out=to)  # v that is not 0 stays so: m / sqrt(v) would be infinite


def spread(scales: Array, first: int, last: int) -> Array:
    """For each of some elements the scale of its block, of scales from that of the first one on."""
    return np.repeat(scales, BLOCK)[first % BLOCK : first % BLOCK + last - first]


def encoded_constant(value: float, kept: Kept) -> tuple[int, float]:
    """The code of a value in a block of nothing else, and its scale."""
    codes, scales = np.zeros(1, np.uint8), np.zeros(1, np.float32)
    middle = np.full(1, 0x8000, np.uint32)  # no chance: to the nearest
    encode_blocks(np.full(1, value, np.float32), codes, scales, CODES[kept.codes], middle)
    return int(codes[0]), float(scales[0])
