"""Adafactor over tensors, with torch's state: row and column means beside a step on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch

from fusedopt.backends import Plan
from fusedopt.conversion import CONVERT, choice_for
from fusedopt.kept_bytes import KeptBytes
from fusedopt.procedures.factored_moments import (
    AdafactorPlan,
    Moment,
    checked_moments,
    entries_in,
    learned,
    moment_bytes,
    real_of,
    without_moments,
)
from fusedopt.rules.adafactor import Adafactor
from fusedopt.rules.rule import Rule
from fusedopt.torch.arguments import described
from fusedopt.torch.places import Place
from fusedopt.torch.procedures.launches import (
    Launching,
    NotCaptured,
    Scratch,
    TensorTask,
    is_launched,
    tensor_tasks,
    write,
)
from fusedopt.torch.slots import Slot
from fusedopt.torch.state_dict import checked_tensor
from fusedopt.torch.storages import TYPES
from fusedopt.torch.tensors import DTYPES, local, number_of

State = Mapping[torch.Tensor, dict[str, Any]]


class _Plan(NotCaptured, AdafactorPlan[TensorTask]):
    """Over tensors.

    Args:
        state: Of the optimizer, where moments are kept.
    """

    def __init__(self, place: Place, slots: Sequence[Slot], scratch: Scratch, state: State) -> None:
        self._place, self._state = place, state
        self._computed: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        super().__init__(place.backend, tensor_tasks(place, slots, scratch))

    def moments(self, task: TensorTask) -> list[Moment]:
        kept = _moments_of(task.parameter, self._state[task.parameter], task.span.group.rule)
        computed = {
            name: torch.empty_like(moment, dtype=TYPES[real_of(DTYPES[moment.dtype])]) for name, moment in kept.items()
        }
        self._computed[task.parameter] = computed
        return [self._moment(moment, computed[name]) for name, moment in kept.items()]

    def _moment(self, kept: torch.Tensor, computed: torch.Tensor) -> Moment:
        size, dtypes = local(kept).numel(), [DTYPES[kept.dtype], DTYPES[computed.dtype]]
        pointers = [local(kept).data_ptr(), local(computed).data_ptr()]
        return Moment(size, dtypes[0], *self._place.memories(pointers, [size, size], dtypes))

    def compute(self, task: TensorTask) -> None:
        p, rule, step = task.parameter, task.span.group.rule, task.slot.counter.row[0] + 1
        assert isinstance(rule, Adafactor)
        if not p.numel():
            return
        kept, real = _moments_of(p, self._state[p], rule), task.tensor.dtype
        update, moments = learned(
            torch,
            p.to(real),
            p.grad.to(real),  # type: ignore[union-attr]  # it has one, or would not step
            {name: moment.to(real) for name, moment in kept.items()},
            rule,
            (step**rule.beta2_decay).to(real),
            (step**-0.5).clamp(max=rule.lr).to(real),
            _epsilon(p, rule),
        )
        write(task.tensor, update)
        for name, moment in moments.items():
            write(self._computed[p][name], moment)


class Factoring(Launching):
    """The base of Adafactor."""

    def _update(self) -> None:
        places = {p: _places(self.state[p]) for p in self.state if self._planned.get(p)}
        if any(self._planned[p] != now for p, now in places.items()):
            self._binding = None  # somebody has put other moments there
        super()._update()

    def _check(self, what: str, p: torch.Tensor, rule: Adafactor) -> None:
        """Raise ValueError or KeyError where there is a state that is not one of the parameter's shape."""
        if entry := self.state.get(p):
            checked_moments(entry, tuple(p.shape), f"the state of {what}", lambda what, name, value: value)

    @property
    def _planned(self) -> dict[torch.Tensor, Any]:
        """Where the moments of parameters were when they were planned for."""
        planned: dict[torch.Tensor, Any] = self.__dict__.setdefault("_planned_moments", {})
        return planned

    def _plan(self, place: Place, slots: Sequence[Slot]) -> Plan:
        plan = _Plan(place, slots, self._scratch, self.state)
        self._planned.update({slot.parameter: _places(self.state[slot.parameter]) for slot in slots})
        return plan

    def _step_tensor(self, p: torch.Tensor, gradient: torch.Tensor, entry: dict[str, Any], rule: Adafactor) -> None:
        shapes = rule.moment_shapes(tuple(p.shape))
        if not entry:
            entry["step"] = _step(0)
            entry.update({name: gradient.new_zeros(shape) for name, shape in shapes.items()})
        entry["step"] += 1
        if not p.numel():
            return
        step, real = float(entry["step"]), p.dtype if p.dtype == torch.float64 else torch.float32
        here = p.to(real)
        update, moments = learned(
            torch,
            here,
            gradient.to(real),
            {name: entry[name].to(real) for name in shapes},
            rule,
            step**rule.beta2_decay,
            min(step**-0.5, rule.lr),
            _epsilon(p, rule),
        )
        for name, moment in moments.items():
            write(entry[name], moment)
        write(p, here * (1 - rule.lr * rule.weight_decay) - update)

    def _kept(self, p: torch.Tensor, rule: Rule) -> KeptBytes:
        found = super()._kept(p, rule)
        if not is_launched(rule) or not found.gradients:
            return found
        return found + KeptBytes(states=moment_bytes(rule, tuple(p.shape), DTYPES[p.dtype]))

    def _kept_beside(self, p: torch.Tensor, rule: Rule, gradient: int) -> KeptBytes:
        dtype, step = DTYPES[(p if p.grad is None else p.grad).dtype], _step(0)
        states = moment_bytes(rule, tuple(p.shape), dtype)
        return KeptBytes(states=states, counters=step.numel() * step.element_size())

    def _load(self, state_dict: dict[str, Any], convert: bool) -> list[int]:
        params = list(chain.from_iterable(group["params"] for group in self.param_groups))
        names = {p: what for number, group in enumerate(self.param_groups) for what, p in described(group, number)}
        rules = dict(zip(params, chain.from_iterable(self._rule_of_each())))
        loaded = {
            p: checked_moments(
                entry, tuple(p.shape), f"the state of {names[p]}", partial(_copied, p, rules[p], convert)
            )
            for p, entry in entries_in(state_dict, params)
        }
        steps = super()._load(without_moments(state_dict), convert)
        for p, moments in loaded.items():
            if not is_launched(rules[p]):
                self.state[p]["step"] = _step(number_of(self.state[p]["step"]))
            self.state[p].update(moments)
        return steps

    def _rule_of_each(self) -> list[list[Any]]:
        """The rule of each parameter, group by group."""
        pairs = zip(self.param_groups, self._group_rules())
        return [[rule] * len(group["params"]) for group, rule in pairs]


