"""Momentum: gradient descent whose buffer starts from zeros, as MindSpore has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class Momentum(Rule):
    """Gradient descent with momentum; SGD's equations without dampening, and its rounding apart from nesterov's form.

        g <- -g                                     where maximize
        g <- g + weight_decay p
        v <- momentum v + g
        p <- p - lr v                               where nesterov: p <- p - (lr g + lr momentum v)

    The buffer is there from the start and with any momentum, also with 0.

    Source: `mindspore.nn.Momentum`; Sutskever et al. 2013, "On the importance of initialization and momentum in deep
    learning".
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    momentum: float = hyperparameter(0.9, "[0, inf)", "share of the buffer that is kept")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    nesterov: bool = hyperparameter(False, doc="look ahead by one step of momentum")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = ("moments",)
    coupled_decay = "weight_decay"

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(
            lr=self.lr, momentum=self.momentum, lr_momentum=self.lr * self.momentum, weight_decay=self.weight_decay
        )

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        moments = c.momentum * s.moments + g
        change = c.lr * g + c.lr_momentum * moments if self.nesterov else c.lr * moments
        return p - change, Values(moments=moments)
