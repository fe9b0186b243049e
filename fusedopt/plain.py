"""A rule called as the plain functions that it is, on whole arrays: what its stages sum, and what `update` is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusedopt.rules.rule import Rule, Values
from fusedopt.rules.stages import ROW


def given(
    rule: Rule,
    step: int,
    scalar_state: dict[str, Any],
    p: Any,
    g: Any,
    s: Values,
    total: Callable[[Any], Any],
    row_means: Callable[[Any], Any],
) -> tuple[Any, Values, dict[str, Any]]:
    """The gradient and the c that `update` is given at a step, and the scalar state after it.

    Args:
        rule: In its form for the parameter's shape.
        p, g, s: Parameter, gradient and states of one shape and of the arithmetic's type.
        total: An array's sum, as one np.float64: also of a group, which here is the one parameter.
        row_means: For each element the mean of its slice along the first axis.
    """
    sums: dict[str, Any] = {}
    means: dict[str, Any] = {}

    def constants() -> tuple[Values, dict[str, Any]]:
        with np.errstate(all="ignore"):  # 1 / 0 is infinity, as in CUDA
            a = Values(**{name: np.float64(value) for name, value in scalar_state.items()})
            scalars = vars(rule.in_float64().constants(np.float64(step), a, np.float64(1.0), Values(**sums)))
        after = {name: scalars.pop(name) for name in scalar_state if name in scalars}
        return Values(**{name: p.dtype.type(value) for name, value in scalars.items()}, **means), after

    for stage in rule.stages:
        c, _ = constants()
        for name, elements in vars(rule.summed(stage, p, rule.unscaled(g, c), s, c)).items():
            if stage.over == ROW:
                means[name] = row_means(elements)
            else:
                sums[name] = total(elements)
    c, after = constants()
    return rule.prepared(rule.unscaled(g, c), c), c, after
