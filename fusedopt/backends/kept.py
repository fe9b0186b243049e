"""A piece of a span's arrays as values: what the CPU's backends read into scratch, and write from there.

An array of the arithmetic's own type is a piece of itself, and so are masters and those that NumPy converts; what has
codes, a second array or random rounding is one of these.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fusedopt import philox, rounding
from fusedopt.eight_bits import CODES, decoded, encode_blocks, spread
from fusedopt.storage import Kept

Array = np.ndarray[Any, Any]


class Noise:
    """16 random bits for each element of a piece, drawn when they are first asked for."""

    def __init__(self, seed: int, step: int, number: int, first: int, count: int) -> None:
        self._of = seed, step, number, first, count

    @functools.cached_property
    def _words(self) -> philox.Words:
        return philox.words(*self._of)

    def of(self, stream: int) -> philox.Words:
        """Those of the parameter, 0, or of its state k, k + 1."""
        return philox.noise(self._words, stream)


class Piece:
    """Some elements of one array, and of the one beside it.

    Args:
        kept: How they are kept.
        array: These elements of the first array.
        beside: And of the second; of scales, those of the blocks that the elements are in.
        first: Number of the first element in its tensor.
        noise, stream: What random rounding draws.
    """

    def __init__(self, kept: Kept, array: Array, beside: Array, first: int, noise: Noise | None, stream: int) -> None:
        self._kept, self._array, self._beside, self._first = kept, array, beside, first
        self._noise, self._stream = noise, stream

    def _drawn(self) -> philox.Words:
        assert self._noise is not None
        return self._noise.of(self._stream)

    def read(self, to: Array) -> None:
        """The values, into an array of the arithmetic's type."""
        kept, array, beside = self._kept, self._array, self._beside
        if kept.codes:
            scales = spread(beside, self._first, self._first + len(array))
            with np.errstate(all="ignore"):
                decoded(array, scales, CODES[kept.codes], to)
        elif kept.finer == "kahan":
            rounding.compensated(array, beside, to)
        elif kept.finer:
            rounding.joined(array, beside, to)
        else:
            rounding.widen(array, to)

    def write(self, values: Array) -> None:
        """Values of the arithmetic's type into the array, rounded as it is kept."""
        kept, array, beside = self._kept, self._array, self._beside
        if np.ndim(values) == 0:  # one for all elements
            values = np.full(array.shape, values)
        if kept.codes:
            encode_blocks(values, array, beside, CODES[kept.codes], self._drawn())
        elif kept.finer == "kahan":
            rounding.compensate(values, array, beside)
        elif kept.finer and kept.stochastic:
            rounding.split_stochastically(values, array, beside, self._drawn())
        elif kept.finer:
            rounding.split(values, array, beside)
        else:
            rounding.narrow_stochastically(values, array, self._drawn())


def read(stored: Any, to: Array) -> None:
    """An array, or a piece that stands for one, into an array of the arithmetic's type."""
    if isinstance(stored, Piece):
        stored.read(to)
    else:
        np.copyto(to, stored, casting="unsafe")


def write(values: Any, stored: Any) -> None:
    """The other way."""
    if isinstance(stored, Piece):
        stored.write(values)
    else:
        np.copyto(stored, values, casting="unsafe")
