"""MindSpore's AdaFactor, written out over arrays in its own form: no kernel has its options."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fusedopt.backends import module_of
from fusedopt.layout import on_device_of
from fusedopt.mindspore.arguments import FROM_ZERO, HALF_OPEN_UNIT, OPEN_UNIT, a_flag, a_float
from fusedopt.mindspore.custom import Optimizer, Parameter, ParameterTuple, real_of


class AdaFactor(Optimizer):
    """Adafactor, whose second moments of matrices are a row and a column. Array code: many passes, temporary arrays.
    Every parameter is decayed, whatever its name.

        a <- lr, or where relative_step min(1e-2, 1 / sqrt(t)), 1e-6 t for 1e-2 where warmup_init
        a <- a max(eps[1], rms(p))                                 where scale_parameter
        b <- 1 - t^-decay_rate
        R, C <- b R + (1 - b) mean(g^2 + eps[0], -1), b C + (1 - b) mean(g^2 + eps[0], -2)
        u <- g / sqrt(R C / mean(R))                               without rows: g / sqrt(V), V likewise
        u <- a u / max(1, rms(u) / clip_threshold)
        m <- beta1 m + (1 - beta1) u,  u <- m                      where beta1
        p <- p - a weight_decay p - u

    R, C and V are float64 for float64 parameters and float32 for all others: g^2 is 0 in float16 below |g| = 2e-4.

    Args:
        params, learning_rate, weight_decay, loss_scale: As for `Optimizer`; learning_rate is None where relative_step.
        beta1: None or 0.0: no first moment.
        compression: Keep the first moment in float16.
        eps, clip_threshold, decay_rate, scale_parameter, relative_step, warmup_init: See above.

    Raises:
        ValueError: A learning rate beside relative_step, or neither; warmup_init without relative_step.

    Source: Shazeer & Stern 2018, arXiv:1804.04235; `mindspore.nn.AdaFactor`.
    """

    filters_names: ClassVar[bool] = False  # one flag for all of them, as in MindSpore

    def __init__(
        self,
        params: Any,
        learning_rate: Any = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = 0.8,
        beta1: float | None = 0.9,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        compression: bool = False,
        loss_scale: float = 1.0,
    ) -> None:
        self.relative_step = a_flag("AdaFactor: relative_step", relative_step)
        self.warmup_init = a_flag("AdaFactor: warmup_init", warmup_init)
        self.scale_parameter = a_flag("AdaFactor: scale_parameter", scale_parameter)
        if (learning_rate is None) != relative_step:
            raise ValueError(
                f"AdaFactor takes learning_rate or relative_step=True, got {learning_rate!r} and {relative_step}; "
                f"give one of them."
            )
        if warmup_init and not relative_step:
            raise ValueError("AdaFactor: warmup_init=True needs relative_step=True.")
        self.eps = tuple(a_float(f"AdaFactor: eps[{i}]", value) for i, value in enumerate(eps))
        if len(self.eps) != 2:
            raise ValueError(f"AdaFactor: eps must be two floats, such as (1e-30, 1e-3), got {eps!r}.")
        self.clip_threshold = a_float("AdaFactor: clip_threshold", clip_threshold, FROM_ZERO)
        self.decay_rate = a_float("AdaFactor: decay_rate", decay_rate, OPEN_UNIT)
        self.beta1 = a_float("AdaFactor: beta1", beta1 or 0.0, HALF_OPEN_UNIT)
        a_float("AdaFactor: weight_decay", float(weight_decay), HALF_OPEN_UNIT)
        kept = np.float16 if a_flag("AdaFactor: compression", compression) else None
        super().__init__(0.0 if learning_rate is None else learning_rate, params, weight_decay, loss_scale)
        first = [_zeros(p, "exp_avg", p.shape, kept) for p in self.parameters] if self.beta1 else []
        self.exp_avg = ParameterTuple(first)
        self.exp_avg_sq = tuple(ParameterTuple(_second_moments(p)) for p in self.parameters)

    def construct(self, gradients: Any) -> bool:
        rates = self.get_lr() if self.is_group_lr else (self.get_lr(),) * len(self.parameters)
        gradients = self.gradients_centralization(self.scale_grad(gradients))
        for i, (p, g, lr, decay) in enumerate(zip(self.parameters, gradients, rates, self.get_weight_decay())):
            if not p.size:  # whose means are NaN
                continue
            with on_device_of(p.data):
                real = real_of(p)
                self._update(p, g.astype(real), self._rate(p, lr, real), real(decay), i)
        return True

    def _rate(self, p: Parameter, lr: float, real: Any) -> Any:
        """The step size, of dtype real."""
        step = self.global_step + 1
        if self.relative_step:
            lr = min(1e-6 * step if self.warmup_init else 1e-2, step**-0.5)
        return real(lr) * np.maximum(_rms(p.data.astype(real)), real(self.eps[1])) if self.scale_parameter else real(lr)

    def _update(self, p: Parameter, g: Any, rate: Any, decay: Any, i: int) -> None:
        kept = g.dtype.type(1 - (self.global_step + 1) ** -self.decay_rate)
        square = g * g + g.dtype.type(self.eps[0])
        means = [square.mean(-1), square.mean(-2)] if g.ndim > 1 else [square]
        for moment, mean in zip(self.exp_avg_sq[i], means):
            moment.data[...] = kept * moment.data.astype(g.dtype) + (1 - kept) * mean
        u = g / np.sqrt(_second_moment([moment.data.astype(g.dtype) for moment in self.exp_avg_sq[i]]))
        u = rate * u / np.maximum(_rms(u) / g.dtype.type(self.clip_threshold), g.dtype.type(1))
        if self.beta1:
            beta1, first = g.dtype.type(self.beta1), self.exp_avg[i].data
            u = beta1 * first.astype(g.dtype) + (1 - beta1) * u
            first[...] = u
        values = p.data.astype(g.dtype)
        p.data[...] = values - rate * decay * values - u


def _second_moment(moments: list[Any]) -> Any:
    if len(moments) == 1:
        return moments[0]
    row, column = moments
    return (row / row.mean(-1, keepdims=True))[..., None] * column[..., None, :]


def _rms(x: Any) -> Any:
    return np.sqrt((x * x).mean())


def _second_moments(p: Parameter) -> list[Parameter]:
    if p.ndim < 2:
        return [_zeros(p, "exp_avg_sq", p.shape, real_of(p))]
    row, column = p.shape[:-1], (*p.shape[:-2], p.shape[-1])
    return [_zeros(p, "exp_avg_sq_row", row, real_of(p)), _zeros(p, "exp_avg_sq_col", column, real_of(p))]


def _zeros(p: Parameter, prefix: str, shape: tuple[int, ...], dtype: Any = None) -> Parameter:
    """A state where the parameter is."""
    with on_device_of(p.data):
        data = module_of(p.data).zeros(shape, dtype or p.dtype)
    return Parameter(data, f"{prefix}.{p.name}", p.requires_grad)
