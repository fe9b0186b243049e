"""Muon over tensors, with torch's bits: its momentum, its products in bfloat16."""

from __future__ import annotations

from typing import Any

import torch

from fusedopt.procedures.muon import Matrices, orthogonalized
from fusedopt.rules.muon import Muon
from fusedopt.torch.procedures.procedure import Procedure
from fusedopt.torch.tensors import untraced


def _normalized(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x.div(x.norm().clamp(min=eps))


def _multiply_add(beta: float, c: Any, alpha: float, a: Any, b: Any) -> torch.Tensor:
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


TENSORS = Matrices(_normalized, _multiply_add)


class Orthogonalizing(Procedure):
    """The base of Muon."""

    @untraced
    @torch.no_grad()
    def _update(self) -> None:
        stepping = list(self._stepping())
        for what, p, gradient, rule in stepping:
            self._check_dense(what, p, gradient)
            rule.check_shape(what, tuple(p.shape))
            self._check_states(what, p, rule)
        for _, p, gradient, rule in stepping:
            _step_matrix(p, gradient, self.state[p], rule)
        self._schedules.count_step(self.param_groups)


def _step_matrix(p: torch.Tensor, gradient: torch.Tensor, entry: dict[str, Any], rule: Muon) -> None:
    if "momentum_buffer" not in entry:
        entry["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
    momentum = entry["momentum_buffer"]
    g = gradient.to(momentum.dtype)
    momentum.lerp_(g, 1 - rule.momentum)
    update = g.lerp(momentum, rule.momentum) if rule.nesterov else momentum
    x = orthogonalized(update.to(getattr(torch, rule.ns_dtype or "bfloat16")), rule, TENSORS)
    p.mul_(1 - rule.lr * rule.weight_decay)
    p.add_(x, alpha=-rule.adjusted_lr(tuple(p.shape)))
