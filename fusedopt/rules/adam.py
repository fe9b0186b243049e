"""Adam, and AdamW, which is Adam with decoupled decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import larger, power
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class Adam(Rule):
    """Adaptive moment estimation.

        g <- -g                                where maximize
        p <- p - lr weight_decay p             where decoupled_weight_decay
        g <- g + weight_decay p                where not
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        u <- max(u, v) where amsgrad, else v
        n <- beta1 m + (1 - beta1) g where nesterov, else m
        p <- p - lr / (1 - beta1^t) n / (sqrt(u) / sqrt(1 - beta2^t) + eps)

    Without corrected_eps, eps is added to sqrt(u) before its correction, as in MindSpore and TensorFlow: it counts
    1 / sqrt(1 - beta2^t) times as much. Without bias_correction, 1 - beta1^t and 1 - beta2^t are 1.

    Source: Kingma & Ba 2015, arXiv:1412.6980; amsgrad: Reddi et al. 2018; `torch.optim.Adam`; nesterov:
    `mindspore.nn.Adam`.
    """

    lr: float = hyperparameter(1e-3, "[0, inf)", "learning rate")
    betas: tuple[float, float] = hyperparameter((0.9, 0.999), "[0, 1)", "decay of the first and the second moment")
    eps: float = hyperparameter(1e-8, "[0, inf)", "added to the root of the second moment")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "decay of the parameters, coupled (L2) or decoupled")
    amsgrad: bool = hyperparameter(False, doc="divide by the largest second moment so far")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)
    decoupled_weight_decay: bool = hyperparameter(False, doc="decay the parameters, not the gradients", kw_only=True)
    corrected_eps: bool = hyperparameter(True, doc="add eps after the bias correction", kw_only=True, common=True)
    bias_correction: bool = hyperparameter(True, doc="correct moments that start from zero", kw_only=True, common=True)
    nesterov: bool = hyperparameter(
        False, doc="count the gradient once more in the first moment of a step", kw_only=True, common=True
    )

    state = (
        "exp_avg",
        State("exp_avg_sq", codes="unsigned"),
        State("max_exp_avg_sq", when="amsgrad", codes="unsigned"),
    )

    @property
    def coupled_decay(self) -> str | None:
        return None if self.decoupled_weight_decay else "decay"

    def scalars(self, step: Any, a: Any) -> Values:
        beta1, beta2 = self.betas
        # The root's bias correction goes into step size and eps: one division less for each element.
        root_correction = np.sqrt(1 - power(beta2, step)) if self.bias_correction else 1.0
        return Values(
            beta1=beta1,
            rest1=1 - beta1,
            beta2=beta2,
            rest2=1 - beta2,
            step_size=self.lr * root_correction / (1 - power(beta1, step) if self.bias_correction else 1.0),
            eps=self.eps * root_correction if self.corrected_eps else self.eps,
            # lr * weight_decay is rounded once: 1 - lr * weight_decay would be 1 in float32 below 3e-8.
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
        exp_avg_sq = largest = c.beta2 * s.exp_avg_sq + c.rest2 * (g * g)
        new = Values(exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
        if self.amsgrad:
            new.max_exp_avg_sq = largest = larger(s.max_exp_avg_sq, exp_avg_sq)
        direction = c.beta1 * exp_avg + c.rest1 * g if self.nesterov else exp_avg
        return p - c.step_size * (direction / (np.sqrt(largest) + c.eps)), new


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: the decay moves the parameters and never enters the moments.

        p <- p - lr weight_decay p, then as Adam

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101; `torch.optim.AdamW`.
    """

    weight_decay: float = hyperparameter(1e-2, "[0, inf)", "decoupled decay of the parameters")
    decoupled_weight_decay: bool = hyperparameter(True, doc="what makes Adam AdamW", fixed=True)
