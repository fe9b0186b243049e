"""Muon over tensors, with torch's bits: its momentum, its products in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fusedopt.backends import Plan
from fusedopt.procedures.muon import Matrices, MuonPlan, orthogonalized
from fusedopt.rules.muon import Muon
from fusedopt.torch.places import Place
from fusedopt.torch.procedures.launches import Launching, NotCaptured, TensorTask, is_launched, tensor_tasks, write
from fusedopt.torch.slots import Slot


def _normalized(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x.div(x.norm().clamp(min=eps))


def _multiply_add(beta: float, c: Any, alpha: float, a: Any, b: Any) -> torch.Tensor:
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


TENSORS = Matrices(_normalized, _multiply_add)


class _Plan(NotCaptured, MuonPlan[TensorTask]):
    """Over tensors."""

    def compute(self, task: TensorTask) -> None:
        rule = task.span.group.rule
        assert isinstance(rule, Muon)
        x = _orthogonalized(task.tensor, rule).to(task.tensor.dtype)
        write(task.tensor, x * rule.adjusted_lr(tuple(task.parameter.shape)))


class Orthogonalizing(Launching):
    """The base of Muon."""

    def _check(self, what: str, p: torch.Tensor, rule: Muon) -> None:
        rule.check_shape(what, tuple(p.shape))
        if not is_launched(rule):
            self._check_states(what, p, rule)

    def _plan(self, place: Place, slots: Sequence[Slot]) -> Plan:
        return _Plan(place.backend, tensor_tasks(place, slots, self._scratch))

    def _step_tensor(self, p: torch.Tensor, gradient: torch.Tensor, entry: dict[str, Any], rule: Muon) -> None:
        if "momentum_buffer" not in entry:
            entry["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        momentum = entry["momentum_buffer"]
        g = gradient.to(momentum.dtype)
        momentum.lerp_(g, 1 - rule.momentum)
        x = _orthogonalized(g.lerp(momentum, rule.momentum) if rule.nesterov else momentum, rule)
        p.mul_(1 - rule.lr * rule.weight_decay)
        p.add_(x, alpha=-rule.adjusted_lr(tuple(p.shape)))


def _orthogonalized(direction: torch.Tensor, rule: Muon) -> Any:
    return orthogonalized(direction.to(getattr(torch, rule.ns_dtype or "bfloat16")), rule, TENSORS)
