"""LBFGS over tensors, which unlike torch's survives deepcopy and pickle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusedopt.kept_bytes import KeptBytes
from fusedopt.procedures.quasi_newton import History, checked_loss, first_entry, history_of, minimize
from fusedopt.rules.lbfgs import LBFGS
from fusedopt.torch.procedures.procedure import Procedure
from fusedopt.torch.tensors import untraced


def real_of(params: Sequence[torch.Tensor]) -> torch.dtype:
    """What one vector of all parameters is computed in."""
    wide = any(p.dtype in (torch.float64, torch.complex128) for p in params)
    return torch.float64 if wide else torch.float32


class FlatTensors:
    """Tensors and a closure as one objective; complex ones as pairs of numbers.

    Attributes:
        value: What the closure returned at first.
    """

    def __init__(self, params: Sequence[torch.Tensor], closure: Callable[[], Any]) -> None:
        self._params, self._closure, self._calls = params, torch.enable_grad()(closure), 0
        self._real = real_of(params)
        self.value: Any = None

    def evaluate(self) -> tuple[float, Any]:
        value = self._closure()
        self.value, self._calls = value if not self._calls else self.value, self._calls + 1
        parts = [self._flat(torch.zeros_like(p) if p.grad is None else p.grad) for p in self._params]
        return checked_loss(value), torch.cat(parts) if parts else torch.zeros(0)

    def _flat(self, gradient: torch.Tensor) -> torch.Tensor:
        dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
        return _pairs(dense).reshape(-1).to(self._real)

    def move(self, t: float, direction: Any) -> None:
        start = 0
        for p in map(_pairs, self._params):
            p.add_(direction[start : start + p.numel()].view_as(p), alpha=t)
            start += p.numel()

    def position(self) -> list[torch.Tensor]:
        return [p.clone() for p in self._params]

    def put_back(self, position: list[torch.Tensor]) -> None:
        for p, before in zip(self._params, position):
            p.copy_(before)


def _pairs(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


class QuasiNewton(Procedure):
    """The base of LBFGS."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The one group that there is.

        Raises:
            ValueError: It is another one, or its parameters are on several devices.
        """
        if self.param_groups:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups); give one list.")
        super().add_param_group(param_group)

    @untraced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Minimize, with up to `max_iter` iterations.

        Args:
            closure: Computes the loss, which it returns, and the gradients; it is called several times.

        Returns:
            The loss that the closure returned at first.

        Raises:
            TypeError: There is no closure, or it returns no loss.
        """
        if not callable(closure):
            raise TypeError(f"LBFGS.step takes a closure that computes loss and gradients, got {closure!r}.")
        (rule,), flat = self._group_rules(), FlatTensors(self.param_groups[0]["params"], closure)
        assert isinstance(rule, LBFGS)
        entry = self.state[self.param_groups[0]["params"][0]] if self.param_groups[0]["params"] else {}
        history = history_of(entry, "the state of LBFGS", lambda what, value: value)
        try:
            minimize(flat, history, rule)
        finally:
            entry.update(history.entry(rule.history_size))
        self._schedules.count_step(self.param_groups)
        return flat.value

    def memory(self) -> KeptBytes:
        """Bytes that are kept once the history has all its pairs, by kind."""
        params, found = self.param_groups[0]["params"], super().memory()
        count = sum(p.numel() * (2 if p.is_complex() else 1) for p in params)
        itemsize = torch.finfo(real_of(params)).bits // 8
        return found + KeptBytes(states=History.full_bytes(count, itemsize, self.param_groups[0]["history_size"]))

    def _load(self, state_dict: dict[str, Any], convert: bool) -> list[int]:
        params = self.param_groups[0]["params"]
        history = history_of(first_entry(state_dict), "the state of LBFGS", self._vector)
        steps = super()._load({**state_dict, "state": {}}, convert)
        if entry := history.entry(self.param_groups[0]["history_size"]):
            self.state[params[0]] = entry
        return steps

    def _vector(self, what: str, value: Any) -> torch.Tensor:
        params = self.param_groups[0]["params"]
        size = sum(_pairs(p).numel() for p in params)
        if not isinstance(value, torch.Tensor) or value.shape != (size,):
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{what} must be a tensor of shape ({size},), all parameters in a row, got {got}.")
        return value.to(params[0].device, copy=True)
