"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import sign
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class Lion(Rule):
    """Evolved sign momentum: every element moves by lr, whatever the gradient's magnitude.

        g <- -g                                      where maximize
        p <- p - lr weight_decay p
        p <- p - lr sign(beta1 m + (1 - beta1) g)
        m <- beta2 m + (1 - beta2) g

    Source: Chen et al. 2023, arXiv:2302.06675.
    """

    lr: float = hyperparameter(1e-4, "[0, inf)", "learning rate")
    betas: tuple[float, float] = hyperparameter((0.9, 0.99), "[0, 1)", "share of the momentum in a step, and its decay")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "decoupled decay of the parameters")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = ("exp_avg",)

    def scalars(self, step: Any, a: Any) -> Values:
        beta1, beta2 = self.betas
        decay = self.lr * self.weight_decay
        return Values(lr=self.lr, beta1=beta1, rest1=1 - beta1, beta2=beta2, rest2=1 - beta2, decay=decay)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        p = np.where(c.decay != 0, p - c.decay * p, p)
        direction = sign(c.beta1 * s.exp_avg + c.rest1 * g)
        return p - c.lr * direction, Values(exp_avg=c.beta2 * s.exp_avg + c.rest2 * g)
