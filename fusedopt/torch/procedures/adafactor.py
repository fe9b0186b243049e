"""Adafactor over tensors, with torch's state: row and column means beside a step on the host."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import torch

from fusedopt.procedures.adafactor import checked_moments, entries_in, stepped, without_moments
from fusedopt.rules.adafactor import Adafactor
from fusedopt.torch.procedures.procedure import Procedure
from fusedopt.torch.state_dict import checked_tensor, names_of
from fusedopt.torch.tensors import number_of, placements, untraced


class Factoring(Procedure):
    """The base of Adafactor."""

    @untraced
    @torch.no_grad()
    def _update(self) -> None:
        stepping = list(self._stepping())
        for what, p, gradient, _ in stepping:
            self._check_dense(what, p, gradient)
            self._check_moments(what, p)
        for _, p, gradient, rule in stepping:
            _step_tensor(p, gradient, self.state[p], rule)
        self._schedules.count_step(self.param_groups)

    def _check_moments(self, what: str, p: torch.Tensor) -> None:
        """Raise ValueError or KeyError where there is a state that is not one of the parameter's shape."""
        if entry := self.state.get(p):
            checked_moments(entry, tuple(p.shape), f"the state of {what}", lambda what, value: value)

    def _load(self, state_dict: dict[str, Any], convert: bool) -> list[int]:
        params = list(chain.from_iterable(group["params"] for group in self.param_groups))
        names = dict(zip(params, chain.from_iterable(map(names_of, self.param_groups))))
        loaded = {
            p: checked_moments(entry, tuple(p.shape), f"the state of {names[p]}", partial(_copied, p))
            for p, entry in entries_in(state_dict, params)
        }
        steps = super()._load(without_moments(state_dict), convert)
        for p, moments in loaded.items():
            self.state[p] = {"step": _step(number_of(self.state[p]["step"])), **moments}
        return steps


def _step(number: float) -> torch.Tensor:
    """As torch has it: on the host, where no device is waited for to know it."""
    wide = torch.get_default_dtype() == torch.float64
    return torch.tensor(float(number), dtype=torch.float64 if wide else torch.float32, device="cpu")


def _step_tensor(p: torch.Tensor, gradient: torch.Tensor, entry: dict[str, Any], rule: Adafactor) -> None:
    """Update a tensor and its state, which is made where it is not there yet."""
    shapes = rule.moment_shapes(tuple(p.shape))
    if not entry:
        entry["step"] = _step(0)
        entry.update({name: gradient.new_zeros(shape) for name, shape in shapes.items()})
    entry["step"] += 1
    if not p.numel():
        return
    step, real = float(entry["step"]), p.dtype if p.dtype == torch.float64 else torch.float32
    new, moments = stepped(
        torch,
        p.to(real),
        gradient.to(real),
        {name: entry[name].to(real) for name in shapes},
        rule,
        step**rule.beta2_decay,
        min(step**-0.5, rule.lr),
        torch.finfo(p.dtype).eps if rule.eps[0] is None else rule.eps[0],
    )
    for name, moment in moments.items():
        _write(entry[name], moment)
    _write(p, new)


def _write(tensor: torch.Tensor, value: Any) -> None:
    """Copy what was computed: where a DTensor is sharded, it may be whole, as sums over the shards are."""
    if placements(tensor) != placements(value):
        value = value.redistribute(placements=placements(tensor))
    tensor.copy_(value)


def _copied(p: torch.Tensor, what: str, value: Any) -> torch.Tensor:
    return checked_tensor(what, value, p).to(p.device, copy=True)
