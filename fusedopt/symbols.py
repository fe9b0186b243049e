"""What a rule's functions are run on to be traced: symbols, whose operations become statements.

NumPy's own protocols, `__array_ufunc__` and `__array_function__`, hand them over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from fusedopt.rules import Values, power
from fusedopt.statements import COMPARISONS, CONSTANT, INPUT, OPERATIONS, WHERE, Statement, TracingError

# What there is to sum over a tensor with, in NumPy.
SUMS = {
    "sum",
    "mean",
    "average",
    "norm",
    "dot",
    "vdot",
    "inner",
    "std",
    "var",
    "max",
    "min",
    "amax",
    "amin",
    "all",
    "any",
}
SUMMED = (
    "a rule sees one element at a time; sums over a tensor, and what is made of them, are declared: reductions, terms "
    "and ratios, as docs/custom_rules.md shows"
)


class Trace:
    """The statements so far; equal ones are one."""

    def __init__(self, what: str, elementwise: bool) -> None:
        self.what, self.elementwise = what, elementwise
        self.statements: list[Statement] = []
        self._numbers: dict[Statement, int] = {}

    def add(self, statement: Statement) -> Symbol:
        # A constant's key is its repr: 0.0 and -0.0 are equal to Python and not to a rule.
        key = dataclasses.replace(statement, value=repr(statement.value))
        if key not in self._numbers:
            self._numbers[key] = len(self.statements)
            self.statements.append(statement)
        return Symbol(self, self._numbers[key])

    def input(self, name: str, uniform: bool) -> Symbol:
        return self.add(Statement(INPUT, value=name, uniform=uniform))

    def apply(self, operation: Any, *operands: Any) -> Symbol:
        symbols = [self.symbol(operand) for operand in operands]
        statements = [self.statements[symbol.number] for symbol in symbols]
        if operation not in COMPARISONS and operation is not WHERE and any(s.boolean for s in statements):
            raise TracingError(f"{self.what} calculates with a truth value; choose between numbers with np.where.")
        boolean = operation in COMPARISONS
        if operation is WHERE and (statements[1].boolean or statements[2].boolean):
            raise TracingError(f"{self.what}: np.where must choose between numbers, not between truth values.")
        uniform = all(s.uniform for s in statements)
        return self.add(Statement(operation, tuple(s.number for s in symbols), boolean=boolean, uniform=uniform))

    def symbol(self, value: Any) -> Symbol:
        if isinstance(value, Symbol):
            if value.trace is not self:
                raise TracingError(f"{self.what} uses a value of another function; hand it over in the scalars.")
            return value
        if isinstance(value, Unavailable):
            value.refuse()
        if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
            return self.add(Statement(CONSTANT, value=float(value), uniform=True))
        raise TracingError(
            f"{self.what} uses {value!r} ({type(value).__name__}) as a constant; use a Python number, whose type "
            f"follows the parameter's."
        )


class Symbol(NDArrayOperatorsMixin):
    """Stands for an array or a scalar in a rule; every operation on it adds a statement."""

    __slots__ = ("number", "trace", "truth")

    def __init__(self, trace: Trace, number: int, truth: bool | None = None) -> None:
        self.trace, self.number, self.truth = trace, number, truth

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Symbol:
        if method != "__call__" or keywords:
            what = f"np.{ufunc.__name__}" + (f".{method}" if method != "__call__" else f" with {', '.join(keywords)}=")
            cure = "operations are called plainly, and write nothing: p = p - x, not p -= x"
            raise TracingError(f"{self.trace.what} uses {what}; {SUMMED if method == 'reduce' else cure}.")
        if ufunc is np.square or (ufunc is np.power and _is_two(inputs[1])):
            return self.trace.apply(np.multiply, inputs[0], inputs[0])
        if ufunc not in OPERATIONS:
            raise self._unknown(ufunc.__name__)
        return self.trace.apply(ufunc, *inputs)

    def __array_function__(self, function: Any, types: Any, arguments: tuple[Any, ...], keywords: Any) -> Symbol:
        if function is not np.where or keywords or len(arguments) != 3:
            within = "linalg." if "linalg" in function.__module__ else ""
            raise self._unknown(within + function.__name__)
        return self.trace.apply(WHERE, *arguments)

    def traced(self, function: Any, *operands: Any) -> Symbol:
        """One of `fusedopt.rules.arithmetic` that is an operation of its own."""
        if function is power:
            count = operands[1]
            if self.trace.elementwise:
                raise TracingError(f"{self.trace.what} uses power; compute it in scalars, or multiply.")
            if isinstance(count, (int, float)) and not (0 <= count < 2**63 and count == int(count)):
                raise TracingError(
                    f"{self.trace.what} uses power with a count of {count}; it must be whole, from 0. For others there "
                    f"is fusedopt.rules.real_power."
                )
        return self.trace.apply(function, *operands)

    def __array__(self, *_: object, **__: object) -> Any:
        raise TracingError(
            f"{self.trace.what} makes a NumPy array or number of a value, as np.float64(x) does; leave it as it is: "
            f"scalars are float64, and elements of the parameter's type."
        )

    def __pow__(self, exponent: Any) -> Symbol:
        if not _is_two(exponent):
            raise self._no_power()
        return self.trace.apply(np.multiply, self, self)

    def __rpow__(self, _: object) -> Symbol:
        raise self._no_power()

    def _no_power(self) -> TracingError:
        cure = "write power(base, step) of fusedopt.rules for a whole count, real_power(base, x) for another"
        if self.trace.elementwise:
            cure = "multiply, as g * g * g, or write real_power(g, x) of fusedopt.rules; of the step, power in scalars"
        return TracingError(f"{self.trace.what} uses **, which has no kernel form; {cure}. A root is np.sqrt.")

    def _unknown(self, name: str) -> TracingError:
        if name.rpartition(".")[2] in SUMS:
            return TracingError(f"{self.trace.what} uses np.{name}; {SUMMED}.")
        instead = {
            "maximum": " Use fusedopt.rules.larger.",
            "minimum": " Use fusedopt.rules.smaller.",
            "sign": " Use fusedopt.rules.sign.",
            "power": " Use fusedopt.rules.power in scalars, real_power, or multiply; a root is np.sqrt.",
            "exp2": " Use fusedopt.rules.exp2.",
            "log2": " Use fusedopt.rules.log2.",
            "exp": " Use fusedopt.rules.exp2(x * 1.4426950408889634).",
            "log": " Use fusedopt.rules.log2(x) * 0.6931471805599453.",
            "clip": " Use fusedopt.rules.larger and smaller.",
            "float_power": " Use fusedopt.rules.power in scalars.",
        }.get(name, "")
        names = ", ".join(sorted(f"np.{u.__name__}" for u in OPERATIONS))
        return TracingError(
            f"{self.trace.what} uses np.{name}, which has no kernel form.{instead} There are {names}, np.where, and "
            f"larger, smaller, sign, exp2, log2, power and real_power of fusedopt.rules."
        )

    def __bool__(self) -> bool:
        if self.truth is None:
            raise TracingError(
                f"{self.trace.what} branches on a value; use np.where, or declare the hyperparameter a flag or "
                f"a switch."
            )
        return self.truth

    def __float__(self) -> float:
        raise TracingError(
            f"{self.trace.what} turns a value into a Python number; use NumPy's, as np.sqrt for math.sqrt."
        )

    __int__ = __index__ = __float__

    def __iter__(self) -> Any:
        raise TracingError(f"{self.trace.what} iterates over or indexes a value; a rule sees one element at a time.")

    def __getitem__(self, _: object) -> Any:
        return self.__iter__()

    def __setitem__(self, _: object, __: object) -> None:
        raise TracingError(f"{self.trace.what} writes into a value; return the new one instead.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy asks whether there is an __array_interface__, and the like
            raise AttributeError(name)
        cure = SUMMED if name in SUMS else "a rule sees one element at a time"
        raise TracingError(f"{self.trace.what} uses .{name} of a value; {cure}.")


def _is_two(exponent: object) -> bool:
    return isinstance(exponent, (int, float)) and exponent == 2


class Unavailable(NDArrayOperatorsMixin):
    """A hyperparameter inside `update`: it has no value there, but a switch still tells whether it is on."""

    def __init__(self, what: str, truth: bool | None) -> None:
        self.what, self.truth = what, truth

    def refuse(self) -> Any:
        cure = "compute it in scalars and read it from c, or declare it switch=True to branch on its being zero"
        raise TracingError(f"{self.what}; {cure}.")

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        self.refuse()

    __array_function__ = __float__ = __array_ufunc__

    def __bool__(self) -> bool:
        if self.truth is None:
            self.refuse()
        return bool(self.truth)


class Inputs(Values):
    """What a function of a rule is given by name."""

    __slots__ = ("_of",)

    def __init__(self, trace: Trace, of: str, names: Iterable[str], uniform: bool) -> None:
        super().__init__(**{name: trace.input(f"{of}.{name}", uniform) for name in names})
        self._of = f"{trace.what} reads {of}.%s; {of} has %s."

    def __getattr__(self, name: str) -> Any:
        raise TracingError(self._of % (name, ", ".join(vars(self)) or "nothing"))
