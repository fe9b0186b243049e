"""LAMB: Adam's step, made as long as the tensor is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import power
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values
from fusedopt.rules.stages import Reduction


@dataclass(frozen=True)
class LAMB(Rule):
    """Layer-wise adaptive moments for large batches.

        g <- -g                                                          where maximize
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        u <- m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p
        r <- |p| / |u| where both are above 0 and weight_decay is not 0 or always_adapt; else 1
        p <- p - lr r u

    The norms are those of the whole tensor. Two launches: 16 bytes a float32 parameter to take the norms, 28 to update.

    Source: You et al. 2020, arXiv:1904.00962; apex's FusedLAMB, whose clipping is `clip_norm=1.0` here.
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    betas: tuple[float, float] = hyperparameter((0.9, 0.999), "[0, 1)", "decay of the first and the second moment")
    eps: float = hyperparameter(1e-6, "[0, inf)", "added to the root of the second moment")
    weight_decay: float = hyperparameter(0.01, "[0, inf)", "decay of the parameters, part of the step that is scaled")
    bias_correction: bool = hyperparameter(True, doc="divide the moments by 1 - beta^t")
    always_adapt: bool = hyperparameter(False, doc="scale steps without weight decay too", kw_only=True)
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = ("exp_avg", State("exp_avg_sq", codes="unsigned"))
    reductions = (Reduction("p_square"), Reduction("u_square"))

    def scalars(self, step: Any, a: Any) -> Values:
        beta1, beta2 = self.betas
        return Values(
            beta1=beta1,
            rest1=1 - beta1,
            beta2=beta2,
            rest2=1 - beta2,
            correction=1 / (1 - power(beta1, step)) if self.bias_correction else 1.0,
            root_correction=1 / np.sqrt(1 - power(beta2, step)) if self.bias_correction else 1.0,
            eps=self.eps,
            decay=self.weight_decay,
        )

    def terms(self, p: Any, g: Any, s: Any, c: Any) -> Values:
        u, _ = self._direction(p, g, s, c)
        return Values(p_square=p * p, u_square=u * u)

    def ratios(self, r: Any, c: Any) -> Values:
        p_norm, u_norm = np.sqrt(r.p_square), np.sqrt(r.u_square)
        ratio = np.where(p_norm > 0, np.where(u_norm > 0, p_norm / u_norm, 1.0), 1.0)
        if not self.always_adapt:
            ratio = np.where(self.weight_decay != 0, ratio, 1.0)
        return Values(step_size=self.lr * ratio)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        u, moments = self._direction(p, g, s, c)
        return p - c.step_size * u, moments

    def _direction(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        """u, and the new moments."""
        if self.maximize:
            g = -g
        exp_avg = c.beta1 * s.exp_avg + c.rest1 * g
        exp_avg_sq = c.beta2 * s.exp_avg_sq + c.rest2 * (g * g)
        u = c.correction * exp_avg / (c.root_correction * np.sqrt(exp_avg_sq) + c.eps)
        return np.where(c.decay != 0, u + c.decay * p, u), Values(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
