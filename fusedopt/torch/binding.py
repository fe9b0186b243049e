"""What earlier steps read of their tensors, so that the next one need not read it all again.

No gradient and no state is kept alive by it: memory that its owner drops is free at once.
"""

from __future__ import annotations

import dataclasses
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any

import torch

from fusedopt.backends import Plan
from fusedopt.torch.groups import ReadGroup
from fusedopt.torch.places import Place
from fusedopt.torch.slots import Slot
from fusedopt.torch.tensors import is_plain, local

# Methods of C, mapped over lists: with a loop in Python a step over 300 tensors would take twice as long.
POINTER, SIZE, STRIDE = torch.Tensor.data_ptr, torch.Tensor.size, torch.Tensor.stride
NUMEL, CONTIGUOUS = torch.Tensor.numel, torch.Tensor.is_contiguous
DTYPE, GRADIENT = operator.attrgetter("dtype"), operator.attrgetter("grad")
SELECTIONS = 16  # kept at most; models that choose their layers or experts come back to the same ones

Tensors = list[torch.Tensor]


def _locals(tensors: Tensors, sharded: bool) -> Tensors:
    return list(map(local, tensors)) if sharded else tensors


class Binding:
    """Parameters with their state, good while the memory of both stays where it is.

    Attributes:
        sizes: Of the param groups, in parameters.
        members: The parameters.
        places: The place of each member by its id.
        version: Counts the changes of hyperparameters.
    """

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.members: Tensors = []
        self.places: dict[int, int] = {}
        self.slots: list[Slot] = []
        self.version = 0
        self.selections: dict[tuple[int, ...], Selection] = {}
        self.add([], {})

    def add(self, slots: Sequence[Slot], state: Mapping[Any, Any]) -> None:
        """Take in parameters, or take them in anew, and note where everything is."""
        for slot in slots:
            place = self.places.setdefault(id(slot.parameter), len(self.members))
            if place == len(self.members):
                self.members.append(slot.parameter)
                self.slots.append(slot)
            else:
                self.slots[place] = slot
                self.selections.clear()
        self.sharded = not all(map(is_plain, set(map(type, self.members))))
        parameters = _locals(self.members, self.sharded)
        self._pointers = list(map(POINTER, parameters))
        # Where a parameter is contiguous, that and its size say all; of others, sizes and strides are compared.
        self._geometry = list(map(NUMEL, parameters)), list(map(CONTIGUOUS, parameters))
        self._strided = [place for place, contiguous in enumerate(self._geometry[1]) if not contiguous]
        self._strides = self._strides_now(parameters)
        self._keys, self._entries = list(state), list(state.values())
        self._segments = _segments(self.slots, state)
        arrays, self._numbers = self._state_tensors()
        self._arrays = list(map(weakref.ref, arrays))
        self._array_pointers = list(map(POINTER, _locals(arrays, self.sharded)))

    def knows(self, parameter: torch.Tensor, gradient: torch.Tensor, group: ReadGroup) -> bool:
        """Whether the parameter is a member, of this group, and with gradients like this one."""
        place = self.places.get(id(parameter))
        if place is None or self.slots[place].group is not group:
            return False
        slot, here = self.slots[place], local(gradient)
        kind = slot.gradient_dtype, slot.size, slot.gradient_strides
        placed = getattr(gradient, "placements", None) == getattr(parameter, "placements", None)
        return placed and (here.dtype, here.size(), here.stride()) == kind

    def selection(self, stepping: Tensors, params: Tensors, absent: list[int]) -> Selection | None:
        """The selection of these members, if there was one."""
        kept = self.selections.get(tuple(map(id, stepping)))
        return kept if kept is not None and kept.is_of(params, absent) else None

    def new_selection(self, stepping: Tensors, params: Tensors, absent: list[int]) -> Selection:
        """Plans for these members, kept in place of the oldest where there are many."""
        while len(self.selections) >= SELECTIONS:
            del self.selections[next(iter(self.selections))]
        selection = Selection(self, params, absent, [self.slots[self.places[id(p)]] for p in stepping])
        self.selections[tuple(map(id, stepping))] = selection
        return selection

    def _strides_now(self, parameters: Tensors) -> list[tuple[Any, Any]]:
        return [(parameters[place].size(), parameters[place].stride()) for place in self._strided]

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

    def holds(self, state: Mapping[Any, Any], sizes: list[int]) -> bool:
        """Whether all members and their state are where they were."""
        if sizes != self.sizes:
            return False
        parameters = _locals(self.members, self.sharded)
        if list(map(POINTER, parameters)) != self._pointers:
            return False
        if (list(map(NUMEL, parameters)), list(map(CONTIGUOUS, parameters))) != self._geometry:
            return False
        if self._strided and self._strides_now(parameters) != self._strides:
            return False
        if len(state) != len(self._keys) or not all(map(is_, state, self._keys)):
            return False
        if not all(map(is_, state.values(), self._entries)):
            return False
        try:
            arrays, numbers = self._state_tensors()
        except KeyError:
            return False
        if not all(map(is_, numbers, self._numbers)) or not all(map(is_, arrays, [array() for array in self._arrays])):
            return False
        return list(map(POINTER, _locals(arrays, self.sharded))) == self._array_pointers


