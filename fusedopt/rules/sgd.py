"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class SGD(Rule):
    """Stochastic gradient descent, with momentum where it is not zero.

        g <- -g                                      where maximize
        g <- g + weight_decay p
        b <- g at first, then momentum b + (1 - dampening) g
        d <- g + momentum b where nesterov, else b   (without momentum: d <- g)
        p <- p - lr d

    With lr_in_momentum, b gathers lr g instead of g, and p <- p - d.

    Source: `torch.optim.SGD`; Sutskever et al. 2013, "On the importance of initialization and momentum in deep
    learning", for Nesterov's form.
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    momentum: float = hyperparameter(0.0, "[0, inf)", "share of the buffer that is kept; 0: no buffer", switch=True)
    dampening: float = hyperparameter(0.0, "(-inf, inf)", "share of the gradient kept out of the buffer")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    nesterov: bool = hyperparameter(False, doc="look ahead by one step of momentum")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)
    lr_in_momentum: bool = hyperparameter(
        False, doc="the buffer adds up steps, not gradients: a new lr leaves it as it is", kw_only=True, common=True
    )

    state = (State("momentum_buffer", when="momentum"),)
    step_key = None
    coupled_decay = "weight_decay"

    def check(self) -> None:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"SGD: nesterov=True needs momentum > 0 and dampening == 0, got momentum={self.momentum} and "
                f"dampening={self.dampening}."
            )

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(
            lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum, rest=1 - self.dampening, first=step == 1
        )

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        if not self.momentum:
            return p - c.lr * g, Values()
        if self.lr_in_momentum:
            g = c.lr * g
        added = np.where(c.rest != 1, c.rest * g, g)  # without dampening, one pass of five less on the CPU
        momentum_buffer = np.where(c.first, g, c.momentum * s.momentum_buffer + added)
        direction = g + c.momentum * momentum_buffer if self.nesterov else momentum_buffer
        change = direction if self.lr_in_momentum else c.lr * direction
        return p - change, Values(momentum_buffer=momentum_buffer)
