"""Procedures over tensors as launches, in the param groups whose arrays are kept in ways of their own.

In all other groups steps are torch's operations, with its bits.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from fusedopt.backends import Plan
from fusedopt.kept_bytes import KeptBytes
from fusedopt.procedures.launches import Task, cut, places_of_updates
from fusedopt.rules.rule import Rule
from fusedopt.torch.kept_bytes import of_launched
from fusedopt.torch.places import Place
from fusedopt.torch.procedures.procedure import Procedure
from fusedopt.torch.slots import Slot
from fusedopt.torch.storages import TYPES, options_of, shared_as
from fusedopt.torch.tensors import is_plain, placements, untraced

Scratch = dict[tuple[torch.device, str], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class TensorTask(Task):
    """The step of one tensor.

    Attributes:
        tensor: Its update, which lies in the order that its launches take it in; a DTensor where the parameter is one.
    """

    slot: Slot
    tensor: torch.Tensor

    @property
    def parameter(self) -> torch.Tensor:
        return self.slot.parameter


def tensor_tasks(place: Place, slots: Sequence[Slot], scratch: Scratch) -> list[list[TensorTask]]:
    """The tensors of one device in batches, which share the memory of their updates.

    Args:
        scratch: That memory by device and type, which other plans may share; what is too short is replaced.
    """
    following = iter(slots)
    batches = []
    for batch in cut([slot.span for slot in slots]):
        (starts, length), real = places_of_updates(batch), batch[0].storage.real
        key = slots[0].counter.row.device, real
        if key not in scratch or len(scratch[key]) < length:
            scratch[key] = torch.empty(length, dtype=TYPES[real], device=key[0])
        batches.append([_task(place, next(following), scratch[key][start:]) for start in starts])
    return batches


def _task(place: Place, slot: Slot, memory: torch.Tensor) -> TensorTask:
    """The step of a tensor whose update lies at the beginning of this memory."""
    span, parameter = slot.span, slot.parameter
    update: torch.Tensor = memory.as_strided(span.shape, slot.order)
    if not is_plain(type(parameter)):
        update = shared_as(parameter, update, tuple(parameter.shape))
    return TensorTask(span, place.memories([memory.data_ptr()], [span.size], [span.storage.real])[0], slot, update)


def write(tensor: torch.Tensor, value: Any) -> None:
    """Copy what was computed: where a DTensor is sharded, it may be whole, as sums over the shards are."""
    if placements(tensor) != placements(value):
        value = value.redistribute(placements=placements(tensor))
    tensor.copy_(value)


def is_launched(rule: Rule) -> bool:
    """Whether a group's arrays are kept as launches know, and torch's operations do not."""
    return any(options_of(rule).values())


class NotCaptured:
    """Of plans that are more than launches."""

    def captured(self) -> Any:
        """What a graph would replay."""
        raise RuntimeError(
            "a step of more than launches cannot be captured with master_weights, kahan, stochastic_rounding or "
            "state_dtype; step outside of the graph."
        )


class Launching(Procedure):
    """The base of those whose groups may be launched."""

    @untraced
    @torch.no_grad()
    def _update(self) -> None:
        stepping = list(self._stepping())
        for what, p, gradient, rule in stepping:
            self._check_dense(what, p, gradient)
            self._check(what, p, rule)
        super()._update()  # of the groups that are launched
        for _, p, gradient, rule in stepping:
            if not is_launched(rule):
                self._step_tensor(p, gradient, self.state[p], rule)

    def _gradients(self, params: list[Any]) -> list[Any]:
        groups = zip(self.param_groups, self._reads.groups)  # which `_stepping` has read
        return [p.grad if is_launched(said.rule) else None for group, said in groups for p in group["params"]]

    def _kept(self, p: torch.Tensor, rule: Rule) -> KeptBytes:
        return of_launched(p, self.state.get(p, {}), rule) if is_launched(rule) else super()._kept(p, rule)

    @abstractmethod
    def _check(self, what: str, p: torch.Tensor, rule: Any) -> None:
        """Raise where a parameter or its state cannot be stepped."""

    @abstractmethod
    def _step_tensor(self, p: torch.Tensor, gradient: torch.Tensor, entry: dict[str, Any], rule: Any) -> None:
        """A step of one tensor by torch's operations."""

    @abstractmethod
    def _plan(self, place: Place, slots: Sequence[Slot]) -> Plan: ...

    @property
    def _scratch(self) -> Scratch:
        """Memory of updates."""
        scratch: Scratch = self.__dict__.setdefault("_scratch_by_device", {})
        return scratch
