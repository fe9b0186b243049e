"""What Adafactor's procedures over arrays and over tensors share: second moments as rows and columns, and launches."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fusedopt.layout import TensorSpan
from fusedopt.procedures.launched_rules import Movement, Replacement
from fusedopt.procedures.launches import LaunchPlan, T
from fusedopt.rules.adafactor import MOMENTS, Adafactor
from fusedopt.rules.rule import Rule
from fusedopt.storage import BESIDE_PARAMETER, HALVES, Kept, storage

Moments = dict[str, Any]
BESIDE = frozenset(key for key, _ in BESIDE_PARAMETER.values())
# Random numbers for moments are those of parameters with these numbers, two for each: no optimizer has as many.
FIRST_MOMENT = 2**30


def learned(
    xp: Any, p: Any, g: Any, moments: Moments, rule: Adafactor, weight: Any, rate: Any, eps: float
) -> tuple[Any, Moments]:
    """The update of a step, which the parameter moves by after its decay, and the second moments, in new arrays.

    Args:
        xp: The module of the arrays: numpy, cupy or torch. Of p, the root mean square is taken.
        p, g, moments: Not empty, of the dtype that is computed in.
        weight, rate: Of this step: what a square counts in the moments, and the bound of lr. Numbers, or arrays of no
            axes and of that dtype.
        eps: What `rule.eps[0]` is for this parameter.
    """
    g = -g if rule.maximize else g
    moments = _averaged(g, moments, weight)
    u = g / _second_moment(moments, eps).clip(eps * eps, None) ** 0.5
    length = rate * _larger(xp, _rms(xp, p), rule.eps[1])
    u *= length / _larger(xp, _rms(xp, u) / rule.d, 1.0)
    return u, moments


def _averaged(g: Any, moments: Moments, weight: Any) -> Moments:
    square = g * g
    if "variance" in moments:
        means = {"variance": square}
    else:
        means = {name: square.mean(axis=axis, keepdims=True) for name, axis in (("row_var", -1), ("col_var", -2))}
    return {name: moments[name] + weight * (mean - moments[name]) for name, mean in means.items()}


def _second_moment(moments: Moments, eps: float) -> Any:
    if "variance" in moments:
        return moments["variance"]
    row = moments["row_var"]
    return row / row.mean(axis=-2, keepdims=True).clip(eps, None) * moments["col_var"]


def _rms(xp: Any, x: Any) -> Any:
    return xp.linalg.norm(x) / math.sqrt(math.prod(x.shape))


def _larger(xp: Any, x: Any, least: float) -> Any:
    """The larger one; of NaN the other, as in torch: an element that is NaN spoils no others of a vector."""
    return xp.where(x > least, x, least)


def checked_moments(
    entry: Mapping[str, Any], shape: tuple[int, ...], what: str, array: Callable[[str, str, Any], Any]
) -> Moments:
    """The second moments in what a state dict has for a parameter of this shape.

    Args:
        what: Whose it is, for messages.
        array: (what it is, its name, value) -> one of its own, or an error where it is no array that fits.

    Raises:
        KeyError: Something is missing.
        ValueError: Something is unknown, or has another shape.
    """
    shapes = Adafactor.moment_shapes(shape)
    for name in entry:
        if name not in ("step", *shapes, *BESIDE):
            raise ValueError(f"{what} has {name!r}; Adafactor keeps step, {', '.join(shapes)} of this shape.")
    for name in ("step", *shapes):
        if name not in entry:
            raise KeyError(f"{what} lacks {name!r}; it has {', '.join(map(repr, entry))}.")
    for name, expected in shapes.items():
        found = getattr(entry[name], "shape", None)
        if found is not None and tuple(found) != expected:
            raise ValueError(f"{what}: {name} has shape {tuple(found)} and must have {expected}.")
    return {name: array(f"{what}: {name}", name, entry[name]) for name in shapes}


def entries_in(saved: Any, parameters: Iterable[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Each parameter with state and what a state dict has for it; none where it is no state dict, refused later."""
    try:
        ids = [number for group in saved["param_groups"] for number in group["params"]]
        entries = [saved["state"].get(number, {}) for number in ids]
        kept = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
    except (AttributeError, KeyError, TypeError):
        return []
    return [(parameter, entry) for parameter, entry in zip(parameters, kept) if entry]


def without_moments(saved: Any) -> Any:
    """A state dict whose state is the steps alone; itself where it is none."""
    try:
        state = {
            number: {name: value for name, value in entry.items() if name not in MOMENTS}
            for number, entry in saved["state"].items()
        }
    except (AttributeError, KeyError, TypeError):
        return saved
    return {**saved, "state": state}


class AdafactorPlan(LaunchPlan[T]):
    """Updates are made of whole tensors at once; a launch keeps the moments, and another moves the parameters."""

    def movement(self, rule: Adafactor) -> Movement:
        return Movement(rule.lr * rule.weight_decay, seed=rule.seed)

    @abstractmethod
    def moments(self, task: T) -> list[Moment]:
        """What is kept of the parameter, in the order of its shapes."""

    def after(self, task: T) -> list[TensorSpan]:
        group, rule, span = self.group(task, replacement), task.span.group.rule, task.span
        return [
            TensorSpan(
                group,
                moment.size,
                (moment.size,),
                storage(
                    Kept(moment.dtype, stochastic=rule.stochastic_rounding and moment.dtype in HALVES),
                    Kept(real_of(moment.dtype)),
                    (),
                ),
                moment.kept,
                moment.computed,
                (),
                span.counters,
                number,
            )
            for number, moment in enumerate(self.moments(task), FIRST_MOMENT + 2 * span.number)
        ]


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where a second moment is kept, and where it is computed: flat memory, as the backend takes it.

    Attributes:
        dtype: Name of the type that it is kept in; it is computed in `real_of` that.
    """

    size: int
    dtype: str
    kept: Any
    computed: Any


def moment_bytes(rule: Rule, shape: tuple[int, ...], dtype: str) -> int:
    """Of the second moments of a parameter of this shape, which are of this type where the rule leaves it open."""
    shapes = Adafactor.moment_shapes(shape)
    return sum(math.prod(shapes[n]) * np.dtype(rule.state_dtype_of(n) or dtype).itemsize for n in shapes)


def real_of(dtype: str) -> str:
    """The type of the arithmetic on values of this one."""
    return "float64" if dtype == "float64" else "float32"


def replacement(rule: Adafactor) -> Replacement:
    """What launches keep moments with."""
    return Replacement(seed=rule.seed)
