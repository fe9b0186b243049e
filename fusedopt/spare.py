"""Memory for values in between in what is done to an array: of a piece, each thread makes it once and keeps it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

CACHE_LINE = 64  # bytes: an operation on arrays that straddle lines takes twice as long
PIECE = 64 * 1024  # words: steps ask for no more; for a whole array, as conversions do, nothing is kept

_kept = threading.local()


def spare(name: str, like: Any, count: int | None = None) -> Any:
    """uint32 words of any value, other ones for each name, which are the caller's until anybody asks for them again.

    Memory that is new at each call costs as much as two operations on it: the system clears its pages.

    Args:
        name: "first", "second" and "third" are for values in between alone, which no other function sees.
        like: An array of the module, NumPy or CuPy, that they are for.
        count: How many; None: as many as it has elements.
    """
    count = like.size if count is None else count
    if not isinstance(like, np.ndarray):
        return type(like)((count,), np.uint32)
    if count > PIECE:
        return np.empty(count, np.uint32)
    kept: dict[str, np.ndarray[Any, Any]] = _kept.__dict__
    if name not in kept or kept[name].size < count:
        memory = np.empty(4 * count + CACHE_LINE, np.uint8)
        start = -memory.ctypes.data % CACHE_LINE
        kept[name] = memory[start : start + 4 * count].view(np.uint32)
    return kept[name][:count]
