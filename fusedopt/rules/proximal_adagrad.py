"""Adagrad with L1 and L2 regularization by proximal steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import larger, sign
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class ProximalAdagrad(Rule):
    """Adagrad, whose steps are followed by shrinking: L1 makes parameters exactly zero.

        g <- -g                                     where maximize
        g <- g + weight_decay p
        h <- h + g^2
        q <- p - lr g / sqrt(h)                     where h = 0: q <- p
        p <- sign(q) max(|q| - lr l1, 0) / (1 + lr l2)

    What shrinks is lr alone, not lr / sqrt(h) as in TensorFlow.

    Source: Duchi & Singer 2009, "Efficient learning using forward backward splitting"; `mindspore.nn.ProximalAdagrad`.
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    l1: float = hyperparameter(0.0, "[0, inf)", "L1 regularization: makes small parameters zero")
    l2: float = hyperparameter(0.0, "[0, inf)", "L2 regularization")
    initial_accumulator_value: float = hyperparameter(0.1, "[0, inf)", "what the sum of squares starts from")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = (State("accum", initial="initial_accumulator_value", codes="unsigned"),)
    coupled_decay = "weight_decay"

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(
            lr=self.lr, weight_decay=self.weight_decay, shrink=self.lr * self.l1, divisor=1 + self.lr * self.l2
        )

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        accum = s.accum + g * g
        q = p - c.lr * np.where(accum != 0, g / np.sqrt(accum), 0.0)  # there is no eps: 0 / 0 is no step
        return sign(q) * larger(np.absolute(q) - c.shrink, 0.0) / c.divisor, Values(accum=accum)
