"""Values of LLVM with Python's operators, of which `numba_formats` is written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir

BYTE, HALF, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, DOUBLE, FLOAT16 = ir.FloatType(), ir.DoubleType(), ir.HalfType()

# Names of the builder's methods for floats and for integers, which are unsigned.
ARITHMETIC = {operator.add: ("fadd", "add"), operator.sub: ("fsub", "sub"), operator.mul: ("fmul", "mul")}


class Value:
    """One value, of a float or an unsigned integer type. What it is combined with is another, or a number."""

    __hash__ = None  # type: ignore[assignment]  # == makes a value

    def __init__(self, builder: Any, value: Any) -> None:
        self._builder, self.value = builder, value

    @property
    def type(self) -> Any:
        return self.value.type

    @property
    def _is_real(self) -> bool:
        return self.type in (FLOAT, DOUBLE, FLOAT16)

    def _made(self, method: str, *operands: Any) -> Value:
        return Value(self._builder, getattr(self._builder, method)(*operands))

    def _other(self, other: Any) -> Any:
        return other.value if isinstance(other, Value) else ir.Constant(self.type, other)

    def _arithmetic(self, which: Callable[..., Any], other: Any) -> Value:
        return self._made(ARITHMETIC[which][not self._is_real], self.value, self._other(other))

    def __add__(self, other: Any) -> Value:
        return self._arithmetic(operator.add, other)

    def __sub__(self, other: Any) -> Value:
        return self._arithmetic(operator.sub, other)

    def __mul__(self, other: Any) -> Value:
        return self._arithmetic(operator.mul, other)

    def __and__(self, other: Any) -> Value:
        return self._made("and_", self.value, self._other(other))

    def __or__(self, other: Any) -> Value:
        return self._made("or_", self.value, self._other(other))

    def __xor__(self, other: Any) -> Value:
        return self._made("xor", self.value, self._other(other))

    def __lshift__(self, bits: int) -> Value:
        return self._made("shl", self.value, self._other(bits))

    def __rshift__(self, bits: int) -> Value:
        return self._made("lshr", self.value, self._other(bits))

    def _compared(self, sign: str, other: Any) -> Value:
        method = "fcmp_unordered" if self._is_real and sign == "!=" else "fcmp_ordered"
        return self._made(method if self._is_real else "icmp_unsigned", sign, self.value, self._other(other))

    def __lt__(self, other: Any) -> Value:
        return self._compared("<", other)

    def __gt__(self, other: Any) -> Value:
        return self._compared(">", other)

    def __ge__(self, other: Any) -> Value:
        return self._compared(">=", other)

    def __eq__(self, other: Any) -> Value:  # type: ignore[override]
        return self._compared("==", other)

    def __ne__(self, other: Any) -> Value:  # type: ignore[override]
        return self._compared("!=", other)

    def chosen(self, then: Any, otherwise: Any) -> Value:
        """`then` where this condition holds; else `otherwise`. One of them is no number."""
        like = then if isinstance(then, Value) else otherwise
        return self._made("select", self.value, like._other(then), like._other(otherwise))

    def seen_as(self, kind: Any) -> Value:
        """The same bits as another type of as many."""
        return self._made("bitcast", self.value, kind)

    def cut(self, kind: Any) -> Value:
        """The last bits of an integer."""
        return self._made("trunc", self.value, kind)

    def widened(self, kind: Any) -> Value:
        """An integer with zeros before it, or a float, as one of more bits."""
        return self._made("fpext" if self._is_real else "zext", self.value, kind)

    def extended(self, kind: Any) -> Value:
        """An integer as one of more bits, all of which are as its first one."""
        return self._made("sext", self.value, kind)

    def rounded(self, kind: Any) -> Value:
        """A float as one of fewer bits, to the nearest."""
        return self._made("fptrunc", self.value, kind)

    def whole(self) -> Value:
        """A float from 0 to 2^31 without what is behind the point."""
        return self._made("fptosi", self.value, WORD)

    def real(self) -> Value:
        """A whole number below 2^31 as a float."""
        return self._made("sitofp", self.value, FLOAT)

    def shifted_down(self, bits: int) -> Value:
        """The floor of a number with a sign, divided by 2^bits."""
        return self._made("ashr", self.value, self._other(bits))

    def negative(self) -> Value:
        """Whether a number with a sign is."""
        return self._made("icmp_signed", "<", self.value, self._other(0))
