"""LARS: momentum whose gradients are as long as the tensor is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values
from fusedopt.rules.stages import Reduction


@dataclass(frozen=True)
class LARS(Rule):
    """Layer-wise adaptive rate scaling of stochastic gradient descent.

        g <- -g                                                          where maximize
        r <- trust_coefficient |p| / (|g| + weight_decay |p| + eps) where both norms are above 0; else 1
        r <- min(r / lr, 1)                                              where trust_clip
        g <- r (g + weight_decay p)                                      without r where not adapt
        then as SGD

    The norms are those of the whole tensor. Two launches: 8 bytes a float32 parameter to take the norms, 20 to update.
    What is not to be scaled, as biases often are, goes into a param group with adapt=False.

    Source: You et al. 2017, arXiv:1708.03888; MindSpore's `nn.LARS`.
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    momentum: float = hyperparameter(0.9, "[0, inf)", "share of the buffer that is kept; 0: no buffer", switch=True)
    dampening: float = hyperparameter(0.0, "(-inf, inf)", "share of the gradient kept out of the buffer")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay, scaled with the gradient")
    nesterov: bool = hyperparameter(False, doc="look ahead by one step of momentum")
    trust_coefficient: float = hyperparameter(1e-3, "[0, inf)", "length of a gradient, as a share of the parameters'")
    eps: float = hyperparameter(0.0, "[0, inf)", "added to the norms that are divided by")
    trust_clip: bool = hyperparameter(False, doc="never scale a step up", kw_only=True)
    adapt: bool = hyperparameter(True, doc="scale the gradients; without it this is SGD", kw_only=True)
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = (State("momentum_buffer", when="momentum"),)
    step_key = None
    reductions = (Reduction("p_square", when="adapt"), Reduction("g_square", when="adapt"))
    coupled_decay = "weight_decay"

    def check(self) -> None:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                f"LARS: nesterov=True needs momentum > 0 and dampening == 0, got momentum={self.momentum} and "
                f"dampening={self.dampening}."
            )

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(
            lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum, rest=1 - self.dampening, first=step == 1
        )

    def terms(self, p: Any, g: Any, s: Any, c: Any) -> Values:
        return Values(p_square=p * p, g_square=g * g)

    def ratios(self, r: Any, c: Any) -> Values:
        p_norm, g_norm = np.sqrt(r.p_square), np.sqrt(r.g_square)
        ratio = self.trust_coefficient * p_norm / (g_norm + self.weight_decay * p_norm + self.eps)
        ratio = np.where(p_norm > 0, np.where(g_norm > 0, ratio, 1.0), 1.0)
        if self.trust_clip:
            ratio = np.where(ratio < self.lr, ratio / self.lr, 1.0)
        return Values(ratio=ratio)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        if self.adapt:
            g = c.ratio * g
        if not self.momentum:
            return p - c.lr * g, Values()
        added = np.where(c.rest != 1, c.rest * g, g)
        momentum_buffer = np.where(c.first, g, c.momentum * s.momentum_buffer + added)
        direction = g + c.momentum * momentum_buffer if self.nesterov else momentum_buffer
        return p - c.lr * direction, Values(momentum_buffer=momentum_buffer)
