"""Random words by Philox: a function of the seed, the step, the parameter and the element, the same on every device.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32 with 7 rounds, the
fewest that pass all of BigCrush.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ROUNDS = 7
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
SPREAD = 0x9E3779B1  # odd: what the word of an element is multiplied by for another stream's noise
MASK = 0xFFFFFFFF

Words = np.ndarray[Any, np.dtype[np.uint32]]


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int], rounds: int = ROUNDS) -> tuple[Any, Any, Any, Any]:
    """Four random words for each counter of four words, as uint64 arrays of numbers below 2^32.

    Args:
        counter: uint64 arrays, or numbers, below 2^32, that broadcast.
        key: Two words.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    mask, half = np.uint64(MASK), np.uint64(32)
    for _ in range(rounds):
        first, second = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1 = second >> half ^ c1 ^ np.uint64(k0), second & mask
        c2, c3 = first >> half ^ c3 ^ np.uint64(k1), first & mask
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return c0, c1, c2, c3


def words(seed: int, step: int, number: int, first: int, count: int) -> Words:
    """A random word for each of `count` elements of a parameter.

    Args:
        seed: Below 2^53.
        step: Of the parameter, from 1.
        number: Of the parameter in its optimizer.
        first: The first element; a multiple of 4, since four neighbours share a counter.
    """
    quads = np.arange(first // 4, -(-(first + count) // 4), dtype=np.uint64)
    counter = quads & np.uint64(MASK), quads >> np.uint64(32), step & MASK, number
    four = philox(counter, (seed & MASK, seed >> 32))
    return np.stack(np.broadcast_arrays(*four), axis=1).astype(np.uint32).reshape(-1)[:count]


def noise(words: Words, stream: int) -> Words:
    """16 random bits for each element, others for each stream: 0 is the parameter, k + 1 its state k."""
    if stream:
        words = words * np.uint32(SPREAD * (2 * stream - 1) & MASK)
    drawn: Words = words >> np.uint32(16)
    return drawn
