"""SparseAdam and LazyAdam over tensors: the touched elements are gathered, updated and scattered, by index alone.

torch's `dense.add_(sparse)` writes outside of a view that does not begin where its storage does.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fusedopt.kept_bytes import KeptBytes
from fusedopt.rules.rule import Rule
from fusedopt.rules.sparse_adam import LazyAdam, SparseAdam
from fusedopt.torch.kept_bytes import bytes_of, of_launched
from fusedopt.torch.procedures.procedure import Procedure
from fusedopt.torch.tensors import number_of, untraced

DONE_HERE = {"loss_scale", "clip_value"}  # of the options that every rule has


class RowWise(Procedure):
    """The base of SparseAdam and LazyAdam.

    A sparse gradient that is empty is a gradient: the parameter's step advances, as in torch.
    """

    def _check_parameter(self, rule: Rule, what: str, p: torch.Tensor) -> None:
        if p.layout != torch.strided:
            raise ValueError(
                f"{what} is sparse: {self.rule.__name__} requires dense parameter tensors; use to_dense()."
            )
        if p.is_complex():
            raise ValueError(f"{what} is complex: {self.rule.__name__} does not support complex parameters.")

    def _kept(self, p: torch.Tensor, rule: Rule) -> KeptBytes:
        return super()._kept(p, rule) if rule.procedure else of_launched(p, self.state.get(p, {}), rule)

    def _kept_beside(self, p: torch.Tensor, rule: Rule, gradient: int) -> KeptBytes:
        return KeptBytes(states=bytes_of(p) * len(rule.kept_states))

    def _gradients(self, params: list[Any]) -> list[Any]:
        return [None if p.grad is None or p.grad.layout == torch.sparse_coo else p.grad for p in params]

    @untraced
    @torch.no_grad()
    def _update(self) -> None:
        sparse = []
        for what, p, gradient, rule in self._stepping():
            if gradient.layout == torch.sparse_coo:
                self._check(what, p, gradient, rule)
                sparse.append((p, gradient.coalesce(), rule))
            elif self.rule.procedure:
                raise RuntimeError(
                    f"{what}: {self.rule.__name__} does not support dense gradients, please consider Adam instead; or "
                    f"make sparse ones, as Embedding(sparse=True) does."
                )
        if self.rule.procedure:
            self._schedules.count_step(self.param_groups)
        else:
            super()._update()
        for p, gradient, rule in sparse:
            _step_elements(p, gradient, rule, self._entry(p))

    def _check(self, what: str, p: torch.Tensor, gradient: torch.Tensor, rule: Rule) -> None:
        if gradient.shape != p.shape or gradient.device != p.device:
            raise RuntimeError(
                f"{what}, on {p.device}, has a gradient of shape {tuple(gradient.shape)} on {gradient.device}; they "
                f"must be equal."
            )
        self._check_states(what, p, rule)
        if other := {name for name in rule.common_defaults() if name in rule.shown()} - DONE_HERE:
            raise ValueError(f"{what}: {', '.join(other)} is not for sparse gradients of tensors; leave it out.")

    def _entry(self, p: torch.Tensor) -> dict[str, Any]:
        """The parameter's state, with its step advanced. A state that a launch made, too, may go on here."""
        entry: dict[str, Any] = self.state[p]
        if not entry:
            entry["step"] = 0 if self.rule.procedure else torch.tensor(0.0, dtype=torch.float64)
            for state in self.rule.all_states():
                entry[state.name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if self.rule.procedure:
            entry["step"] = int(number_of(entry["step"])) + 1
        else:
            entry["step"] += 1  # in place: it may be the counter that a launch reads
        return entry

    def _load(self, state_dict: dict[str, Any], convert: bool) -> list[int]:
        steps = super()._load(state_dict, convert)
        if self.rule.procedure:
            for entry in self.state.values():
                entry["step"] = int(number_of(entry["step"]))  # as torch has it
        return steps


def _step_elements(p: torch.Tensor, gradient: torch.Tensor, rule: Any, entry: dict[str, Any]) -> None:
    """Update the elements that a coalesced gradient has."""
    g, indices = gradient.values(), tuple(gradient.indices())
    if g.numel() == 0:
        return
    real = p.dtype if p.dtype in (torch.float32, torch.float64) else torch.float32
    g = _prepared(g.to(real), rule)
    at = p[indices].to(real)
    if isinstance(rule, LazyAdam) and rule.weight_decay:
        g = g + rule.weight_decay * at
    (beta1, beta2), step = rule.betas, number_of(entry["step"])
    exp_avg, exp_avg_sq = entry["exp_avg"][indices].to(real), entry["exp_avg_sq"][indices].to(real)
    exp_avg = exp_avg + (g - exp_avg) * (1 - beta1)
    exp_avg_sq = exp_avg_sq + (g * g - exp_avg_sq) * (1 - beta2)
    direction = exp_avg
    if isinstance(rule, LazyAdam) and rule.nesterov:
        direction = beta1 * exp_avg + (1 - beta1) * g
    step_size = rule.lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    at = at - step_size * (direction / (exp_avg_sq.sqrt() + rule.eps))
    for whole, new in ((entry["exp_avg"], exp_avg), (entry["exp_avg_sq"], exp_avg_sq), (p, at)):
        whole.index_put_(indices, new.to(whole.dtype))


def _prepared(g: torch.Tensor, rule: SparseAdam) -> torch.Tensor:
    """The gradient without its scale, cut, and of the sign to descend with."""
    if rule.loss_scale != 1:
        g = g / rule.loss_scale
    if rule.clip_value:
        g = g.clamp(-rule.clip_value, rule.clip_value)
    return -g if rule.maximize else g
