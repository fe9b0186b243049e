"""Clipping gradients where they are: by the norm of all of them together, or each element."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

from fusedopt.layout import on_device_of
from fusedopt.parameter import Parameter
from fusedopt.sparse_gradient import SparseGradient

PIECE = 1 << 20  # elements that are widened to float64 at a time: 8 MiB, whatever the tensor's size


def clip_grad_norm(
    parameters: Parameter | Iterable[Parameter],
    max_norm: float,
    ord: float = 2.0,
    *,
    error_if_nonfinite: bool = False,
) -> float:
    """Multiply all gradients by min(1, max_norm / (norm + 1e-6)), in place; norm is that of all of them as one vector.

    It is accumulated in float64: a float16 gradient's may be past 65,504. Where it is not finite, the gradients are
    left as they are, and `optimizer.step(found_inf=not math.isfinite(norm))` skips the step.

    Args:
        parameters: A Parameter or some; those without a gradient do not count.
        max_norm: From 0.
        ord: Of the norm: above 0, or `math.inf` for the largest magnitude.
        error_if_nonfinite: Raise where the norm is not finite.

    Returns:
        The norm before; 0.0 where there are no gradients. For CuPy arrays this waits for the device.

    Raises:
        ValueError: A negative max_norm, an ord that is not above 0, or a norm that is not finite, where that is asked.

    Source: MegEngine's `clip_grad_norm`, `torch.nn.utils.clip_grad_norm_`.
    """
    max_norm, ord = _number("max_norm", max_norm), _number("ord", ord)
    if max_norm < 0:
        raise ValueError(f"clip_grad_norm: max_norm must be in [0, inf], got {max_norm}; it would turn the gradients.")
    if ord <= 0:
        raise ValueError(f"clip_grad_norm: ord must be above 0, or math.inf, got {ord}.")
    gradients = _gradients(parameters)
    norm = _combined([norm_of(gradient, ord) for gradient in gradients], ord)
    if not math.isfinite(norm):
        if error_if_nonfinite:
            raise ValueError(
                f"clip_grad_norm: the norm of the gradients is {norm}; skip this step, or pass "
                f"error_if_nonfinite=False to go on."
            )
        return norm
    coefficient = max_norm / (norm + 1e-6)
    if coefficient < 1:
        for gradient in gradients:
            with on_device_of(gradient):
                _multiply(gradient, coefficient)
    return norm


def clip_grad_value(parameters: Parameter | Iterable[Parameter], lower: float, upper: float) -> None:
    """Cut each element of all gradients to [lower, upper], in place. NaN stays NaN.

    Raises:
        ValueError: lower is above upper.

    Source: MegEngine's `clip_grad_value`; torch's `clip_grad_value_(parameters, c)` is `(parameters, -c, c)` here.
    """
    lower, upper = _number("lower", lower), _number("upper", upper)
    if lower > upper:
        raise ValueError(f"clip_grad_value: lower must not be above upper, got lower={lower} and upper={upper}.")
    for gradient in _gradients(parameters):
        with on_device_of(gradient), np.errstate(all="ignore"):
            low, high = gradient.dtype.type(lower), gradient.dtype.type(upper)
            gradient[gradient < low] = low
            gradient[gradient > high] = high


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise ValueError(f"clipping: {what} must be a number, got {value!r}.")
    return float(value)


def _gradients(parameters: Parameter | Iterable[Parameter]) -> list[Any]:
    """Those that are there, as arrays to write to."""
    parameters = [parameters] if isinstance(parameters, Parameter) else list(parameters)
    for index, parameter in enumerate(parameters):
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"clipping: element {index} is a {type(parameter).__name__}, not a fusedopt.Parameter; give the "
                f"parameters whose gradients are to be clipped."
            )
        if isinstance(parameter.grad, SparseGradient):
            raise TypeError(
                f"clipping: {parameter.described} has a SparseGradient; clip its values before it is given."
            )
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _multiply(gradient: Any, coefficient: float) -> None:
    """In place; half precision in float32, since a coefficient below 3e-8 is 0 in float16."""
    if gradient.dtype.itemsize > 2:
        gradient *= gradient.dtype.type(coefficient)
        return
    flat = gradient.reshape(-1)
    for i in range(0, flat.size, PIECE):
        flat[i : i + PIECE] = flat[i : i + PIECE].astype("float32") * np.float32(coefficient)


def norm_of(array: Any, ord: float = 2.0) -> float:
    """The norm of all elements, accumulated in float64. For a CuPy array this waits for the device."""
    flat = array.reshape(-1)
    with on_device_of(array), np.errstate(all="ignore"):
        pieces = (abs(flat[i : i + PIECE].astype("float64")) for i in range(0, flat.size, PIECE))
        if ord == math.inf:
            return _combined([float(piece.max()) for piece in pieces], ord)
        return _root([float((piece * piece if ord == 2 else piece**ord).sum()) for piece in pieces], ord)


def _combined(norms: list[float], ord: float) -> float:
    """The norm of the concatenation of vectors with these norms."""
    if any(math.isnan(norm) for norm in norms):
        return math.nan
    largest = max(norms, default=0.0)
    if ord == math.inf or not 0 < largest < math.inf:
        return largest
    return largest * _root([(norm / largest) ** ord for norm in norms], ord)


def _root(powers: list[float], ord: float) -> float:
    """The ord-th root of their sum; inf where it is past float64, as an ord of 0.01 takes 1,259 to."""
    try:
        return math.pow(math.fsum(powers), 1 / ord)
    except OverflowError:
        return math.inf
