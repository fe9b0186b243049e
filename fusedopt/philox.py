"""Random words by Philox: a function of the seed, the step, the parameter and the element, the same on every device.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32 with 7 rounds, the
fewest that pass all of BigCrush.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedopt.spare import spare

ROUNDS = 7
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
SPREAD = 0x9E3779B1  # what the word of an element is multiplied by for the next stream's noise: odd
MASK = 0xFFFFFFFF

Words = np.ndarray[Any, np.dtype[np.uint32]]


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int], rounds: int = ROUNDS) -> tuple[Any, Any, Any, Any]:
    """Four random words for each counter of four words: ints, or uint64 arrays of numbers below 2^32.

    Args:
        counter: Each word an int below 2^32, or a flat uint64 array of such, of one length, which is written over. As
            long as a word is one int for all, so is what is made of it.
        key: Two words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    like = next((word for word in counter if not isinstance(word, int)), np.empty(0, np.uint64))
    whole = [spare(place, like, 4 * like.size).view(np.uint64) for place in ("first", "second", "third")]
    free = [half for both in whole for half in np.split(both, 2)]
    for _ in range(rounds):
        upper0, lower0 = _product(c0, MULTIPLIERS[0], free)
        upper2, lower2 = _product(c2, MULTIPLIERS[1], free)
        c0, c1 = _mixed(upper2, c1, k0, free), lower2
        c2, c3 = _mixed(upper0, c3, k1, free), lower0
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return c0, c1, c2, c3


def _product(word: Any, multiplier: int, free: list[Any]) -> tuple[Any, Any]:
    """The upper half of a product in a free array, and the lower half in the word's place."""
    if isinstance(word, int):
        return word * multiplier >> 32, word * multiplier & MASK
    word *= np.uint64(multiplier)
    upper = np.right_shift(word, np.uint64(32), out=free.pop())
    word &= np.uint64(MASK)
    return upper, word


def _mixed(one: Any, other: Any, key: int, free: list[Any]) -> Any:
    """`one ^ other ^ key`, in the place of one of them; the other's is free then."""
    if isinstance(one, int) and isinstance(other, int):
        return one ^ other ^ key
    into, mixed_in = (other, one) if isinstance(one, int) else (one, other)
    if isinstance(mixed_in, int):
        into ^= np.uint64(mixed_in ^ key)
        return into
    into ^= mixed_in
    into ^= np.uint64(key)
    free.append(mixed_in)
    return into


def words(seed: int, step: int, number: int, first: int, count: int) -> Words:
    """A random word for each of `count` elements of a parameter, until the thread asks for others.

    Args:
        seed: Below 2^53.
        step: Of the parameter, from 1.
        number: Of the parameter in its optimizer.
        first: The first element; a multiple of 4, since four neighbours share a counter.
    """
    begin, end = first // 4, -(-(first + count) // 4)
    quads = np.arange(begin, end, dtype=np.uint64)
    # Pieces start at multiples of 2^16 and are no longer: all their quads have the same upper word.
    upper = begin >> 32 if begin >> 32 == (end - 1) >> 32 else quads >> np.uint64(32)
    quads &= np.uint64(MASK)
    drawn: Words = spare("words", quads, 4 * quads.size).reshape(-1, 4)
    for place, word in enumerate(philox((quads, upper, step & MASK, number), (seed & MASK, seed >> 32))):
        drawn[:, place] = word
    return drawn.reshape(-1)[:count]


def multiplier(stream: int) -> int:
    """What the words of elements are multiplied by for a stream's noise.

    Powers, since what is multiplied by 3 is correlated with what is not: 1/3.
    """
    return pow(SPREAD, stream, MASK + 1)


def noise(words: Words, stream: int) -> Words:
    """16 random bits for each element, others for each stream: 0 is the parameter, k + 1 its state k."""
    drawn: Words = spare("noise", words)
    np.multiply(words, np.uint32(multiplier(stream)), out=drawn)
    drawn >>= np.uint32(16)
    return drawn
