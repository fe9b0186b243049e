"""NAdam: Adam with Nesterov's momentum, whose share grows over the first steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import exp2, power
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class NAdam(Rule):
    """Adam that looks ahead by one step of momentum.

        g <- -g                                                where maximize
        p <- p - lr weight_decay p                             where decoupled_weight_decay
        g <- g + weight_decay p                                where not
        mu_t <- beta1 (1 - 0.96^(t momentum_decay) / 2)
        M <- M mu_t                                            the product of all mu so far
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        d <- sqrt(v / (1 - beta2^t)) + eps
        p <- p - lr (1 - mu_t) / (1 - M) g / d - lr mu_(t+1) / (1 - M mu_(t+1)) m / d

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam"; `torch.optim.NAdam`.
    """

    lr: float = hyperparameter(2e-3, "[0, inf)", "learning rate")
    betas: tuple[float, float] = hyperparameter((0.9, 0.999), "[0, 1)", "decay of the first and the second moment")
    eps: float = hyperparameter(1e-8, "[0, inf)", "added to the root of the second moment")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "decay of the parameters, coupled (L2) or decoupled")
    momentum_decay: float = hyperparameter(4e-3, "[0, inf)", "how fast the share of the momentum grows with the step")
    decoupled_weight_decay: bool = hyperparameter(False, doc="decay the parameters, not the gradients")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = ("exp_avg", State("exp_avg_sq", codes="unsigned"))
    scalar_state = {"mu_product": 1.0}  # noqa: RUF012  # a rule's declaration

    def _mu(self, step: Any) -> Any:
        return self.betas[0] * (1 - 0.5 * exp2(step * self.momentum_decay * math.log2(0.96)))

    @property
    def coupled_decay(self) -> str | None:
        return None if self.decoupled_weight_decay else "decay"

    def scalars(self, step: Any, a: Any) -> Values:
        beta1, beta2 = self.betas
        mu, mu_next = self._mu(step), self._mu(step + 1)
        mu_product = a.mu_product * mu
        # As in Adam, the root's bias correction goes into step sizes and eps.
        root_correction = np.sqrt(1 - power(beta2, step))
        lr = self.lr * root_correction
        return Values(
            mu_product=mu_product,
            beta1=beta1,
            rest1=1 - beta1,
            beta2=beta2,
            rest2=1 - beta2,
            gradient_step=lr * (1 - mu) / (1 - mu_product),
            moment_step=lr * mu_next / (1 - mu_product * mu_next),
            eps=self.eps * root_correction,
            decay=self.lr * self.weight_decay if self.decoupled_weight_decay else self.weight_decay,
        )

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        if self.decoupled_weight_decay:
            p = np.where(c.decay != 0, p - c.decay * p, p)
        else:
            g = np.where(c.decay != 0, g + c.decay * p, g)
        exp_avg = c.beta1 * s.exp_avg + c.rest1 * g
        exp_avg_sq = c.beta2 * s.exp_avg_sq + c.rest2 * (g * g)
        root = np.sqrt(exp_avg_sq) + c.eps
        p = p - c.gradient_step * (g / root) - c.moment_step * (exp_avg / root)
        return p, Values(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
