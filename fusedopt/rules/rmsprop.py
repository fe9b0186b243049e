"""RMSprop, as torch and as MindSpore have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import larger
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class RMSprop(Rule):
    """Gradients divided by the root of their mean square.

        g <- -g                                     where maximize
        g <- g + weight_decay p
        s <- alpha s + (1 - alpha) g^2
        a <- alpha a + (1 - alpha) g                where centered
        v <- max(s - a^2, 0) where centered, else s
        d <- g / (sqrt(v) + eps)                    where eps_inside_sqrt: g / sqrt(v + eps)
        b <- momentum b + d,      p <- p - lr b     with momentum, else p <- p - lr d
        b <- momentum b + lr d,   p <- p - b        with lr_in_momentum

    MindSpore's is RMSprop(alpha=0.9, eps=1e-10, square_avg_init=1.0, eps_inside_sqrt=True, lr_in_momentum=True).

    Source: Tieleman & Hinton 2012, lecture 6.5 of "Neural networks for machine learning"; centered: Graves 2013,
    arXiv:1308.0850; `torch.optim.RMSprop`, without its NaN where rounding puts s - a^2 below zero.
    """

    lr: float = hyperparameter(1e-2, "[0, inf)", "learning rate")
    alpha: float = hyperparameter(0.99, "[0, 1]", "decay of the mean square, and of the mean")
    eps: float = hyperparameter(1e-8, "[0, inf)", "added to the root of the mean square")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    momentum: float = hyperparameter(0.0, "[0, inf)", "share of the buffer that is kept; 0: no buffer", switch=True)
    centered: bool = hyperparameter(False, doc="divide by the root of the variance instead")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)
    square_avg_init: float = hyperparameter(
        0.0, "[0, inf)", "what the mean square starts from", kw_only=True, common=True
    )
    eps_inside_sqrt: bool = hyperparameter(False, doc="add eps under the root", kw_only=True, common=True)
    lr_in_momentum: bool = hyperparameter(
        False, doc="the buffer adds up steps, not directions: a new lr leaves it as it is", kw_only=True, common=True
    )

    state = (
        State("square_avg", initial="square_avg_init", codes="unsigned"),
        State("momentum_buffer", when="momentum"),
        State("grad_avg", when="centered", codes=None),
    )
    coupled_decay = "weight_decay"

    def check(self) -> None:
        if self.centered and self.state_dtypes["square_avg"] == "int8":
            raise ValueError(
                f"{type(self).__name__}: int8 is too coarse for the state 'square_avg' with centered=True, whose "
                f"difference from the square of 'grad_avg' decides; choose state_dtype='float32', or centered=False."
            )

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(
            lr=self.lr,
            alpha=self.alpha,
            rest=1 - self.alpha,
            eps=self.eps,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
        )

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        square_avg = variance = c.alpha * s.square_avg + c.rest * (g * g)
        new = Values(square_avg=square_avg)
        if self.centered:
            new.grad_avg = c.alpha * s.grad_avg + c.rest * g
            variance = larger(square_avg - new.grad_avg * new.grad_avg, 0.0)
        direction = g / (np.sqrt(variance + c.eps) if self.eps_inside_sqrt else np.sqrt(variance) + c.eps)
        if not self.momentum:
            return p - c.lr * direction, new
        if self.lr_in_momentum:
            new.momentum_buffer = c.momentum * s.momentum_buffer + c.lr * direction
            return p - new.momentum_buffer, new
        new.momentum_buffer = c.momentum * s.momentum_buffer + direction
        return p - c.lr * new.momentum_buffer, new
