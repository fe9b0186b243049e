"""Adam for gradients of some rows: of an embedding, those that a batch looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fusedopt.rules.arithmetic import power
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class SparseAdam(Rule):
    """Adam that touches the rows which the gradient has, their moments too, and nothing else.

        g <- -g                                 where maximize
        m <- m + (1 - beta1) (g - m)
        v <- v + (1 - beta2) (g^2 - v)
        p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)

    eps is beside the root of the uncorrected second moment: at the first step it weighs 1 / sqrt(1 - beta2) times what
    it does in Adam. t counts the parameter's steps, not a row's.

    Source: `torch.optim.SparseAdam`.
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    betas: tuple[float, float] = hyperparameter((0.9, 0.999), "[0, 1)", "decay of the first and the second moment")
    eps: float = hyperparameter(1e-8, "(0, inf)", "added to the root of the second moment")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend")

    state = ("exp_avg", State("exp_avg_sq", codes="unsigned"))
    procedure: ClassVar[bool] = True  # rows are gathered and scattered around `update`
    no_storages: ClassVar[str] = (
        "which updates rows without a launch; leave it out, or use LazyAdam or Adam, with dense gradients"
    )

    def scalars(self, step: Any, a: Any) -> Values:
        beta1, beta2 = self.betas
        step_size = self.lr * np.sqrt(1 - power(beta2, step)) / (1 - power(beta1, step))
        return Values(step_size=step_size, rest1=1 - beta1, rest2=1 - beta2, eps=self.eps)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        exp_avg = s.exp_avg + c.rest1 * (g - s.exp_avg)
        exp_avg_sq = s.exp_avg_sq + c.rest2 * (g * g - s.exp_avg_sq)
        new = Values(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
        return p - c.step_size * (exp_avg / (np.sqrt(exp_avg_sq) + c.eps)), new


@dataclass(frozen=True)
class LazyAdam(SparseAdam):
    """MindSpore's SparseAdam, with decay and a look ahead; a dense gradient updates all rows, in one launch.

        g <- g + weight_decay p                                        of the touched rows
        m, v as SparseAdam
        n <- beta1 m + (1 - beta1) g                                   where nesterov, else m
        p <- p - lr sqrt(1 - beta2^t) / (1 - beta1^t) n / (sqrt(v) + eps)

    Source: `mindspore.nn.LazyAdam`, and `mindspore.nn.Adam` for dense gradients.
    """

    weight_decay: float = hyperparameter(0.0, "[0, inf)", "decay of the touched rows, coupled (L2)", kw_only=True)
    nesterov: bool = hyperparameter(False, doc="look ahead along the first moment", kw_only=True)

    procedure: ClassVar[bool] = False
    no_storages: ClassVar[str] = ""
    coupled_decay = "decay"

    def scalars(self, step: Any, a: Any) -> Values:
        scalars = super().scalars(step, a)
        scalars.beta1, scalars.decay = self.betas[0], self.weight_decay
        return scalars

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.decay != 0, g + c.decay * p, g)
        exp_avg = s.exp_avg + c.rest1 * (g - s.exp_avg)
        exp_avg_sq = s.exp_avg_sq + c.rest2 * (g * g - s.exp_avg_sq)
        direction = c.beta1 * exp_avg + c.rest1 * g if self.nesterov else exp_avg
        new = Values(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
        return p - c.step_size * (direction / (np.sqrt(exp_avg_sq) + c.eps)), new
