"""FTRL-Proximal: parameters follow from accumulated gradients, and L1 makes them exactly zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedopt.rules.arithmetic import real_power, sign
from fusedopt.rules.declaration import State
from fusedopt.rules.hyperparameter import hyperparameter
from fusedopt.rules.rule import Rule, Values


@dataclass(frozen=True)
class FTRL(Rule):
    """Follow the regularized leader, with a learning rate for each element.

        g <- -g                                          where maximize
        g <- g + weight_decay p
        z <- -p (n^-lr_power / lr + 2 l2) - l1 sign(p)   at first, where linear_init_from_param; else z = 0
        m <- n + g^2
        z <- z + g - (m^-lr_power - n^-lr_power) / lr p
        p <- 0 where |z| <= l1, else (sign(z) l1 - z) / (m^-lr_power / lr + 2 l2)
        n <- m

    The parameter is made anew from z, which starts from 0: the first step forgets where the parameter was, unless
    linear_init_from_param says that z starts from there.

    Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches"; `mindspore.nn.FTRL`.
    """

    lr: float = hyperparameter(1e-3, "(0, inf)", "learning rate")
    lr_power: float = hyperparameter(-0.5, "(-inf, 0]", "how the learning rate falls with the sum of squares")
    l1: float = hyperparameter(0.0, "[0, inf)", "L1 regularization: makes small parameters zero")
    l2: float = hyperparameter(0.0, "[0, inf)", "L2 regularization")
    initial_accumulator_value: float = hyperparameter(0.1, "[0, inf)", "what the sum of squares starts from")
    weight_decay: float = hyperparameter(0.0, "[0, inf)", "coupled (L2) decay")
    maximize: bool = hyperparameter(False, doc="ascend instead of descend", kw_only=True)
    linear_init_from_param: bool = hyperparameter(
        False, doc="start where the parameter is, instead of from zero", kw_only=True, common=True
    )

    state = (State("moments", initial="initial_accumulator_value", codes=None), State("linear", codes=None))
    coupled_decay = "weight_decay"

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(
            lr=self.lr,
            exponent=-self.lr_power,
            is_root=self.lr_power == -0.5,
            l1=self.l1,
            twice_l2=2 * self.l2,
            weight_decay=self.weight_decay,
            first=step == 1,
        )

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        if self.maximize:
            g = -g
        g = np.where(c.weight_decay != 0, g + c.weight_decay * p, g)
        before = _powered(s.moments, c) / c.lr  # 1 / each element's own learning rate
        moments = s.moments + g * g
        after = _powered(moments, c) / c.lr
        linear = s.linear
        if self.linear_init_from_param:
            linear = np.where(c.first, -p * (before + c.twice_l2) - c.l1 * sign(p), linear)
        linear = linear + g - (after - before) * p
        p = np.where(np.absolute(linear) <= c.l1, 0.0, (sign(linear) * c.l1 - linear) / (after + c.twice_l2))
        return p, Values(moments=moments, linear=linear)


def _powered(n: Any, c: Any) -> Any:
    """n^-lr_power; a root is exact and 85 operations less. What the uniform condition does not take is not computed."""
    return np.where(c.is_root, np.sqrt(n), real_power(n, c.exponent))
