"""float32 values to fewer bits and back, by integer operations on arrays of NumPy or CuPy: the same bits everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

EXPONENT, SIGN, NAN = np.uint32(0x7F800000), np.uint32(0x80000000), np.uint32(0x7FC00000)
HALF_SMALLEST = np.float32(2.0**-14)  # of float16's normal numbers


def bits_of(values: Any) -> Any:
    """The bits of float32 values, of every NaN the same ones: others could look like a number when they are cut."""
    bits = values.view(np.uint32)
    return np.where((bits & ~SIGN) > EXPONENT, NAN, bits)


def widen(stored: Any, to: Any) -> None:
    """Half-precision values, exactly, into an array of float32."""
    if stored.dtype.name == "bfloat16":  # the upper half of a float32
        to.view(np.uint32)[...] = stored.view(np.uint16).astype(np.uint32) << np.uint32(16)
    else:
        to[...] = stored


def narrow(values: Any, to: Any) -> None:
    """Into an array of half precision, rounded to the nearest, to even in the middle."""
    if to.dtype.name == "bfloat16":
        to.view(np.uint16)[...] = (nearest(bits_of(values), 16) >> np.uint32(16)).astype(np.uint16)
    else:
        to[...] = values


def nearest(bits: Any, dropped: int) -> Any:
    """The bits of float32 values rounded so that the last `dropped` ones are zero; to even in the middle."""
    odd = bits >> np.uint32(dropped) & np.uint32(1)
    rounded = (bits + (odd + np.uint32((1 << dropped - 1) - 1))) & np.uint32(~((1 << dropped) - 1) & 0xFFFFFFFF)
    return np.where((bits & EXPONENT) == EXPONENT, bits, rounded)


def stochastic(bits: Any, dropped: int, noise: Any) -> Any:
    """The same, away from zero with the share of what is dropped as probability, else towards it.

    Args:
        noise: 16 uniform random bits for each.
    """
    added = noise << np.uint32(dropped - 16) if dropped >= 16 else noise >> np.uint32(16 - dropped)
    rounded = (bits + added) & np.uint32(~((1 << dropped) - 1) & 0xFFFFFFFF)
    return np.where((bits & EXPONENT) == EXPONENT, bits, rounded)


def narrow_stochastically(values: Any, to: Any, noise: Any) -> None:
    """Into an array of half precision, rounded up or down at random and right on average."""
    bits = bits_of(values)
    if to.dtype.name == "bfloat16":
        to.view(np.uint16)[...] = (stochastic(bits, 16, noise) >> np.uint32(16)).astype(np.uint16)
        return
    to[...] = stochastic(bits, 13, noise).view(np.float32)
    # float16's small numbers are whole multiples of 2^-24: in 2^-40, of which 16 bits are dropped.
    small = np.abs(values) < HALF_SMALLEST
    with np.errstate(invalid="ignore"):  # of the others
        whole = np.where(small, np.abs(values), np.float32(0)) * np.float32(2.0**40)
    multiples = whole.astype(np.uint32) + noise >> np.uint32(16)
    signed = multiples | (bits & SIGN) >> np.uint32(16)
    to.view(np.uint16)[...] = np.where(small, signed, to.view(np.uint16)).astype(np.uint16)


def split(values: Any, high: Any, low: Any) -> None:
    """float32 values into bfloat16, rounded to the nearest (in the middle away from zero), and the signed rest.

    Args:
        high: bfloat16.
        low: int16, with which every value comes back to the bit; or int8, with which its first 24 bits do.
    """
    bits = bits_of(values)
    if low.dtype == np.int8:
        bits = nearest(bits, 8)
    _part(bits, high, low)


def split_stochastically(values: Any, high: Any, low: Any, noise: Any) -> None:
    """The same with int8, where the 8 bits beyond these 24 are rounded up or down at random."""
    _part(stochastic(bits_of(values), 8, noise), high, low)


def _part(bits: Any, high: Any, low: Any) -> None:
    shift = 16 - 8 * low.itemsize
    below = (bits >> np.uint32(shift)).astype(low.dtype)  # the last bits
    low[...] = below
    high.view(np.uint16)[...] = ((bits >> np.uint32(16)) + (below < 0)).astype(np.uint16)


def joined(high: Any, low: Any, to: Any) -> None:
    """What `split` was given, into an array of float32."""
    shift, unsigned = 16 - 8 * low.itemsize, np.dtype(f"u{low.itemsize}")
    upper = high.view(np.uint16).astype(np.uint32) - (low < 0)
    to.view(np.uint32)[...] = upper.astype(np.uint32) << np.uint32(16) | low.view(unsigned).astype(
        np.uint32
    ) << np.uint32(shift)


def compensate(values: Any, high: Any, low: Any) -> None:
    """float32 values into half precision, and what that loses into another array of it."""
    narrow(values, high)
    widened = np.empty_like(values)
    widen(high, widened)
    with np.errstate(all="ignore"):
        narrow(values - widened, low)


def compensated(high: Any, low: Any, to: Any) -> None:
    """About what `compensate` was given, into an array of float32."""
    other = np.empty_like(to)
    widen(high, to)
    widen(low, other)
    with np.errstate(all="ignore"):
        to += other
