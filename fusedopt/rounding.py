"""float32 values to fewer bits and back, by integer operations on flat arrays of NumPy or CuPy: the same bits
everywhere.

A pass over a piece in the cache costs about as much as the arithmetic on it, so there are few, each into memory that is
there. Infinities need no pass of their own: what is added to their bits never reaches those that stay. NaN does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedopt.spare import spare

EXPONENT, SIGN, NAN = np.uint32(0x7F800000), np.uint32(0x80000000), np.uint32(0x7FC00000)
HALF_SMALLEST = np.float32(2.0**-14)  # of float16's normal numbers
SIXTEEN = np.uint32(16)


def widen(stored: Any, to: Any) -> None:
    """Half-precision values, exactly, into an array of float32."""
    if stored.dtype.name == "bfloat16":  # the upper half of a float32
        bits = to.view(np.uint32)
        bits[...] = stored.view(np.uint16)
        bits <<= SIXTEEN
    else:
        to[...] = stored


def narrow(values: Any, to: Any) -> None:
    """Into an array of half precision, rounded to the nearest, to even in the middle."""
    if isinstance(to, np.ndarray) or to.dtype.name != "bfloat16":
        np.copyto(to, values, casting="unsafe")
        return
    bits = values.view(np.uint32)
    rounded = _nearest(bits, 16) >> SIXTEEN
    rounded[values != values] = NAN >> SIXTEEN
    to.view(np.uint16)[...] = rounded


def _nearest(bits: Any, dropped: int) -> Any:
    """The bits of float32 values that are not NaN, rounded where the last `dropped` ones are cut off afterwards."""
    rounded = spare("first", bits)
    np.right_shift(bits, np.uint32(dropped), out=rounded)
    rounded &= np.uint32(1)  # to even in the middle
    rounded += np.uint32((1 << dropped - 1) - 1)
    rounded += bits
    return rounded


def _moved(bits: Any, dropped: int, noise: Any) -> Any:
    """Likewise, away from zero with the share of what is cut off as probability, else towards it.

    Args:
        noise: 16 uniform random bits for each.
    """
    moved = spare("first", bits)
    np.right_shift(noise, np.uint32(16 - dropped), out=moved)
    moved += bits
    return moved


def narrow_stochastically(values: Any, to: Any, noise: Any) -> None:
    """Into an array of half precision, rounded up or down at random and right on average.

    Args:
        noise: 16 uniform random bits for each.
    """
    halves, bits = to.view(np.uint16), values.view(np.uint32)
    if to.dtype.name == "bfloat16":
        _store(_upper(_moved(bits, 16, noise)), halves)
        halves[values != values] = NAN >> SIXTEEN
        return
    moved = _moved(bits, 13, noise)
    moved &= np.uint32(0xFFFFE000)
    narrow(moved.view(np.float32), to)
    small = np.abs(values) < HALF_SMALLEST
    halves[small] = _small_halves(values[small], noise[small])
    to[values != values] = np.nan


def _small_halves(values: Any, noise: Any) -> Any:
    """The bits of float16's small numbers, whole multiples of 2^-24: here of 2^-40, of which 16 bits are dropped."""
    multiples = (np.abs(values) * np.float32(2.0**40)).astype(np.uint32) + noise >> SIXTEEN
    return (multiples | (values.view(np.uint32) & SIGN) >> SIXTEEN).astype(np.uint16)


def split(values: Any, high: Any, low: Any) -> None:
    """float32 values into bfloat16, rounded to the nearest (in the middle away from zero), and the signed rest.

    Args:
        high: bfloat16.
        low: int16, with which every value comes back to the bit; or int8, with which its first 24 bits do, rounded to
            the nearest.
    """
    bits = values.view(np.uint32)
    _part(values, _nearest(bits, 8) if low.dtype == np.int8 else bits, high, low)


def split_stochastically(values: Any, high: Any, low: Any, noise: Any) -> None:
    """The same with int8, where the 8 bits beyond these 24 are rounded up or down at random."""
    _part(values, _moved(values.view(np.uint32), 8, noise), high, low)


def _part(values: Any, bits: Any, high: Any, low: Any) -> None:
    """The first 16 bits and the 16 or 8 that follow, of which a negative one is taken from what is one more above."""
    upper, halves = spare("second", bits), high.view(np.uint16)
    if low.dtype == np.int8:
        np.right_shift(bits, np.uint32(8), out=upper)
        _store(upper, low)
    else:
        _store(bits, low)
    np.add(bits, np.uint32(0x8000), out=upper)
    _store(_upper(upper), halves)
    nan = values != values
    if nan.any():  # one that looks like infinity without its last bits would come back as another
        halves[nan], low[nan] = NAN >> SIXTEEN, 0


def _upper(bits: Any) -> Any:
    """The upper halves of words, in their place."""
    bits >>= SIXTEEN
    return bits


def _store(words: Any, to: Any) -> None:
    """The last bits of words."""
    np.copyto(to, words, casting="unsafe")


def joined(high: Any, low: Any, to: Any) -> None:
    """What `split` was given, into an array of float32."""
    bits, below = to.view(np.uint32), spare("first", to).view(np.int32)
    widen(high, to)
    below[...] = low
    if low.dtype == np.int8:
        below <<= 8
    bits += below.view(np.uint32)


def compensate(values: Any, high: Any, low: Any) -> None:
    """float32 values into half precision, and what that loses into another array of it."""
    narrow(values, high)
    lost = spare("first", values).view(np.float32)
    widen(high, lost)
    with np.errstate(all="ignore"):
        np.subtract(values, lost, out=lost)
        narrow(lost, low)


def compensated(high: Any, low: Any, to: Any) -> None:
    """About what `compensate` was given, into an array of float32."""
    other = spare("first", to).view(np.float32)
    widen(high, to)
    widen(low, other)
    with np.errstate(all="ignore"):
        to += other
