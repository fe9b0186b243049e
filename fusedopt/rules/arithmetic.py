"""Functions for rules beyond NumPy's operators: the same bits on every processor, and traceable like the rest."""

from __future__ import annotations

from typing import Any

import numpy as np


def power(base: Any, count: Any) -> Any:
    """base**count for a whole, non-negative count, by squaring: multiplications alone, so every chip agrees.

    libm's `pow` differs in the last bit from one processor to the next; ten squarings reach step 1,000.
    """
    for value in (base, count):
        if hasattr(type(value), "traced_power"):
            return value.traced_power(base, count)
    if not (0 <= count < 2**63 and count == int(count)):
        raise ValueError(f"power takes a whole count from 0, got {count}.")
    result, count = np.float64(1.0), int(count)
    while count:
        if count & 1:
            result = result * base
        base, count = base * base, count >> 1
    return result


def larger(a: Any, b: Any) -> Any:
    """The larger of two values; NaN if either is, as torch.maximum. (np.maximum's zeros differ from chip to chip.)"""
    return np.where(a < b, b, np.where(b != b, b, a))  # b != b: b is NaN


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two values; NaN if either is, as torch.minimum."""
    return np.where(b < a, b, np.where(b != b, b, a))


def sign(x: Any) -> Any:
    """1, -1 or 0; 0 for NaN, as torch.sign. (np.sign keeps NaN.)"""
    one = x.dtype.type(1) if hasattr(type(x), "dtype") else 1.0  # of an array's type: Python's would give float64
    return np.where(x > 0, one, np.where(x < 0, -one, 0 * one))
