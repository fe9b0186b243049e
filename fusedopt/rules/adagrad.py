"""Adagrad: each element's step shrinks with the sum of its squared gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class Adagrad(Rule):
    """Adaptive subgradient method.

        g <- -g                                  where maximize
        g <- g + weight_decay p
        s <- s + g^2                             where update_accumulator; s is initial_accumulator_value at first
        r <- sqrt(s + eps) where eps_inside_sqrt, else sqrt(s) + eps
        p <- p - lr / (1 + (t - 1) lr_decay) g / r

    The state is there before the first step, as in torch.

    Source: Duchi et al. 2011, "Adaptive subgradient methods for online learning and stochastic optimization";
    `torch.optim.Adagrad`; eps_inside_sqrt: MegEngine's Adagrad; update_accumulator: MindSpore's `update_slots`.
    """

    lr: float = hyperparameter(1e-2, "[0, inf)", "learning rate")
    lr_decay: float = hyperparameter(0.0, "[0, inf)", "how fast the learning rate falls with the step")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    initial_accumulator_value: float = hyperparameter(0.0, "[0, inf)", "what the sum of squares starts from")
    eps: float = hyperparameter(1e-10, "[0, inf)", "added to the root of the sum, or to the sum")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)
    eps_inside_sqrt: bool = hyperparameter(False, doc="add eps to the sum, not to its root", kw_only=True, common=True)
    update_accumulator: bool = hyperparameter(
        True, doc="add to the sum; False leaves it as it is", kw_only=True, common=True
    )

    state = (State("sum", initial="initial_accumulator_value", codes="unsigned"),)
    eager_state = True
    coupled_decay = "weight_decay"

    def scalars(self, step: Any, a: Any) -> Values:
        step_size = self.lr / (1 + (step - 1) * self.lr_decay)
        return Values(weight_decay=self.weight_decay, step_size=step_size, eps=self.eps)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        total = s.sum + g * g if self.update_accumulator else s.sum
        root = np.sqrt(total + c.eps) if self.eps_inside_sqrt else np.sqrt(total) + c.eps
        return p - c.step_size * (g / root), Values(sum=total)
