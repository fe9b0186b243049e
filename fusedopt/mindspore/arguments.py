"""MindSpore's arguments as ours: learning rates of any of its kinds, decays, and numbers that must be floats."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable
from typing import Any

from fusedopt.rules.hyperparameter import Interval

FROM_ZERO, ABOVE_ZERO = Interval("[0, inf)"), Interval("(0, inf)")
OPEN_UNIT, HALF_OPEN_UNIT = Interval("(0, 1)"), Interval("[0, 1)")

Rate = float | list[float] | Callable[[int], float]


def a_float(what: str, value: Any, interval: Interval = FROM_ZERO) -> float:
    """The value, where it is a float in an interval; MindSpore takes no ints here."""
    if not isinstance(value, float):
        raise TypeError(f"{what} must be a float, got {value!r} ({type(value).__name__}); write 1.0 for 1.")
    return _within(what, value, interval)


def a_number(what: str, value: Any, interval: Interval = FROM_ZERO) -> float:
    """The value, where it is a number in an interval, as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what} must be a number, got {value!r} ({type(value).__name__}).")
    return _within(what, float(value), interval)


def a_flag(what: str, value: Any) -> bool:
    """The value, where it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be True or False, got {value!r} ({type(value).__name__}).")
    return value


def a_rate(what: str, value: Any) -> Rate:
    """A learning rate: a number, a list with one for each step, or a function of the step, which is counted from 0."""
    if callable(value):
        return value  # type: ignore[no-any-return]  # any function may be given
    dimensions = getattr(value, "ndim", None)
    if dimensions:
        if dimensions > 1:
            raise ValueError(f"{what} must have one dimension, a value for each step, got an array of {dimensions}.")
        value = value.tolist()
    elif dimensions == 0:
        value = value.item()
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [a_number(f"{what}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{what} must be a number, a list with one for each step, or a function of the step, got {value!r} "
            f"({type(value).__name__})."
        )
    return a_number(what, value)


def a_decay(what: str, value: Any, dynamic: bool = True) -> Any:
    """A weight decay: a number, or a function of the step, where the optimizer takes one."""
    if dynamic and callable(value):
        return value
    if callable(value):
        raise TypeError(f"{what} must be a number for this optimizer, got {value!r}; Momentum takes a function.")
    return a_number(what, value)


def betas(owner: str, beta1: Any, beta2: Any) -> tuple[float, float]:
    """Two floats between 0 and 1, neither of them included."""
    return a_float(f"{owner}: beta1", beta1, OPEN_UNIT), a_float(f"{owner}: beta2", beta2, OPEN_UNIT)


def _within(what: str, value: float, interval: Interval) -> float:
    if value not in interval:  # NaN is in none
        raise ValueError(f"{what} must be in {interval.text}, got {value}.")
    return value
