"""The operations that MindSpore's optimizers are written with: three updates as kernels, `assign` and `pow`.

These change arrays or Parameters in place. The orders of arguments are MindSpore's, which differ from one to the next.
All other operations are NumPy's or CuPy's: gradients are arrays, and so is `parameter.data`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fusedopt import functional
from fusedopt.layout import on_device_of
from fusedopt.mindspore.arguments import ABOVE_ZERO, a_flag, a_number
from fusedopt.mindspore.custom import value_of

__all__ = ["ApplyCenteredRMSProp", "ApplyMomentum", "ApplyRMSProp", "assign", "pow"]
NUMPYS = {"select": "where", "mul": "multiply", "sub": "subtract", "div": "divide", "neg": "negative"}  # other names


def __getattr__(name: str) -> Any:
    numpys = NUMPYS.get(name.lower(), name.lower())
    cure = f"np.{numpys}" if hasattr(np, numpys) else "NumPy's operations"
    raise AttributeError(
        f"fusedopt.mindspore.ops has {', '.join(__all__)}, and no {name!r}; take {cure}, on arrays and on "
        f"parameter.data."
    )


def __dir__() -> list[str]:
    return sorted(__all__)


def assign(variable: Any, value: Any) -> Any:
    """Write a value into an array or a Parameter, and return that."""
    array = value_of(variable)
    with on_device_of(array):
        array[...] = value_of(value)
    return variable


def pow(x: Any, y: Any) -> Any:
    """x to the power of y, of numbers, arrays or Parameters."""
    return value_of(x) ** value_of(y)


class ApplyMomentum:
    """accum <- momentum accum + grad / gradient_scale, then variable <- variable - lr accum; where use_nesterov,
    variable <- variable - (lr grad + lr momentum accum).

    Args:
        use_nesterov: See above.
        use_locking: Of no effect: one kernel writes.
        gradient_scale: What gradients are divided by.

    Source: `mindspore.ops.ApplyMomentum`.
    """

    def __init__(self, use_nesterov: bool = False, use_locking: bool = False, gradient_scale: float = 1.0) -> None:
        self._nesterov = a_flag("ApplyMomentum: use_nesterov", use_nesterov)
        a_flag("ApplyMomentum: use_locking", use_locking)
        self._scale = a_number("ApplyMomentum: gradient_scale", gradient_scale, ABOVE_ZERO)

    def __call__(self, variable: Any, accumulation: Any, learning_rate: Any, gradient: Any, momentum: Any) -> Any:
        """Change `variable` and `accumulation`; returns `variable`."""
        functional.momentum(
            value_of(variable),
            value_of(gradient),
            value_of(accumulation),
            step=1,
            in_place=True,
            lr=_number(learning_rate),
            momentum=_number(momentum),
            nesterov=self._nesterov,
            loss_scale=self._scale,
        )
        return variable


class ApplyRMSProp:
    """mean_square <- decay mean_square + (1 - decay) grad^2, moment <- momentum moment + lr grad / sqrt(mean_square +
    epsilon), var <- var - moment.

    Args:
        use_locking: Of no effect: one kernel writes.

    Source: `mindspore.ops.ApplyRMSProp`.
    """

    def __init__(self, use_locking: bool = False) -> None:
        a_flag(f"{type(self).__name__}: use_locking", use_locking)

    def __call__(
        self,
        var: Any,
        mean_square: Any,
        moment: Any,
        learning_rate: Any,
        grad: Any,
        decay: float,
        momentum: float,
        epsilon: float,
    ) -> Any:
        """Change `var`, `mean_square` and `moment`; returns `var`."""
        return _rmsprop(var, None, mean_square, moment, grad, learning_rate, decay, momentum, epsilon)


class ApplyCenteredRMSProp(ApplyRMSProp):
    """As `ApplyRMSProp`, of the variance: mean_gradient <- decay mean_gradient + (1 - decay) grad, and mean_square -
    mean_gradient^2 under the root, from 0. Here the gradient comes before the learning rate.

    Source: `mindspore.ops.ApplyCenteredRMSProp`.
    """

    def __call__(  # type: ignore[override]  # the order of arguments is MindSpore's
        self,
        var: Any,
        mean_gradient: Any,
        mean_square: Any,
        moment: Any,
        grad: Any,
        learning_rate: Any,
        decay: float,
        momentum: float,
        epsilon: float,
    ) -> Any:
        """Change `var`, `mean_gradient`, `mean_square` and `moment`; returns `var`."""
        return _rmsprop(var, mean_gradient, mean_square, moment, grad, learning_rate, decay, momentum, epsilon)


def _rmsprop(
    var: Any, mean_gradient: Any, mean_square: Any, moment: Any, grad: Any, lr: Any, decay: Any, momentum: Any, eps: Any
) -> Any:
    momentum = _number(momentum)
    with _zeros_in(moment) if momentum == 0 else contextlib.nullcontext():
        functional.rmsprop(
            value_of(var),
            value_of(grad),
            value_of(mean_square),
            value_of(moment),
            value_of(mean_gradient),
            step=1,
            in_place=True,
            lr=_number(lr),
            alpha=_number(decay),
            momentum=momentum or 1.0,
            eps=_number(eps),
            centered=mean_gradient is not None,
            eps_inside_sqrt=True,
            lr_in_momentum=True,
        )
    return var


@contextlib.contextmanager
def _zeros_in(moment: Any) -> Iterator[None]:
    """For a momentum of 0, with which the rule keeps no buffer: a share of 1 of zeros is the same. What was there comes
    back where an argument is refused."""
    before = value_of(moment).copy()
    assign(moment, 0)
    try:
        yield
    except BaseException:
        assign(moment, before)
        raise


def _number(value: Any) -> Any:
    """The number that a Parameter or an array of one element holds."""
    value = value_of(value)
    return value.reshape(()).item() if hasattr(value, "reshape") else value
