"""Adadelta: steps in units of the parameter's own recent changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class Adadelta(Rule):
    """Adaptive learning rates from running averages of squared gradients and of squared changes.

        g <- -g                                    where maximize
        g <- g + weight_decay p
        v <- rho v + (1 - rho) g^2
        d <- sqrt(u + eps) / sqrt(v + eps) g
        u <- rho u + (1 - rho) d^2
        p <- p - lr d

    Source: Zeiler 2012, arXiv:1212.5701; `torch.optim.Adadelta`.
    """

    lr: float = hyperparameter(1.0, "[0, inf)", "what the change is multiplied by")
    rho: float = hyperparameter(0.9, "[0, 1]", "decay of both averages")
    eps: float = hyperparameter(1e-6, "[0, inf)", "added to both averages inside their roots")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = (State("square_avg", codes="unsigned"), State("acc_delta", codes="unsigned"))
    coupled_decay = "weight_decay"

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(lr=self.lr, rho=self.rho, rest=1 - self.rho, eps=self.eps, weight_decay=self.weight_decay)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        square_avg = c.rho * s.square_avg + c.rest * (g * g)
        # Two roots: one of the quotient would be denormal in float32 where the gradients are about 1e17.
        delta = np.sqrt(s.acc_delta + c.eps) / np.sqrt(square_avg + c.eps) * g
        acc_delta = c.rho * s.acc_delta + c.rest * (delta * delta)
        return p - c.lr * delta, Values(square_avg=square_avg, acc_delta=acc_delta)
