"""float32 values as one byte each, in blocks with a scale: tapered floats, rounded up or down at random.

`docs/state_codes.md` has the code in a formula, and compares it with others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fusedopt.philox import Words
from fusedopt.rounding import EXPONENT, NAN, SIGN
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

    @property
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


# The octaves of v are twice those of m: then sqrt(v) reaches as far down as m does.
CODES = {"signed": Code(True, 1, 18), "unsigned": Code(False, 2, 17)}


def decoded(codes: Array, scales: Array, code: Code, to: Array) -> None:
    """The values of codes, with a scale for each, into an array of float32."""
    numbers = (codes & np.uint8(code.largest)).astype(np.int32)
    magnitudes = np.where(numbers > 0, code.magnitudes(numbers), np.float32(0))
    if code.signed:
        signs = (codes & np.uint8(0x80)).astype(np.uint32) << np.uint32(24)
        magnitudes = (magnitudes.view(np.uint32) | signs).view(np.float32)
    np.multiply(magnitudes, scales, to)


def scales_of(values: Array) -> Array:
    """The scale of each row of a matrix of float32: NaN where a value is not finite, 0 where all are zero."""
    largest = (values.view(np.uint32) & ~SIGN).max(axis=1, initial=0)
    scales = np.where(largest == 0, largest, np.maximum(largest, SMALLEST_SCALE))
    as_float: Array = np.where(largest >= EXPONENT, NAN, scales).view(np.float32)
    return as_float


def encoded(values: Array, scales: Array, code: Code, noise: Words, to: Array) -> None:
    """The codes of values, with a scale and 16 random bits for each, into an array of bytes."""
    with np.errstate(all="ignore"):
        inverses = np.where(scales > 0, np.float32(1) / scales, np.float32(0))  # of NaN, too
        magnitudes = np.where(inverses > 0, np.abs(values) * inverses, np.float32(0))
    odd = (noise << np.uint32(1) | np.uint32(1)).view(np.int32)  # without a mean, though there are but 16 bits
    depths = (np.int32(code.ceiling) - magnitudes.view(np.int32)).astype(np.float32).view(np.int32)
    added = odd << np.int32(code.dropped - 17)
    numbers = np.int32(code.largest) - (depths - np.int32(code.nearest) + added >> np.int32(code.dropped))
    # What is not 0 stays so where it is not signed: m / sqrt(v) would be infinite. With a sign, on average.
    least = code.smallest * (odd * np.float32(2.0**-17)) if code.signed else np.float32(0)
    numbers = np.where(magnitudes < code.smallest, magnitudes > least, np.minimum(numbers, code.largest))
    if code.signed:
        # 0 has no sign, in a block with a NaN least of all: that of a NaN differs from chip to chip.
        numbers = np.where((numbers > 0) & (values < 0), numbers | np.int32(0x80), numbers)
    to[...] = numbers


def encode_blocks(values: Array, codes: Array, scales: Array, code: Code, noise: Words) -> None:
    """The codes of a flat array's values, and the scales of its blocks."""
    padded = np.zeros(len(scales) * BLOCK, np.float32)
    padded[: len(values)] = values
    scales[...] = scales_of(padded.reshape(-1, BLOCK))
    encoded(values, spread(scales, 0, len(values)), code, noise, codes)


def spread(scales: Array, first: int, last: int) -> Array:
    """For each of some elements the scale of its block, of scales from that of the first one on."""
    return np.repeat(scales, BLOCK)[first % BLOCK : first % BLOCK + last - first]


def encoded_constant(value: float, kept: Kept) -> tuple[int, float]:
    """The code of a value in a block of nothing else, and its scale."""
    codes, scales = np.zeros(1, np.uint8), np.zeros(1, np.float32)
    middle = np.full(1, 0x8000, np.uint32)  # no chance: to the nearest
    encode_blocks(np.full(1, value, np.float32), codes, scales, CODES[kept.codes], middle)
    return int(codes[0]), float(scales[0])