def _segments(slots: Sequence[Slot], state: Mapping[Any, Any]) -> list[tuple[list[Any], list[Taker], list[Taker]]]:
    """The members' state dicts in runs of one group, with what takes each array and each number out of them."""
    segments: list[tuple[list[Any], list[Taker], list[Taker]]] = []
    last = None
    for slot in slots:
        rule = slot.group.rule
        arrays, numbers = rule.kept_states, [name for name in (rule.step_key, *rule.scalar_state) if name is not None]
        if not arrays and not numbers:
            continue
        if slot.group is not last:
            segments.append(([], list(map(operator.itemgetter, arrays)), list(map(operator.itemgetter, numbers))))
            last = slot.group
        segments[-1][0].append(state[slot.parameter])
    return segments


Taker = Callable[[Any], torch.Tensor]


@dataclasses.dataclass
class Route:
    """The part of a step that one device takes: which of the gradients it needs, and what they are."""

    place: Place
    plan: Plan
    numbers: list[int]
    sizes: list[int]
    dtypes: list[str]


class Selection:
    """The members that have a gradient: what their gradients are and where, and the plans that were made for them.

    Args:
        binding: What they are members of.
        params: All parameters of the optimizer.
        absent: Places in it of those without a gradient.
        slots: Of those with one.
    """

    def __init__(self, binding: Binding, params: Tensors, absent: list[int], slots: Sequence[Slot]) -> None:
        self._binding, self._params, self._absent = binding, params, absent
        self.copies = [copy for slot in slots for copy in slot.copies]
        self.parameters = [slot.parameter for slot in slots]
        self._dtypes = [slot.gradient_dtype for slot in slots]
        self._sizes, self._strides = [slot.size for slot in slots], [slot.gradient_strides for slot in slots]
        self._gradients: list[weakref.ref[torch.Tensor]] = []
        self._pointers = [slot.gradient_pointer for slot in slots]
        self._version = binding.version
        by_place: dict[int, list[int]] = {}
        for number, slot in enumerate(slots):
            by_place.setdefault(id(slot.place), []).append(number)
        self.routes = []
        for numbers in by_place.values():
            spans = [slots[number].span for number in numbers]
            place = slots[numbers[0]].place
            sizes, dtypes = [span.size for span in spans], [span.dtypes[1] for span in spans]
            self.routes.append(Route(place, place.backend.plan(spans), numbers, sizes, dtypes))

    def is_of(self, params: Tensors, absent: list[int]) -> bool:
        """Whether these parameters step."""
        return absent == self._absent and len(params) == len(self._params) and all(map(is_, params, self._params))

    def moved(self, gradients: Tensors) -> bool:
        """Note where the gradients are; whether some are elsewhere than before.

        Raises:
            LookupError: One has another dtype, shape or memory layout.
        """
        places = _locals(gradients, self._binding.sharded)
        pointers = list(map(POINTER, places))
        same = pointers == self._pointers
        if same and len(places) == len(self._gradients) and all(map(is_, places, [g() for g in self._gradients])):
            return False
        if (list(map(DTYPE, places)), list(map(SIZE, places)), list(map(STRIDE, places))) != (
            self._dtypes,
            self._sizes,
            self._strides,
        ):
            raise LookupError
        self._gradients, self._pointers = list(map(weakref.ref, places)), pointers
        return not same

    def gradients(self, route: Route) -> list[Any]:
        """The gradients of a route, as its plan takes them."""
        pointers = self._pointers if len(self.routes) == 1 else [self._pointers[number] for number in route.numbers]
        return route.place.memories(pointers, route.sizes, route.dtypes)

    def refresh(self) -> None:
        """Give the plans the groups' numbers, where they have others."""
        if self._version != self._binding.version:
            for route in self.routes:
                route.plan.refresh()
            self._version = self._binding.version
