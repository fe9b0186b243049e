"""Codes that keep an element of a state in one byte: those compared for `state_dtype="int8"`, and the one chosen.

A code is its levels, magnitudes from 0 up: a block of a state is one float32 scale and, for each element, the number of
a level and, where values have signs, a sign. Here levels are looked up; `tapered_numbers` and `tapered_magnitudes` are
the chosen code as a kernel computes it. `state_codes.py` measures.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

UNSIGNED, SIGNED = 255, 127  # levels above 0
KEY = 14  # bits of a float32 that the search drops: no two levels are closer than 2^-8 of their value
SMALLEST_SCALE = np.float32(2.0**-80)  # its smallest level is a normal float32 still
ONE = 127  # exponent of 1.0 in a float32, which has 23 bits of mantissa


def powers(count: int, power: int) -> Floats:
    """(k / count)^power: 1 is linear."""
    return ((np.arange(count + 1) / count) ** power).astype(np.float32)


def dynamic(count: int) -> Floats:
    """bitsandbytes' map, and -1, which it has not: seven decades, each with twice the levels of the one below.

    Source: Dettmers 2016, arXiv:1511.04561; Dettmers et al. 2022, arXiv:2110.02861; `create_dynamic_map`.
    """
    lowest = 2 if count == UNSIGNED else 1  # levels of the lowest decade
    decades = [np.linspace(0.1, 1, lowest * 2**i + 1) * 10.0 ** (i - 6) for i in range(7)]
    middles = [middle for decade in decades for middle in (decade[:-1] + decade[1:]) / 2]
    return np.array([0, *middles, 1], np.float32)


def floats(count: int, mantissa: int) -> Floats:
    """Floating point with so many bits of mantissa, from just below 2 downwards for as long as there are numbers."""
    bits = (ONE + 1 << mantissa) - count + np.arange(count)
    return np.append(0, (bits << 23 - mantissa).astype(np.uint32).view(np.float32)).astype(np.float32)


def tapered(count: int) -> Floats:
    """0 and the chosen code's magnitudes, from 1 downwards: `tapered_magnitudes`."""
    return tapered_magnitudes(np.arange(count + 1, dtype=np.int32), count)


def tapered_magnitudes(numbers: Integers, count: int) -> Floats:
    """Floating point whose quarters of the numbers have 2, 3, 4 and 5 bits of mantissa, the finest up to 1.

    They span 8, 4, 2 and 1 octaves of a signed state, 16, 8, 4 and 2 of one that is not: v has twice m's octaves, so
    that sqrt(v) reaches as far down as m does. Each coarser quarter has twice the octaves of the one before: so do the
    octaves of floating point itself, and a number is how far the magnitude's bits are below a ceiling, kept as a float
    of 5 or 6 bits of mantissa. That takes no branch and no table.
    """
    ceiling, nearest, dropped = _tapered_constants(count)
    depth = (nearest + (count - numbers << dropped)).astype(np.int32).view(np.float32)
    return np.where(numbers > 0, ceiling - depth.astype(np.int32), 0).astype(np.int32).view(np.float32)


def tapered_numbers(magnitudes: Floats, noise: Integers, count: int) -> Integers:
    """Numbers of magnitudes in [0, 1], rounded up or down so that the mean is right; `noise` is 16 random bits.

    What is below the smallest magnitude becomes that one: always, of a state that is not signed and is not 0; of a
    signed one with the probability that makes the mean right, and 0 otherwise.
    """
    ceiling, nearest, dropped = _tapered_constants(count)
    odd = 2 * noise + 1  # half of the last random bit more: then the error of having 16 has no mean
    depth = (ceiling - magnitudes.view(np.int32)).astype(np.float32)
    numbers = count - (depth.view(np.int32) - nearest + (odd << dropped - 17) >> dropped)
    smallest = tapered_magnitudes(np.array([1], np.int32), count)
    drawn = magnitudes > (smallest * (odd * np.float32(2.0**-17)) if count == SIGNED else 0)
    return np.where(magnitudes < smallest, drawn, numbers).astype(np.int32)


def _tapered_constants(count: int) -> tuple[int, int, int]:
    """The ceiling, the bits of 1's depth below it as a float, and how many of a depth's 23 bits are dropped."""
    octaves = 1 if count == SIGNED else 2  # of the finest quarter, and from the ceiling down to 1
    return ONE + octaves << 23, ONE + 23 + octaves - 1 << 23, 18 if count == SIGNED else 17


