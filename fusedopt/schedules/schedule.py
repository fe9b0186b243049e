"""What a schedule is: a pure function of the step, and how schedules are scaled, multiplied and joined."""

from __future__ import annotations

import dataclasses
import math
import numbers
import reprlib
import threading
from collections.abc import Callable
from typing import Any

from fusedopt.rules.hyperparameter import Interval


def number(interval: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare an argument that is a number, or a sequence of numbers, within an interval."""
    return dataclasses.field(default=default, metadata={"interval": Interval(interval), "whole": False})


def whole(interval: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare an argument that is a count of steps, or a sequence of such, within an interval."""
    return dataclasses.field(default=default, metadata={"interval": Interval(interval), "whole": True})


def choice(*values: str) -> Any:
    """Declare an argument that is one of some words, the first by default."""
    return dataclasses.field(default=values[0], metadata={"choices": values})


FUNCTION = {"function": True}  # the metadata of an argument that is a function of the step


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Base class: a frozen dataclass, called with a step from 0, which returns the value of that step as a float.

    It has no state: the same step gives the same value. It can be pickled, compared, hashed and printed. A schedule of
    one's own has a method `value(step)`; any other function of the step is as good for an optimizer.

    Raises:
        TypeError, ValueError: An argument is of a wrong kind or out of range; or a step is no whole number from 0.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            what, value = f"{type(self).__name__}: {field.name}", getattr(self, field.name)
            if field.metadata:
                object.__setattr__(self, field.name, _checked(what, field, value))
            elif field.type == "bool" and not isinstance(value, bool):
                raise TypeError(f"{what} must be True or False, got {value!r}.")
        self.check()

    def check(self) -> None:
        """Raise ValueError where arguments do not fit together; each one's own range is checked before."""

    def __call__(self, step: int) -> float:
        if not isinstance(step, numbers.Integral):
            raise TypeError(f"{type(self).__name__}: a step is a whole number from 0, got {step!r}.")
        if step < 0:
            raise ValueError(f"{type(self).__name__}: steps are counted from 0, got {step}.")
        return float(self.value(int(step)))

    def value(self, step: int) -> float:
        """The value of a step that is known to be a whole number from 0."""
        # Of a schedule of one's own that is not finished; `Schedule` itself has no values.
        raise NotImplementedError(f"{type(self).__name__} has no method value(self, step)")

    def scaled(self, factor: float) -> Schedule:
        """This schedule times a number, as `factor * schedule` says it too; `schedule / 10` is `0.1 * schedule`."""
        return Scaled(self, factor)

    def then(self, following: Callable[[int], float], *, at: int) -> Schedule:
        """This schedule for the steps before `at`; from there on the other, whose steps begin at 0 again."""
        return Then(self, following, at)

    def __mul__(self, other: Any) -> Schedule:
        if isinstance(other, numbers.Real):
            return Scaled(self, float(other))
        return Product(self, other) if callable(other) else NotImplemented

    def __truediv__(self, other: Any) -> Schedule:
        return Scaled(self, 1 / float(other)) if isinstance(other, numbers.Real) else NotImplemented

    def __rmul__(self, other: Any) -> Schedule:
        if isinstance(other, numbers.Real):
            return Scaled(self, float(other))
        return Product(other, self) if callable(other) else NotImplemented


@dataclasses.dataclass(frozen=True)
class Scaled(Schedule):
    """`factor * schedule(step)`."""

    schedule: Callable[[int], float] = dataclasses.field(metadata=FUNCTION)
    factor: float = number("(-inf, inf)")

    def value(self, step: int) -> float:
        return self.factor * self.schedule(step)


@dataclasses.dataclass(frozen=True)
class Product(Schedule):
    """`first(step) * second(step)`. Source: `torch.optim.lr_scheduler.ChainedScheduler`."""

    first: Callable[[int], float] = dataclasses.field(metadata=FUNCTION)
    second: Callable[[int], float] = dataclasses.field(metadata=FUNCTION)

    def value(self, step: int) -> float:
        return self.first(step) * self.second(step)


@dataclasses.dataclass(frozen=True)
class Then(Schedule):
    """`first(step)` where `step < at`, else `second(step - at)`. Source: `torch.optim.lr_scheduler.SequentialLR`."""

    first: Callable[[int], float] = dataclasses.field(metadata=FUNCTION)
    second: Callable[[int], float] = dataclasses.field(metadata=FUNCTION)
    at: int = whole("[1, inf)")

    def value(self, step: int) -> float:
        return self.first(step) if step < self.at else self.second(step - self.at)


@dataclasses.dataclass(frozen=True)
class Lambda(Schedule):
    """`base * function(step)`. Pickled with a function that has a name. Source: `torch.optim.lr_scheduler.LambdaLR`."""

    function: Callable[[int], float] = dataclasses.field(metadata=FUNCTION)
    base: float = number("[0, inf)", 1.0)

    def value(self, step: int) -> float:
        return self.base * self.function(step)


_EXTENDING = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Multiplicative(Schedule):
    """`base * function(1) * ... * function(step)`. Source: `torch.optim.lr_scheduler.MultiplicativeLR`.

    The products are kept, 32 bytes a step: a long run would else take a time that grows with its square.
    """

    function: Callable[[int], float] = dataclasses.field(metadata=FUNCTION)
    base: float = number("[0, inf)", 1.0)
    _products: list[float] = dataclasses.field(init=False, repr=False, compare=False, default_factory=list)

    def value(self, step: int) -> float:
        products = self._products
        with _EXTENDING:  # optimizers of several threads may share it
            if not products:
                products.append(self.base)
            for number in range(len(products), step + 1):
                products.append(products[-1] * self.function(number))
        return products[step]


@dataclasses.dataclass(frozen=True)
class Table(Schedule):
    """`values[step]`: what a sequence becomes that is given for a number. It ends: there is no value beyond its last.

    Raises:
        ValueError: It has no value for the step.
    """

    values: tuple[float, ...] = number("(-inf, inf)")

    def check(self) -> None:
        if not self.values:
            raise ValueError("Table: values must be one for each step, got none.")

    def value(self, step: int) -> float:
        if step >= len(self.values):
            raise ValueError(
                f"the sequence has {len(self.values)} values, for steps 0 to {len(self.values) - 1}, and none for step "
                f"{step}; give one for each step of the training, or a schedule."
            )
        return self.values[step]


def _checked(what: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """The argument, its numbers as ints and floats; None where that is the default."""
    if "function" in field.metadata:
        if not callable(value):
            raise TypeError(f"{what} must be a function of the step, got {value!r}.")
        return value
    if "choices" in field.metadata:
        if value not in field.metadata["choices"]:
            raise ValueError(f"{what} must be one of {', '.join(map(repr, field.metadata['choices']))}, got {value!r}.")
        return value
    if value is None and field.default is None:
        return None
    if not str(field.type).startswith("tuple"):
        return _checked_number(what, field, value)
    try:
        items = value.tolist() if hasattr(value, "tolist") else list(value)
    except TypeError:
        items = None
    if not isinstance(items, list) or isinstance(value, (str, bytes)):
        raise TypeError(f"{what} must be a sequence of numbers, got {reprlib.repr(value)}.")
    return tuple(_checked_number(f"{what}[{i}]", field, item) for i, item in enumerate(items))


def _checked_number(what: str, field: dataclasses.Field[Any], value: Any) -> Any:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    counts, interval = field.metadata["whole"], field.metadata["interval"]
    if isinstance(value, bool) or not isinstance(value, int if counts else numbers.Real):
        kind = "a whole number" if counts else "a number"
        raise TypeError(f"{what} must be {kind} in {interval.text}, got {value!r} ({type(value).__name__}).")
    if not math.isfinite(value) or value not in interval:
        raise ValueError(f"{what} must be in {interval.text}, got {value}.")
    return value if counts else float(value)
