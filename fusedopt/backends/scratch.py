"""Memory for values in between, which each thread of the CPU makes once and keeps: a few blocks."""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

import numpy as np

from fusedopt.layout import ALIGNMENT

Array = np.ndarray[Any, Any]

_kept = threading.local()


def scratch_slots(layout: tuple[bool, ...], real: type, count: int) -> list[Array]:
    """Arrays of so many elements: of truth values where `layout` says so, else of the arithmetic's type."""
    kept: dict[Any, list[Array]] = _kept.__dict__
    key = f"{real.__name__} {layout}"
    if key not in kept or any(len(slot) < count for slot in kept[key]):
        kept[key] = [aligned_zeros(count, np.dtype(bool if boolean else real)) for boolean in layout]
    return [slot[:count] for slot in kept[key]]


def aligned_zeros(count: int, dtype: np.dtype[Any]) -> Array:
    """Zeros that start at a multiple of `ALIGNMENT`: an operation on arrays across cache lines takes twice as long."""
    memory = np.zeros(count * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count * dtype.itemsize].view(dtype)


@functools.cache
def _bytes(count: int) -> Any:
    return ctypes.c_char * count


def array_at(address: int, size: int, dtype: np.dtype[Any]) -> Array:
    """A flat array on memory that it does not own."""
    if size == 0:
        return np.empty(0, dtype)
    return np.frombuffer(_bytes(size * dtype.itemsize).from_address(address), dtype)