@dataclasses.dataclass(frozen=True, eq=False)
class Code:
    """How a state is kept.

    Attributes:
        levels: From 0 up.
        signed: Not signed is never negative, and never 0 unless it was: m / sqrt(0) would be the end of a training.
        stochastic: Up with the probability that makes the mean right; otherwise the nearest level.
        binary: The scale is a power of two; otherwise the block's largest magnitude is the largest level.
        block: Elements with one scale.
    """

    levels: Floats
    signed: bool
    stochastic: bool
    binary: bool
    block: int

    @functools.cached_property
    def below(self) -> Integers:
        """For each float32 in [0, 2), shortened by KEY bits, the level at or below the first one with these bits."""
        keys = np.arange(2 << 29 >> KEY, dtype=np.uint32) << KEY
        return (np.searchsorted(self.levels, keys.view(np.float32), "right") - 1).astype(np.int32)

    def scales(self, blocks: Floats) -> Floats:
        """One a block, (blocks, 1): 0 where all is 0, not finite where one element is not."""
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        scale = largest / self.levels[-1]
        if self.binary:
            scale = (largest.view(np.uint32) & np.uint32(0xFF << 23)).view(np.float32)
            # What is above the last level has none to be rounded up to.
            scale = np.where(largest > self.levels[-1] * scale, 2 * scale, scale)
        return np.where(largest == 0, largest, np.maximum(scale, SMALLEST_SCALE))

    def encode(self, values: Floats, noise: Floats) -> tuple[Integers, Floats]:
        """Numbers of levels with the values' signs, and scales. `noise` is uniform in [0, 1)."""
        blocks = values.reshape(-1, self.block)
        scales = self.scales(blocks)
        divisors = np.where(np.isfinite(scales) & (scales > 0), scales, 1)
        magnitudes = np.where(np.isfinite(scales), np.minimum(np.abs(blocks) / divisors, self.levels[-1]), 0)
        numbers = self.below[magnitudes.view(np.uint32) >> KEY]
        above = np.append(self.levels, np.float32(4))  # more than any magnitude
        numbers = numbers + (magnitudes >= above[numbers + 1])
        threshold = noise.reshape(blocks.shape) if self.stochastic else np.float32(0.5)
        width = above[numbers + 1] - above[numbers]
        numbers = numbers + (magnitudes - above[numbers] > threshold * width)
        if not self.signed:
            numbers = np.where(magnitudes > 0, np.maximum(numbers, 1), numbers)
        return np.where(blocks < 0, -numbers, numbers).ravel(), scales

    def decode(self, numbers: Integers, scales: Floats) -> Floats:
        """What comes back; NaN in all of a block whose scale is not finite."""
        numbers = numbers.reshape(-1, self.block)
        values = np.sign(numbers) * self.levels[np.abs(numbers)]
        return (values * np.where(np.isfinite(scales), scales, np.nan)).astype(np.float32).ravel()


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """How Adam's two states are kept, and a name for it."""

    name: str
    m: Code
    v: Code


def candidate(
    name: str, m: Floats, v: Floats, rounding: str = "stochastic", binary: bool = False, block: int = 128
) -> Candidate:
    """`rounding`: nearest, stochastic, or mixed, which is nearest for m alone."""
    return Candidate(
        f"{name}, {rounding}" + (f", blocks of {block}" if block != 128 else ""),
        Code(m, True, rounding == "stochastic", binary, block),
        Code(v, False, rounding != "nearest", binary, block),
    )


CHOSEN = "tapered, stochastic"


def candidates() -> list[Candidate]:
    """All that are compared; blocks of 128 where nothing else is said."""
    pairs = {
        "linear": (powers(SIGNED, 1), powers(UNSIGNED, 1)),
        "square": (powers(SIGNED, 1), powers(UNSIGNED, 2)),
        "fourth power": (powers(SIGNED, 2), powers(UNSIGNED, 4)),
        "dynamic": (dynamic(SIGNED), dynamic(UNSIGNED)),
        "E5M3": (floats(SIGNED, 3), floats(UNSIGNED, 3)),
        "E4M4": (floats(SIGNED, 4), floats(UNSIGNED, 4)),
        "tapered": (tapered(SIGNED), tapered(UNSIGNED)),
    }
    both = [
        candidate(name, *pair, rounding, binary=name[0] == "E")
        for rounding in ("nearest", "stochastic")
        for name, pair in pairs.items()
    ]
    return [
        *both,
        candidate("E5M3, any scale", *pairs["E5M3"]),
        candidate("tapered", *pairs["tapered"], "mixed"),
        *(candidate("tapered", *pairs["tapered"], block=block) for block in (64, 256)),
    ]