def _moments_of(p: torch.Tensor, entry: dict[str, Any], rule: Any) -> dict[str, torch.Tensor]:
    """The moments that are kept of a parameter; zeros at first."""
    shapes = Adafactor.moment_shapes(tuple(p.shape))
    for name, shape in shapes.items():
        if name not in entry:
            entry[name] = p.detach().new_zeros(shape, dtype=_dtype_of(p, rule, name))
    return {name: entry[name] for name in shapes}


def _dtype_of(p: torch.Tensor, rule: Adafactor, name: str) -> torch.dtype:
    return TYPES[rule.state_dtype_of(name) or DTYPES[p.dtype]]


def _places(entry: Mapping[str, Any]) -> list[tuple[int, torch.dtype]]:
    """Where the moments in a state are."""
    moments = [local(entry[name]) for name in Adafactor.moment_shapes((1, 1)) if name in entry]
    moments += [local(entry[name]) for name in Adafactor.moment_shapes((1,)) if name in entry]
    return [(moment.data_ptr(), moment.dtype) for moment in moments]


def _epsilon(p: torch.Tensor, rule: Adafactor) -> float:
    """What `rule.eps[0]` is for a parameter."""
    return torch.finfo(p.dtype).eps if rule.eps[0] is None else rule.eps[0]


def _step(number: float) -> torch.Tensor:
    """As torch has it: on the host, where no device is waited for to know it."""
    wide = torch.get_default_dtype() == torch.float64
    return torch.tensor(float(number), dtype=torch.float64 if wide else torch.float32, device="cpu")


def _copied(p: torch.Tensor, rule: Adafactor, convert: bool, what: str, name: str, value: Any) -> torch.Tensor:
    """A saved moment as it is kept here."""
    tensor = checked_tensor(what, value, p)
    dtype = _dtype_of(p, rule, name) if is_launched(rule) else tensor.dtype
    if tensor.dtype != dtype and not convert:
        choice = choice_for(name, DTYPES[tensor.dtype])
        raise TypeError(
            f"{what} has {tensor.dtype} and this optimizer keeps {dtype}; nothing is cast silently: build the "
            f"optimizer with {choice}, or convert it: {CONVERT}."
        )
    return tensor.to(p.device, dtype, copy=True)
