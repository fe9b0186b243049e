"""ASGD: stochastic gradient descent beside a running average of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import larger, real_power
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class ASGD(Rule):
    """Averaged stochastic gradient descent. The average is kept as `ax` and never put into the parameters.

        g <- -g                                      where maximize
        g <- g + weight_decay p
        p <- p - lambd eta p - eta g                 eta is lr at first
        a <- p where mu = 1, else a + mu (p - a)     mu is 1 at first
        eta <- lr / (1 + lambd lr t)^alpha
        mu <- 1 / max(1, t - t0)

    So a new lr takes effect one step late, as in torch.

    Source: Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging"; `torch.optim.ASGD`.
    """

    lr: float = hyperparameter(1e-2, "[0, inf)", "learning rate")
    lambd: float = hyperparameter(1e-4, "[0, inf)", "decay of the parameters, and of eta")
    alpha: float = hyperparameter(0.75, "(-inf, inf)", "power by which eta falls")
    t0: float = hyperparameter(1e6, "(-inf, inf)", "the step at which averaging starts")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = (State("ax", codes=None),)
    scalar_state = {"eta": 0.0, "mu": 1.0}  # noqa: RUF012  # a rule's declaration
    coupled_decay = "weight_decay"

    def scalars(self, step: Any, a: Any) -> Values:
        eta = np.where(step == 1, self.lr, a.eta)
        return Values(
            eta=self.lr / real_power(1 + self.lambd * self.lr * step, self.alpha),
            mu=1 / larger(1.0, step - self.t0),
            step_size=eta,
            decay=self.lambd * eta,
            weight_decay=self.weight_decay,
            share=a.mu,
        )

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        p = np.where(c.decay != 0, p - c.decay * p, p) - c.step_size * g
        return p, Values(ax=np.where(c.share != 1, s.ax + c.share * (p - s.ax), p))
