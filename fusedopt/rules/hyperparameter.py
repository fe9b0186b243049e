"""A hyperparameter of a rule: how it is declared, what range it has, and how a value is checked."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import numpy as np


class Interval:
    """A range of numbers as one writes it: `[0, 1)` has 0 in it and 1 not. NaN is in none."""

    def __init__(self, text: str) -> None:
        parts = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", text)
        if parts is None:
            raise ValueError(
                f"a range is written like '[0, 1)', with infinity as '[0, inf)' or '(-inf, inf)', got {text!r}."
            )
        self.text, self.low, self.high = text, float(parts[2]), float(parts[3])
        self._from_low, self._to_high = parts[1] == "[", parts[4] == "]"

    def __contains__(self, value: float) -> bool:
        above = value >= self.low if self._from_low else value > self.low
        below = value <= self.high if self._to_high else value < self.high
        return above and below


def hyperparameter(
    default: Any,
    interval: str | tuple[str, ...] = "",
    doc: str = "",
    *,
    switch: bool = False,
    kw_only: bool = False,
    fixed: bool = False,
    common: bool = False,
    choices: tuple[Any, ...] = (),
    whole: bool = False,
    storage: bool = False,
    by_state: bool = False,
) -> Any:
    """Declare one hyperparameter of a rule: the only place where its default, range and meaning are written.

    Args:
        default: A float, a tuple of floats, or a bool. A bool is a flag, and each of its values is a kernel variant.
            With `choices`, one of these. None among a tuple's floats: it may be None, for procedures alone.
        interval: The allowed range of a number (of each one in a tuple), such as `"[0, inf)"`; a tuple of ranges, one
            for each number of a tuple. A flag has none: its second argument is `doc`.
        doc: What it is, for `help()` and the documentation.
        switch: The number is also a flag: `if self.momentum:` in a rule asks whether it is on (not zero).
        kw_only: It can be given by keyword only.
        fixed: It cannot be given at all: the rule is defined by this value.
        common: Param groups show it where it was given: what every rule has, and what torch's class lacks.
        choices: All values that it may have, such as `(None, "strong_wolfe")`: a flag of more than two.
        whole: The number is an int. Where its default is None, it may be None, for procedures alone.
        storage: It says how arrays are kept, which the mathematics knows nothing of, and does not change in a group.
        by_state: It may also be a dict of choices by the names of the rule's states.
    """
    if isinstance(default, bool) and isinstance(interval, str) and interval:
        interval, doc = "", doc or interval
    intervals: Any
    try:
        intervals = _intervals(default, interval)
    except ValueError as error:  # `Rule.__init_subclass__` raises it, where the rule and the name are known
        intervals = error
    metadata = {
        "interval": intervals,
        "doc": doc,
        "switch": switch,
        "common": common,
        "choices": choices,
        "whole": whole,
        "storage": storage,
        "by_state": by_state,
    }
    hashed = False if by_state else None  # a dict cannot be
    return dataclasses.field(default=default, init=not fixed, kw_only=kw_only, hash=hashed, metadata=metadata)


def _intervals(default: Any, text: str | tuple[str, ...]) -> Interval | tuple[Interval, ...] | None:
    """The range of a number, or those of a tuple's numbers; None where nothing is said."""
    if not isinstance(default, tuple):
        if isinstance(text, tuple):
            raise ValueError(f"the default {default!r} is no tuple: it has one range, got {text!r}.")
        return Interval(text) if text else None
    texts = text if isinstance(text, tuple) else (text,) * len(default)
    if len(texts) != len(default):
        raise ValueError(f"{len(default)} numbers such as {default} have one range or {len(default)}, got {text!r}.")
    return tuple(map(Interval, texts)) if text else None


def is_flag(field: dataclasses.Field[Any]) -> bool:
    """Whether an option is no number: True or False, or one of some choices."""
    return isinstance(field.default, bool) or bool(field.metadata["choices"])


def check_hyperparameters(rule: type[Any]) -> None:
    """Raise, with the names, for a hyperparameter that dataclasses would not see, or whose range cannot be read."""
    for name, field in vars(rule).items():
        if isinstance(field, dataclasses.Field):
            if name not in inspect.get_annotations(rule):
                kind = type(field.default).__name__
                raise TypeError(
                    f"rule {rule.__name__}: {name} must have its type, which makes it a field; write {name}: {kind} = "
                    f"hyperparameter({field.default!r}, ...)."
                )
            if isinstance(problem := field.metadata.get("interval"), ValueError):
                raise ValueError(f"rule {rule.__name__}: {name}: {problem}")


def checked(rule: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """The value as bool, float or tuple of floats, each None where that is its default, or an error that names it."""
    default, choices = field.default, field.metadata["choices"]
    if field.metadata["by_state"] and isinstance(value, Mapping):
        return {name: _choice(f"{rule}: {field.name}[{name!r}]", choices, one) for name, one in value.items()}
    if choices:
        return _choice(f"{rule}: {field.name}", choices, value)
    if isinstance(default, bool):
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{rule}: {field.name} is a flag, True or False, got {value!r}.")
        return bool(value)
    if not isinstance(default, tuple):
        if value is None and default is None:
            return None
        number = _checked_number(f"{rule}: {field.name}", field.metadata["interval"], value)
        return _whole(f"{rule}: {field.name}", number) if field.metadata["whole"] else number
    try:
        items = tuple(value)
    except TypeError:
        items = ()
    if len(items) != len(default) or isinstance(value, (str, Mapping)):
        raise ValueError(f"{rule}: {field.name} must be {len(default)} numbers such as {default}, got {value!r}.")
    intervals = field.metadata["interval"] or (None,) * len(default)
    return tuple(
        None if item is None and usual is None else _checked_number(f"{rule}: {field.name}[{i}]", interval, item)
        for i, (item, usual, interval) in enumerate(zip(items, default, intervals, strict=True))
    )


def _choice(what: str, choices: tuple[Any, ...], value: Any) -> Any:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return value


def _checked_number(what: str, interval: Interval | None, value: Any) -> float:
    zero_dimensional = getattr(value, "shape", None) == () and hasattr(value, "item")
    if zero_dimensional:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        cure = "; a function of the step is called first, from step 0: schedule(step - 1)" if callable(value) else ""
        raise TypeError(f"{what} must be a number, got {value!r} ({type(value).__name__}){cure}.")
    number = float(value)
    if math.isnan(number) or (interval is not None and number not in interval):
        raise ValueError(f"{what} must be in {interval.text if interval else '(-inf, inf)'}, got {number}.")
    return number


def _whole(what: str, number: float) -> int:
    if number % 1 != 0:
        raise ValueError(f"{what} must be a whole number, got {number}.")
    return int(number)
