"""Adamax: Adam with the largest gradient of late in place of the root of the second moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import larger, power
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class Adamax(Rule):
    """Adam by the infinity norm.

        g <- -g                                    where maximize
        g <- g + weight_decay p
        m <- beta1 m + (1 - beta1) g
        u <- max(beta2 u, |g| + eps)               where eps_in_denominator: u <- max(beta2 u, |g|)
        p <- p - lr / (1 - beta1^t) m / u          where eps_in_denominator: m / (u + eps)

    Source: Kingma & Ba 2015, arXiv:1412.6980, section 7.1; `torch.optim.Adamax`; eps_in_denominator: MindSpore's
    AdaMax.
    """

    lr: float = hyperparameter(2e-3, "[0, inf)", "learning rate")
    betas: tuple[float, float] = hyperparameter((0.9, 0.999), "[0, 1)", "decay of the first moment and of the norm")
    eps: float = hyperparameter(1e-8, "[0, inf)", "added to the gradient's magnitude, or to the norm")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)
    eps_in_denominator: bool = hyperparameter(
        False, doc="add eps to the norm where it divides", kw_only=True, common=True
    )

    state = ("exp_avg", State("exp_inf", codes="magnitude"))
    coupled_decay = "weight_decay"

    def scalars(self, step: Any, a: Any) -> Values:
        beta1, beta2 = self.betas
        return Values(
            beta1=beta1,
            rest1=1 - beta1,
            beta2=beta2,
            step_size=self.lr / (1 - power(beta1, step)),
            eps=self.eps,
            weight_decay=self.weight_decay,
        )

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        exp_avg = c.beta1 * s.exp_avg + c.rest1 * g
        size = np.absolute(g) if self.eps_in_denominator else np.absolute(g) + c.eps
        exp_inf = larger(c.beta2 * s.exp_inf, size)
        divisor = exp_inf + c.eps if self.eps_in_denominator else exp_inf
        return p - c.step_size * (exp_avg / divisor), Values(exp_avg=exp_avg, exp_inf=exp_inf)
