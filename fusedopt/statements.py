"""What a traced function is: statements, each an operation on earlier ones. `cuda_text` and the backends read them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

COMPARISONS = {np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal}
ARITHMETIC = {np.add, np.subtract, np.multiply, np.divide, np.negative, np.sqrt, np.absolute, np.floor}
OPERATIONS = ARITHMETIC | COMPARISONS
# Those that C++ and Python write alike.
OPERATORS = {
    np.add: "{} + {}",
    np.subtract: "{} - {}",
    np.multiply: "{} * {}",
    np.divide: "{} / {}",
    np.negative: "-{}",
    np.greater: "{} > {}",
    np.greater_equal: "{} >= {}",
    np.less: "{} < {}",
    np.less_equal: "{} <= {}",
    np.equal: "{} == {}",
    np.not_equal: "{} != {}",
}
WHERE, INPUT, CONSTANT = "where", "input", "constant"


class TracingError(TypeError):
    """A rule does something that cannot become a kernel; the message names the rule, thing, cure and line."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """One operation on earlier statements.

    Attributes:
        operation: A ufunc of `OPERATIONS`; `power`, `exponent` or `scaled` of the rules; or where, input, constant.
        operands: Numbers of the statements it reads.
        value: An input's name, such as `p` or `s.exp_avg`; a constant's value.
        boolean: Whether it is a truth value rather than a number.
        uniform: Whether it is the same for all elements, as everything made from `c.` alone is.
    """

    operation: Any
    operands: tuple[int, ...] = ()
    value: Any = None
    boolean: bool = False
    uniform: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Statements in the order in which they can be executed, and the number of the statement that gives each result."""

    statements: tuple[Statement, ...]
    results: Mapping[str, int]

    @functools.cached_property
    def needed(self) -> frozenset[int]:
        """Numbers of the statements that some result is made of."""
        needed = set(self.results.values())
        for number in reversed(range(len(self.statements))):
            if number in needed:
                needed |= set(self.statements[number].operands)
        return frozenset(needed)

    @functools.cached_property
    def inputs(self) -> frozenset[str]:
        """Names of the inputs that some result is made of."""
        return frozenset(s.value for n, s in enumerate(self.statements) if s.operation == INPUT and n in self.needed)
