"""What the last step read of its tensors, so that the next one need not read it all again."""

from __future__ import annotations

import dataclasses
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any

import torch

from fusedopt.backends import Plan
from fusedopt.torch.places import Place
from fusedopt.torch.slots import Counter, Slot
from fusedopt.torch.tensors import is_plain, local

# Methods of C, mapped over lists: with a loop in Python a step over 300 tensors would take twice as long.
POINTER, SIZE, STRIDE = torch.Tensor.data_ptr, torch.Tensor.size, torch.Tensor.stride
NUMEL, CONTIGUOUS = torch.Tensor.numel, torch.Tensor.is_contiguous
DTYPE = operator.attrgetter("dtype")
GRADIENT = operator.attrgetter("grad")

Tensors = list[torch.Tensor]
Taker = Callable[[Any], torch.Tensor]


@dataclasses.dataclass
class Route:
    """The parameters of one device: their places among those that step, what their gradients are, and their plan."""

    place: Place
    plan: Plan
    members: list[int]
    sizes: list[int]
    gradient_dtypes: list[str]


class Binding:
    """Parameters with gradients, their state, and the plans made for them; good while their memory stays where it is.

    No gradient and no state tensor is kept alive by it: memory that its owner drops is free at once.

    Args:
        params, absent: All parameters, and the places of those without a gradient.
        slots: Of those that have one.
        state: `optimizer.state`.
        routes: Plans for the slots.
    """

    def __init__(
        self,
        params: Tensors,
        absent: list[int],
        slots: Sequence[Slot],
        counters: Sequence[Counter],
        state: Mapping[Any, Any],
        routes: list[Route],
    ) -> None:
        self.params, self.absent, self.routes, self.stale = params, absent, routes, False
        self.stepping = [slot.parameter for slot in slots]
        self.copies = [pair for slot in slots for pair in slot.copies]
        self._rows = [counter.row for counter in counters]
        self._sharded = not all(is_plain(type(p)) for p in self.stepping)
        places = self._locals(self.stepping)
        self._pointers = list(map(POINTER, places))
        self._geometry = list(map(NUMEL, places)), list(map(CONTIGUOUS, places))
        # Where a parameter is contiguous, that and its size say all; of others, sizes and strides are compared.
        self._strided = [place for place, contiguous in enumerate(self._geometry[1]) if not contiguous]
        self._strides = [(places[i].size(), places[i].stride()) for i in self._strided]
        self.sizes = list(map(SIZE, places))
        self._entries, self._keys = list(state.values()), list(state)
        self._segments = _segments(slots, state)
        arrays, self._numbers = self._state_tensors()
        self._gone: list[Any] = []  # state arrays that died
        self._states = [weakref.ref(array, self._gone.append) for array in arrays]
        self._state_pointers = list(map(POINTER, self._locals(arrays)))
        gradients = [slot.gradient for slot in slots]
        self._gradient_kinds = list(map(DTYPE, gradients)), list(map(SIZE, gradients)), list(map(STRIDE, gradients))
        self._note(gradients, list(map(POINTER, gradients)))

    def _note(self, gradients: Tensors, pointers: list[int]) -> None:
        self._gradients, self._gradient_pointers = list(map(weakref.ref, gradients)), pointers

    def gradients(self, route: Route) -> list[Any]:
        """The gradients of a route's parameters, as its plan takes them."""
        pointers = self._gradient_pointers
        if len(self.routes) > 1:
            pointers = [pointers[i] for i in route.members]
        return route.place.memories(pointers, route.sizes, route.gradient_dtypes)

    def refresh(self) -> None:
        """Give the plans the groups' numbers."""
        for route in self.routes:
            route.plan.refresh()
        self.stale = False

    def copy_back(self, gradients: bool) -> None:
        """Write what was updated in copies to the tensors that they were made of."""
        for copy, tensor, is_gradient in self.copies:
            if gradients or not is_gradient:
                tensor.copy_(copy)

    def _locals(self, tensors: Tensors) -> Tensors:
        return list(map(local, tensors)) if self._sharded else tensors

    def _state_tensors(self) -> tuple[Tensors, Tensors]:
        """State arrays, and the numbers beside them."""
        arrays: Tensors = []
        numbers: Tensors = []
        for entries, of_arrays, of_numbers in self._segments:
            for take in of_arrays:
                arrays += map(take, entries)
            for take in of_numbers:
                numbers += map(take, entries)
        return arrays, numbers

    def holds(self, params: Tensors, absent: list[int], state: Mapping[Any, Any]) -> bool:
        """Whether the same parameters step, and they and their state are where they were."""
        if len(params) != len(self.params) or absent != self.absent or not all(map(is_, params, self.params)):
            return False
        places = self._locals(self.stepping)
        if list(map(POINTER, places)) != self._pointers:
            return False
        if (list(map(NUMEL, places)), list(map(CONTIGUOUS, places))) != self._geometry:
            return False
        if [(places[i].size(), places[i].stride()) for i in self._strided] != self._strides:
            return False
        entries = list(state.values())
        if len(entries) != len(self._entries) or not all(map(is_, entries, self._entries)):
            return False
        if not all(map(is_, state, self._keys)):
            return False
        try:
            arrays, numbers = self._state_tensors()
        except KeyError:
            return False
        # A replaced array has another address, unless the old one is gone and its memory was given away again.
        if self._gone or not all(map(is_, numbers, self._numbers)):
            return False
        return list(map(POINTER, self._locals(arrays))) == self._state_pointers

    def moved(self, gradients: Tensors) -> list[int] | None:
        """Addresses of the gradients where some are elsewhere now; None where all are where they were.

        Raises:
            LookupError: One has another dtype, shape or memory layout.
        """
        places = self._locals(gradients)
        pointers = list(map(POINTER, places))
        if all(map(is_, places, [g() for g in self._gradients])) and pointers == self._gradient_pointers:
            return None
        if (list(map(DTYPE, places)), list(map(SIZE, places)), list(map(STRIDE, places))) != self._gradient_kinds:
            raise LookupError
        self._note(places, pointers)
        return pointers


def _segments(slots: Sequence[Slot], state: Mapping[Any, Any]) -> list[tuple[list[Any], list[Taker], list[Taker]]]:
    """The state dicts of the slots, in runs of one group, each with what takes the arrays and the numbers out of one."""
    segments: list[tuple[list[Any], list[Taker], list[Taker]]] = []
    last = None
    for slot in slots:
        rule = slot.group.rule
        arrays, numbers = rule.kept_states, [name for name in (rule.step_key, *rule.scalar_state) if name is not None]
        if not arrays and not numbers:
            continue
        if slot.group is not last:
            takers = ([operator.itemgetter(name) for name in names] for names in (arrays, numbers))
            segments.append(([], *takers))
            last = slot.group
        segments[-1][0].append(state[slot.parameter])
    return segments
