"""MindSpore's schedules under its own names: six classes, and seven functions that return a list with a value a step.

Values are float64, where MindSpore evaluates the classes in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from fusedopt.schedules.schedule import Schedule

# --- the equations, which classes and functions share ----------------------------------------------------------------


def _exponential(lr: float, rate: float, done: float, length: int, stair: bool) -> float:
    return lr * math.pow(rate, done // length if stair else done / length)


def _natural_exp(lr: float, rate: float, done: float, length: int, stair: bool) -> float:
    return lr * math.exp(-rate * (done // length * length if stair else done))


def _inverse(lr: float, rate: float, done: float, length: int, stair: bool) -> float:
    return lr / (1 + rate * (done // length if stair else done / length))


def _cosine(low: float, high: float, done: float, length: int) -> float:
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * min(done, length) / length))


def _polynomial(lr: float, end: float, done: float, length: int, power: float, update: bool) -> float:
    if update:
        length *= max(1, math.ceil(done / length))
    return (lr - end) * math.pow(1 - min(done, length) / length, power) + end


# --- checks ----------------------------------------------------------------------------------------------------------


def _check(owner: str, arguments: dict[str, Any]) -> None:
    """Raise TypeError or ValueError as MindSpore does: rates are floats and never ints, counts are positive."""
    for name, value in arguments.items():
        if name in ("is_stair", "update_decay_steps", "update_decay_epoch"):
            if not isinstance(value, bool):
                raise TypeError(f"{owner}: {name} must be True or False, got {value!r}.")
        elif name in ("learning_rate", "decay_rate", "power", "min_lr", "max_lr", "end_learning_rate"):
            _check_rate(f"{owner}: {name}", value, zero=name in ("min_lr", "end_learning_rate"))
        else:
            _check_count(f"{owner}: {name}", value)
    if "max_lr" in arguments and arguments["max_lr"] <= arguments["min_lr"]:
        raise ValueError(f"{owner}: max_lr must be above min_lr, {arguments['min_lr']}, got {arguments['max_lr']}.")


def _check_rate(what: str, value: Any, zero: bool = False) -> None:
    if not isinstance(value, float):
        raise TypeError(f"{what} must be a float, got {value!r} ({type(value).__name__}); write 1.0 for 1.")
    if not math.isfinite(value) or not (value >= 0 if zero else value > 0):
        raise ValueError(f"{what} must be in {'[' if zero else '('}0, inf), got {value}.")


def _check_count(what: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be a whole number, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ValueError(f"{what} must be in [1, inf), got {value}.")


# --- schedules of the step -------------------------------------------------------------------------------------------


class LearningRateSchedule(Schedule):
    """Base class of MindSpore's schedules."""

    def check(self) -> None:
        _check(type(self).__name__, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class ExponentialDecayLR(LearningRateSchedule):
    """`learning_rate * decay_rate ** (s / decay_steps)`; `is_stair` takes the whole part of the exponent.

    Source: `mindspore.nn.ExponentialDecayLR`.
    """

    learning_rate: float
    decay_rate: float
    decay_steps: int
    is_stair: bool = False

    def value(self, step: int) -> float:
        return _exponential(self.learning_rate, self.decay_rate, step, self.decay_steps, self.is_stair)


@dataclasses.dataclass(frozen=True)
class NaturalExpDecayLR(LearningRateSchedule):
    """`learning_rate * exp(-decay_rate * s)`; `is_stair` takes s down to a multiple of `decay_steps`, which is of no
    effect without it, whatever MindSpore's page says.

    Source: `mindspore.nn.NaturalExpDecayLR`.
    """

    learning_rate: float
    decay_rate: float
    decay_steps: int
    is_stair: bool = False

    def value(self, step: int) -> float:
        return _natural_exp(self.learning_rate, self.decay_rate, step, self.decay_steps, self.is_stair)


@dataclasses.dataclass(frozen=True)
class InverseDecayLR(LearningRateSchedule):
    """`learning_rate / (1 + decay_rate * s / decay_steps)`; `is_stair` takes the whole part of `s / decay_steps`.

    Source: `mindspore.nn.InverseDecayLR`.
    """

    learning_rate: float
    decay_rate: float
    decay_steps: int
    is_stair: bool = False

    def value(self, step: int) -> float:
        return _inverse(self.learning_rate, self.decay_rate, step, self.decay_steps, self.is_stair)


@dataclasses.dataclass(frozen=True)
class CosineDecayLR(LearningRateSchedule):
    """`min_lr + (max_lr - min_lr) * (1 + cos(pi * min(s, decay_steps) / decay_steps)) / 2`.

    Source: `mindspore.nn.CosineDecayLR`.
    """

    min_lr: float
    max_lr: float
    decay_steps: int

    def value(self, step: int) -> float:
        return _cosine(self.min_lr, self.max_lr, step, self.decay_steps)


@dataclasses.dataclass(frozen=True)
class PolynomialDecayLR(LearningRateSchedule):
    """`(learning_rate - end) * (1 - min(s, D) / D) ** power + end`, D being `decay_steps`; with `update_decay_steps`
    its least multiple that s does not pass.

    Source: `mindspore.nn.PolynomialDecayLR`.
    """

    learning_rate: float
    end_learning_rate: float
    decay_steps: int
    power: float
    update_decay_steps: bool = False

    def value(self, step: int) -> float:
        return _polynomial(
            self.learning_rate, self.end_learning_rate, step, self.decay_steps, self.power, self.update_decay_steps
        )


@dataclasses.dataclass(frozen=True)
class WarmUpLR(LearningRateSchedule):
    """`learning_rate * min(s, warmup_steps) / warmup_steps`: 0 at the first step. Source: `mindspore.nn.WarmUpLR`."""

    learning_rate: float
    warmup_steps: int

    def value(self, step: int) -> float:
        return self.learning_rate * min(step, self.warmup_steps) / self.warmup_steps


# --- lists, in which e is the epoch: floor(step / step_per_epoch) ----------------------------------------------------


def _each(total_step: int, step_per_epoch: int, value: Callable[[int], float]) -> list[float]:
    return [value(step // step_per_epoch) for step in range(total_step)]


def piecewise_constant_lr(milestone: Sequence[int], learning_rates: Sequence[float]) -> list[float]:
    """Each rate up to its milestone, the last of which is the length. Source: `mindspore.nn.piecewise_constant_lr`.

    Raises:
        TypeError, ValueError: As for all seven, an argument is of a wrong kind or out of range.
    """
    for name, value in (("milestone", milestone), ("learning_rates", learning_rates)):
        if not isinstance(value, (list, tuple)) or not value:
            raise TypeError(f"piecewise_constant_lr: {name} must be a list of at least one number, got {value!r}.")
    if len(milestone) != len(learning_rates):
        raise ValueError(
            f"piecewise_constant_lr: {len(milestone)} milestones need as many learning_rates, got "
            f"{len(learning_rates)}."
        )
    values: list[float] = []
    for i, (last, rate) in enumerate(zip(milestone, learning_rates)):
        _check_count(f"piecewise_constant_lr: milestone[{i}]", last)
        _check_rate(f"piecewise_constant_lr: learning_rates[{i}]", rate)
        if last < len(values):
            raise ValueError(f"piecewise_constant_lr: milestone must not decrease, got {milestone}; sort it.")
        values += [rate] * (last - len(values))
    return values


def exponential_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """`learning_rate * decay_rate ** (e / decay_epoch)`. Source: `mindspore.nn.exponential_decay_lr`."""
    _check("exponential_decay_lr", locals())
    return _each(
        total_step, step_per_epoch, lambda e: _exponential(learning_rate, decay_rate, e, decay_epoch, is_stair)
    )


def natural_exp_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """`learning_rate * exp(-decay_rate * e)`. Source: `mindspore.nn.natural_exp_decay_lr`."""
    _check("natural_exp_decay_lr", locals())
    return _each(
        total_step, step_per_epoch, lambda e: _natural_exp(learning_rate, decay_rate, e, decay_epoch, is_stair)
    )


def inverse_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """`learning_rate / (1 + decay_rate * e / decay_epoch)`. Source: `mindspore.nn.inverse_decay_lr`."""
    _check("inverse_decay_lr", locals())
    return _each(total_step, step_per_epoch, lambda e: _inverse(learning_rate, decay_rate, e, decay_epoch, is_stair))


def cosine_decay_lr(
    min_lr: float, max_lr: float, total_step: int, step_per_epoch: int, decay_epoch: int
) -> list[float]:
    """Half a wave of a cosine over `decay_epoch` epochs. Source: `mindspore.nn.cosine_decay_lr`."""
    _check("cosine_decay_lr", locals())
    return _each(total_step, step_per_epoch, lambda e: _cosine(min_lr, max_lr, e, decay_epoch))


def polynomial_decay_lr(
    learning_rate: float,
    end_learning_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    power: float,
    update_decay_epoch: bool = False,
) -> list[float]:
    """As `PolynomialDecayLR`, of the epoch. Source: `mindspore.nn.polynomial_decay_lr`."""
    _check("polynomial_decay_lr", locals())
    return _each(
        total_step,
        step_per_epoch,
        lambda e: _polynomial(learning_rate, end_learning_rate, e, decay_epoch, power, update_decay_epoch),
    )


def warmup_lr(learning_rate: float, total_step: int, step_per_epoch: int, warmup_epoch: int) -> list[float]:
    """`learning_rate * min(e, warmup_epoch) / warmup_epoch`: 0 in the first epoch. Source: `mindspore.nn.warmup_lr`."""
    _check("warmup_lr", locals())
    return _each(total_step, step_per_epoch, lambda e: learning_rate * min(e, warmup_epoch) / warmup_epoch)
