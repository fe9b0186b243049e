"""RAdam: Adam that waits until the second moment is known well enough to divide by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import power
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class RAdam(Rule):
    """Rectified Adam; rho says of how many gradients the second moment is an average.

        rho <- n - 2 t beta2^t / (1 - beta2^t)                     n = 2 / (1 - beta2) - 1
        r <- sqrt((rho - 4) (rho - 2) n / ((n - 4) (n - 2) rho))
        g <- -g                                                    where maximize
        p <- p - lr weight_decay p                                 where decoupled_weight_decay
        g <- g + weight_decay p                                    where not
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr / (1 - beta1^t) m                              where rho <= 5: beta2 = 0.999, the first 5 steps
        p <- p - lr / (1 - beta1^t) r m sqrt(1 - beta2^t) / (sqrt(v) + eps)    where rho > 5

    Source: Liu et al. 2020, arXiv:1908.03265 (whose bound is 4); `torch.optim.RAdam`.
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    betas: tuple[float, float] = hyperparameter((0.9, 0.999), "[0, 1)", "decay of the first and the second moment")
    eps: float = hyperparameter(1e-8, "[0, inf)", "added to the root of the uncorrected second moment")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "decay of the parameters, coupled (L2) or decoupled")
    decoupled_weight_decay: bool = hyperparameter(False, doc="decay the parameters, not the gradients")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)

    state = ("exp_avg", State("exp_avg_sq", codes="unsigned"))

    @property
    def coupled_decay(self) -> str | None:
        return None if self.decoupled_weight_decay else "decay"

    def scalars(self, step: Any, a: Any) -> Values:
        beta1, beta2 = self.betas
        kept = power(beta2, step)
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * kept / (1 - kept)
        # NaN, and not chosen, while a factor is negative or beta2 is so small that the longest is 2 or 4.
        ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        rectified = length > 5
        return Values(
            beta1=beta1,
            rest1=1 - beta1,
            beta2=beta2,
            rest2=1 - beta2,
            step_size=self.lr / (1 - power(beta1, step)) * np.where(rectified, np.sqrt(ratio * (1 - kept)), 1.0),
            eps=self.eps,
            rectified=rectified,
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
        direction = np.where(c.rectified, exp_avg / (np.sqrt(exp_avg_sq) + c.eps), exp_avg)
        return p - c.step_size * direction, Values(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
