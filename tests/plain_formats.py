"""How numbers are kept, written out a second time: by float64 arithmetic and searches, where the library moves bits."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes  # noqa: F401  # makes "bfloat16" a name that NumPy knows
import numpy as np

from fusedopt.eight_bits import Code

MASK = 0xFFFFFFFF


def philox(counter: Sequence[int], key: Sequence[int], rounds: int) -> tuple[int, int, int, int]:
    """Philox4x32 as its paper has it, on one counter."""
    c, (k0, k1) = tuple(counter), key
    for _ in range(rounds):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = second >> 32 ^ c[1] ^ k0, second & MASK, first >> 32 ^ c[3] ^ k1, first & MASK
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return c


def noise(seed: int, step: int, number: int, stream: int, count: int) -> np.ndarray:
    """16 random bits for each element of a parameter (stream 0) or of its state k (k + 1)."""
    key = seed & MASK, seed >> 32
    quads = [philox((q & MASK, q >> 32, step, number), key, 7) for q in range(-(-count // 4))]
    words = [word for quad in quads for word in quad][:count]
    odd = 0x9E3779B1**stream
    return np.array([(word * odd & MASK) >> 16 for word in words], np.int64)


def joined(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 and a signed remainder: the formula of the issue."""
    width = 8 * low.itemsize
    bits = (high.view(np.uint16).astype(np.int64) - (low < 0)) << 16 | (
        low.astype(np.int64) & (1 << width) - 1
    ) << 16 - width
    return bits.astype(np.uint32).view(np.float32)


def split(values: np.ndarray, low: str, drawn: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """bfloat16 and the signed rest of float32 values, as int16 or, rounded to 24 bits, as int8."""
    bits = np.where(np.isnan(values), 0x7FC00000, values.view(np.uint32)).astype(np.int64)
    if low == "int8":  # 256 numbers a step, to the nearest and in the middle to the even one; or by 8 bits of noise
        step, rest = bits >> 8, bits & 0xFF
        up = (rest > 128) | ((rest == 128) & (step & 1 == 1)) if drawn is None else rest + (drawn >> 8) >= 256
        bits = np.where(np.isfinite(values), step + up << 8, bits)
    width = 8 * np.dtype(low).itemsize
    rest = (bits & 0xFFFF) >> 16 - width
    rest = np.where(rest >= 1 << width - 1, rest - (1 << width), rest)
    return ((bits >> 16) + (rest < 0)).astype(np.uint16).view("bfloat16"), rest.astype(low)


def stochastic(values: np.ndarray, dtype: str, drawn: np.ndarray) -> np.ndarray:
    """Half-precision values, of the two around each the one away from zero where the noise and its share make 1."""
    with np.errstate(all="ignore"):
        magnitudes = np.abs(values).astype(np.float64)
        nearest = magnitudes.astype(dtype)
        below = np.where(nearest.astype(np.float64) > magnitudes, nearest.view(np.uint16) - 1, nearest.view(np.uint16))
        below = below.astype(np.uint16)
        above = (below + 1).astype(np.uint16)
        low, high = (bits.view(dtype).astype(np.float64) for bits in (below, above))
        before = (below - 1).astype(np.uint16).view(dtype).astype(np.float64)
        high = np.where(np.isinf(high), low + (low - before), high)  # infinity is one step from the largest number
        share = np.floor((magnitudes - low) / (high - low) * 65536)
        chosen = np.where(share + drawn >= 65536, above, below).astype(np.uint16)
        sign = (np.signbit(values).astype(np.uint16) << 15).astype(np.uint16)
        rounded = (chosen | sign).view(dtype)
        return np.where(np.isfinite(values), rounded, values.astype(dtype))


def _log(x: np.ndarray) -> np.ndarray:
    """The base-2 logarithm where x is a power of two, and straight lines between: what the bits of a float are."""
    mantissa, exponent = np.frexp(x)
    return exponent + 2 * mantissa - 2


def _power(x: np.ndarray) -> np.ndarray:
    """The inverse of `_log`."""
    whole = np.floor(x)
    return (1 + x - whole) * 2.0**whole


def values_of(code: Code) -> np.ndarray:
    """float64 values of the codes without a sign, in order, for a scale of 1."""
    fineness = 2.0 ** (23 - code.dropped)  # numbers an octave of depths
    depths = _power(_log(np.float64(code.octaves)) + (code.largest - np.arange(code.largest + 1.0)) / fineness)
    return np.where(np.arange(code.largest + 1) > 0, _power(code.octaves - depths), 0)


def scale_of(block: np.ndarray) -> np.float32:
    """What is kept for a block."""
    largest = np.abs(block).max(initial=0)
    if not np.isfinite(largest):
        return np.float32(np.nan)
    return np.float32(max(largest, 2.0**-80) if largest else 0)


def encoded(values: np.ndarray, code: Code, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and a scale for each 128 of them."""
    scales = np.array([scale_of(values[i : i + 128]) for i in range(0, len(values), 128)], np.float32)
    with np.errstate(all="ignore"):
        inverses = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
        y = (np.abs(values) * np.repeat(inverses, 128)[: len(values)]).astype(np.float64)
        y[np.repeat(inverses, 128)[: len(values)] == 0] = 0
        chance = (2 * drawn + 1) / 2.0**17  # never 0, never 1, 1/2 on average
        # An integer becomes a float32 before it is one more logarithm.
        depths = ((code.octaves - _log(y)) * 2.0**23).astype(np.float32).astype(np.float64) / 2.0**23
        steps = (_log(depths) - _log(np.float64(code.octaves))) * 2.0 ** (23 - code.dropped)
        numbers = np.minimum(code.largest - np.floor(steps + chance), code.largest)
    smallest = values_of(code)[1]
    numbers = np.where(y < smallest, y > (smallest * chance if code.signed else 0), numbers)
    signs = code.signed & (numbers > 0) & (values < 0)
    return (numbers + 128 * signs).astype(np.uint8), scales


def decoded(codes: np.ndarray, scales: np.ndarray, code: Code) -> np.ndarray:
    """float32 values of codes."""
    magnitudes = values_of(code)[codes & code.largest] * np.where(codes > code.largest, -1.0, 1.0)
    with np.errstate(all="ignore"):
        return magnitudes.astype(np.float32) * np.repeat(scales, 128)[: len(codes)]
