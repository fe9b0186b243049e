"""Functions for rules beyond NumPy's operators: the same bits on every processor, and traceable like the rest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def power(base: Any, count: Any) -> Any:
    """base**count for a whole, non-negative count, by squaring: multiplications alone, so every chip agrees.

    libm's `pow` differs in the last bit from one processor to the next; ten squarings reach step 1,000.
    """
    for value in (base, count):
        if hasattr(type(value), "traced"):
            return value.traced(power, base, count)
    if not (0 <= count < 2**63 and count == int(count)):
        raise ValueError(f"power takes a whole count from 0, got {count}.")
    result, count = np.float64(1.0), int(count)
    while count:
        if count & 1:
            result = result * base
        base, count = base * base, count >> 1
    return result


def real_power(base: Any, exponent: Any) -> Any:
    """base**exponent for a base from 0 and any exponent, by fixed polynomials. For a whole exponent `power` is nearer.

    Its relative error grows with |exponent log2(base)|, by a unit in the last place for each.
    """
    return np.where(exponent != 0, exp2(exponent * log2(base)), 1.0)  # 0 times the logarithm of 0 is NaN


def log2(x: Any) -> Any:
    """The logarithm to the base of 2, to some units in the last place; the same bits on every processor."""
    inside = np.where(x > 0, np.where(x < np.inf, x, 1.0), 1.0)
    n = exponent(inside)
    m = scaled(inside, -n)  # in [0.5, 1), then in [sqrt(0.5), sqrt(2))
    small = m < 0.7071067811865476
    m, n = np.where(small, m + m, m), np.where(small, n - 1.0, n)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series: Any = 2 / math.log(2) / 23
    for k in range(21, 0, -2):  # |s| < 0.172: the next term is below 2^-60
        series = series * square + 2 / math.log(2) / k
    log = n + s * series
    return np.where(x > 0, np.where(x < np.inf, log, x), np.where(x < 0, np.nan, np.where(x != x, x, -np.inf)))


def exp2(x: Any) -> Any:
    """2**x, to some units in the last place; the same bits on every processor."""
    inside = np.where(x > -1100.0, np.where(x < 1100.0, x, 1100.0), -1100.0)  # beyond is 0 or infinity; NaN: -1100
    n = np.floor(inside + 0.5)
    y = inside - n
    series: Any = math.log(2) ** 14 / math.factorial(14)
    for k in range(13, -1, -1):  # |y| <= 0.5: the next term is below 2^-60
        series = series * y + math.log(2) ** k / math.factorial(k)
    return np.where(x != x, x, scaled(series, n))


def exponent(x: Any, out: Any = None) -> Any:
    """The n of x = m 2^n with 0.5 <= |m| < 1, for a finite x; 0 for 0. `out` is for backends."""
    if hasattr(type(x), "traced"):
        return x.traced(exponent, x)
    n = np.frexp(x)[1]
    if out is None:
        return n.astype(np.asarray(x).dtype)
    np.copyto(out, n, casting="unsafe")
    return out


def scaled(x: Any, n: Any, out: Any = None) -> Any:
    """x 2^n for a whole n, rounded once. `out` is for backends."""
    for value in (x, n):
        if hasattr(type(value), "traced"):
            return value.traced(scaled, x, n)
    return np.ldexp(x, np.asarray(n).astype(np.int32), out=out)


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
