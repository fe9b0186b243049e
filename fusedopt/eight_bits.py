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


CODES = {"signed": Code(True, 15, 3), "unsigned": Code(False, 31, 3)}


def decoded(codes: Array, scales: Array, code: Code, to: Array) -> None:
    """The values of codes, with a scale for each, into an array of float32."""
    magnitudes = codes & np.uint8(0x7F) if code.signed else codes
    small = magnitudes < 1 << code.mantissa
    whole = magnitudes.astype(np.uint32) + (small.astype(np.uint32) << np.uint32(code.mantissa))
    values = (whole + np.uint32(code.offset) << np.uint32(code.dropped)).view(np.float32)
    values = np.where(small, values - code.smallest, values)
    if code.signed:
        values = (values.view(np.uint32) | (codes & np.uint8(0x80)).astype(np.uint32) << np.uint32(24)).view(np.float32)
    np.multiply(values, scales, to)


def scales_of(values: Array) -> Array:
    """The scale of each row of a matrix of float32: NaN where a value is not finite, 0 where all are zero."""
    largest = (values.view(np.uint32) & ~SIGN).max(axis=1, initial=0)
    # The exponent of the largest as it may be rounded up: that never has to be cut.
    exponent = np.clip(largest + np.uint32(1 << 20) & EXPONENT, np.uint32(0x00800000), np.uint32(0x7F000000))
    scales = np.where(largest == 0, np.uint32(0), np.where(largest >= EXPONENT, NAN, exponent))
    as_float: Array = scales.view(np.float32)
    return as_float


def encoded(values: Array, scales: Array, code: Code, noise: Words, to: Array) -> None:
    """The codes of values, with a scale and 16 random bits for each, into an array of bytes."""
    with np.errstate(all="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))  # of NaN, too
        fractions = np.where(inverse > 0, np.abs(values) * inverse, np.float32(0))
    small = fractions < code.smallest
    raised = np.where(small, fractions + code.smallest, fractions)  # with the steps of what is smallest
    bits = raised.view(np.uint32) + (noise << np.uint32(code.dropped - 16))
    lifted = np.where(small, np.uint32(1 << code.mantissa), np.uint32(0))
    codes = np.minimum((bits >> np.uint32(code.dropped)) - np.uint32(code.offset) - lifted, np.uint32(code.largest))
    if code.signed:
        codes |= (values.view(np.uint32) & SIGN) >> np.uint32(24)
    else:
        codes = np.maximum(codes, fractions > 0)  # v that is not 0 stays so: m / sqrt(v) would be infinite
    to[...] = codes


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
