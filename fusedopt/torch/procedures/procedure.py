"""What procedures over tensors have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fusedopt.groups import of_group
from fusedopt.kept_bytes import KeptBytes
from fusedopt.rules.rule import Rule
from fusedopt.torch.arguments import described
from fusedopt.torch.groups import checked_rule
from fusedopt.torch.kept_bytes import of_tensor
from fusedopt.torch.optimizer import Optimizer


class Procedure(Optimizer):
    """The base of steps by torch's own operations: a GradScaler unscales their gradients beforehand."""

    _step_supports_amp_scaling = False  # others have a descriptor that says when

    def _group_rules(self) -> list[Rule]:
        """What the groups say now, with the numbers that schedules have for the coming step.

        Raises:
            ValueError, TypeError: An option is wrong.
        """
        self._read_groups()  # which follows schedules
        rules = []
        for number, group in enumerate(self.param_groups):
            with of_group(number):
                rules.append(checked_rule(self.rule(), group))
        return rules

    def _stepping(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, Any]]:
        """Each parameter that has a gradient: what messages call it, itself, its gradient, and its group's rule."""
        for number, (group, rule) in enumerate(zip(self.param_groups, self._group_rules())):
            for what, p in described(group, number):
                if p.grad is not None:
                    yield what, p, p.grad, rule

    def _kept(self, p: torch.Tensor, rule: Rule) -> KeptBytes:
        found = of_tensor(p)
        return found + self._kept_beside(p, rule, found.gradients) if p.requires_grad or found.gradients else found

    def _kept_beside(self, p: torch.Tensor, rule: Rule, gradient: int) -> KeptBytes:
        """What is kept for a parameter that is trained, whose gradient has so many bytes: states like it."""
        return KeptBytes(states=gradient * len(rule.kept_states))

    def _check_dense(self, what: str, p: torch.Tensor, gradient: torch.Tensor) -> None:
        """Raise RuntimeError unless both are real, and the gradient dense and of the parameter's shape."""
        title = self.rule.__name__
        if p.is_complex() or gradient.is_complex():
            raise RuntimeError(f"{what}: {title} does not support complex parameters; use torch.view_as_real.")
        if gradient.layout != torch.strided:
            raise RuntimeError(f"{what}: {title} does not support sparse gradients; use gradient.to_dense().")
        if gradient.shape != p.shape:
            raise RuntimeError(f"{what}: its gradient has shape {tuple(gradient.shape)}; they must be equal.")

    def _check_states(self, what: str, p: torch.Tensor, rule: Rule) -> None:
        """Raise ValueError where a state is no tensor of the parameter's shape."""
        entry = self.state.get(p, {})
        for name in rule.kept_states:
            if name in entry and getattr(entry[name], "shape", None) != p.shape:
                raise ValueError(f"{what}: its state {name!r} must be a tensor of this shape; load it again.")
