"""float32 values as one byte each, in blocks with a scale: tapered floats, rounded up or down at random.

`docs/state_codes.md` has the code in a formula, and compares it with others.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from fusedopt.philox import Words
from fusedopt.rounding import EXPONENT, NAN, SIGN
from fusedopt.spare import spare
from fusedopt.storage import BLOCK, Kept

Array = np.ndarray[Any, Any]

SMALLEST_SCALE = np.uint32(127 - 80 << 23)  # the bits of 2^-80: all magnitudes below it are normal numbers


@dataclasses.dataclass(frozen=True)
class Code:
    """Numbers for the magnitudes from 0 to 1: how far the bits of one are below a ceiling, as a float of few bits.

    So the quarters of the numbers have 2, 3, 4 and 5 bits of mantissa, the finest up to 1, and each coarser one twice
    the octaves. 0 is none of them: its number is 0.

    Attributes:
        signed: Whether the byte's highest bit is a sign.
        octaves: Of the finest quarter, and from the ceiling down to 1.
        dropped: Bits of the mantissa of a depth, as a float32, that a number has not.
    """

    signed: bool
    octaves: int
    dropped: int

    @property
    def largest(self) -> int:
        """The number of 1."""
        return 127 if self.signed else 255

    @property
    def ceiling(self) -> int:
        """Bits of a float32, above those of 1."""
        return 127 + self.octaves << 23

    @property
    def nearest(self) -> int:
        """The bits of the depth of 1 as a float32."""
        return 127 + 22 + self.octaves << 23

    @functools.cached_property
    def smallest(self) -> np.float32:
        """The magnitude of the number 1."""
        smallest: np.float32 = self.magnitudes(np.ones(1, np.int32))[0]
        return smallest

    def magnitudes(self, numbers: Array) -> Array:
        """Of numbers as int32, but for 0."""
        depths = (np.int32(self.nearest) + (np.int32(self.largest) - numbers << np.int32(self.dropped))).view(
            np.float32
        )
        magnitudes: Array = (np.int32(self.ceiling) - depths.astype(np.int32)).view(np.float32)
        return magnitudes


# What divides m reaches as far down as m does: a root of v, with twice the octaves, or a magnitude, with as many. Else
# noise in a small m would be divided by what is far smaller.
CODES = {"signed": Code(True, 1, 18), "unsigned": Code(False, 2, 17), "magnitude": Code(False, 1, 17)}


@functools.cache
def values_of(code: Code) -> Array:
    """float32 values of all bytes, for a scale of 1."""
    numbers = np.arange(256, dtype=np.int32) & code.largest
    magnitudes = np.where(numbers > 0, code.magnitudes(numbers), np.float32(0))
    values: Array = np.where(np.arange(256) > code.largest, -magnitudes, magnitudes)
    return values


def decoded(codes: Array, scales: Array, code: Code, to: Array) -> None:
    """The values of codes, with a scale for each, into an array of float32."""
    np.take(values_of(code), codes, out=to, mode="clip")  # into `to` itself: other modes make a copy
    to *= scales


def scales_of(magnitudes: Array) -> Array:
    """The scale of each row of a matrix of the bits of magnitudes: NaN where one is not finite, 0 where all are 0."""
    largest = np.maximum.reduce(magnitudes, axis=1)
    scales = np.where(largest == 0, largest, np.maximum(largest, SMALLEST_SCALE))
    as_float: Array = np.where(largest >= EXPONENT, NAN, scales).view(np.float32)
    return as_float


def encode_blocks(values: Array, codes: Array, scales: Array, code: Code, noise: Words) -> None:
    """The codes of a flat array's values, and the scales of its blocks.

    Args:
        noise: 16 random bits for each value, which are written over.
    """
    padded = spare("first", values, len(scales) * BLOCK)
    bits = padded[: len(values)]
    np.bitwise_and(values.view(np.uint32), ~SIGN, out=bits)
    padded[len(values) :] = 0
    scales[...] = scales_of(padded.reshape(-1, BLOCK))
    magnitudes = bits.view(np.float32)
    with np.errstate(all="ignore"):
        inverses = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
        magnitudes *= spread(inverses, 0, len(values))
    if np.isnan(scales).any():
        magnitudes[np.isnan(spread(scales, 0, len(values)))] = 0
    small, least = _least(magnitudes, code, noise)
    codes[...] = _numbers(magnitudes, code, noise)
    codes *= ~small
    codes += least
    if code.signed:  # 0 has no sign, in a block with a NaN least of all: that of a NaN differs from chip to chip
        negative = values < 0
        negative &= codes != 0
        codes |= negative.view(np.uint8) << np.uint8(7)


def _least(magnitudes: Array, code: Code, noise: Words) -> tuple[Array, Array]:
    """Which magnitudes are below that of the number 1, and which of these have that number."""
    small = magnitudes < code.smallest
    if not code.signed:  # what is not 0 stays so: m / sqrt(v) would be infinite
        return small, small & (magnitudes > 0)
    chances = spare("second", noise).view(np.float32)  # with a sign, on average
    chances[...] = noise
    chances += np.float32(0.5)
    chances *= np.float32(code.smallest * 2.0**-16)
    return small, small & (magnitudes > chances)


def _numbers(magnitudes: Array, code: Code, noise: Words) -> Array:
    """The numbers of those that are not small, as int32; magnitudes and noise are written over."""
    depths = spare("second", magnitudes).view(np.int32)
    np.subtract(np.int32(code.ceiling), magnitudes.view(np.int32), out=depths)
    magnitudes[...] = depths
    bits, added = magnitudes.view(np.int32), noise.view(np.int32)
    added <<= np.int32(code.dropped - 16)
    bits -= np.int32(code.nearest - (1 << code.dropped - 17))  # half of the noise's step more: without a mean
    bits += added
    bits >>= np.int32(code.dropped)
    np.maximum(bits, np.int32(0), out=bits)
    np.subtract(np.int32(code.largest), bits, out=bits)
    return bits


def spread(scales: Array, first: int, last: int) -> Array:
    """For each of some elements the scale of its block, of scales from that of the first one on."""
    return np.repeat(scales, BLOCK)[first % BLOCK : first % BLOCK + last - first]


def encoded_constant(value: float, kept: Kept) -> tuple[int, float]:
    """The code of a value in a block of nothing else, and its scale."""
    codes, scales = np.zeros(1, np.uint8), np.zeros(1, np.float32)
    middle = np.full(1, 0x8000, np.uint32)  # no chance: to the nearest
    encode_blocks(np.full(1, value, np.float32), codes, scales, CODES[kept.codes], middle)
    return int(codes[0]), float(scales[0])
