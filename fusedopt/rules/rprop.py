"""Rprop: step sizes from the gradient's signs alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import larger, sign, smaller
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class Rprop(Rule):
    """Resilient backpropagation: each element's step grows while its gradient keeps the sign, and shrinks where not.

        g <- -g                                          where maximize
        g <- g + weight_decay p
        f <- etas[1] where sign(g) = sign(g_before), etas[0] where opposite, 1 where one of them is 0
        step_size <- clamp(f step_size, step_sizes[0], step_sizes[1])
        g <- 0 where the signs were opposite             (so the next step keeps its size)
        p <- p - sign(g) step_size

    `lr` is the first step's size, and has no effect after it, as in torch. The decay is MindSpore's.

    Source: Riedmiller & Braun 1993, "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm"; `torch.optim.Rprop`, `mindspore.nn.Rprop`.
    """

    lr: float = hyperparameter(1e-2, "[0, inf)", "size of each element's first step; not read later")
    etas: tuple[float, float] = hyperparameter((0.5, 1.2), ("(0, 1)", "(1, inf)"), "how much a step shrinks, and grows")
    step_sizes: tuple[float, float] = hyperparameter((1e-6, 50.0), "[0, inf)", "the smallest step and the largest")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay", kw_only=True, common=True)

    state = ("prev", State("step_size", initial="lr", codes="unsigned"))
    coupled_decay = "weight_decay"

    def scalars(self, step: Any, a: Any) -> Values:
        (shrink, grow), (least, most) = self.etas, self.step_sizes
        return Values(shrink=shrink, grow=grow, least=least, most=most, weight_decay=self.weight_decay)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        agreement = sign(g) * sign(s.prev)  # of the product g * prev, half precision would lose small ones
        factor = np.where(agreement > 0, c.grow, np.where(agreement < 0, c.shrink, 1.0))
        step_size = smaller(larger(s.step_size * factor, c.least), c.most)
        g = np.where(agreement < 0, 0.0, g)
        return p - sign(g) * step_size, Values(prev=g, step_size=step_size)
