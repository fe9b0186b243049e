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
from fusedopt.torch.tensors import is_plain, local, placements

# Methods of C, mapped over lists: with a loop in Python a step over 300 tensors would take twice as long.
POINTER, NUMEL, STRIDE = torch.Tensor.data_ptr, torch.Tensor.numel, torch.Tensor.stride
DTYPE, GRADIENT = operator.attrgetter("dtype"), operator.attrgetter("grad")
SELECTIONS = 16  # kept at most; models that choose their layers or experts come back to the same ones

Tensors = list[torch.Tensor]


def _locals(tensors: Tensors, sharded: bool) -> Tensors:
    return list(map(local, tensors)) if sharded else tensors


def _layouts(tensors: Tensors) -> tuple[list[int], list[Any]]:
    """Sizes and strides, which tell reshaped, cut and transposed tensors apart."""
    return list(map(NUMEL, tensors)), list(map(STRIDE, tensors))


class Binding:
    """Parameters with their state, good while the memory of both stays where it is.

    Attributes:
        sizes: Of the param groups, in parameters.
        members, slots: The parameters, and what each was made ready as.
        places: The place of each member by its id.
        sharded: Whether some are DTensors, of which the local part is looked at.
        selections: Those of its members that have stepped together, by their ids, oldest first.
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
        self._layouts = _layouts(parameters)
        self._keys = list(state)
        self._segments = _segments(self.slots, {id(p): place for place, p in enumerate(state)})
        arrays, numbers = self._state_tensors(state)
        self._arrays, self._numbers = list(map(weakref.ref, arrays)), numbers
        self._state_pointers = self._pointers_of(arrays, numbers)

    def _state_tensors(self, state: Mapping[Any, Any]) -> tuple[Tensors, Tensors]:
        """State arrays, and the numbers beside them."""
        entries = list(state.values())
        arrays: Tensors = []
        numbers: Tensors = []
        for places, of_arrays, of_numbers in self._segments:
            some = [entries[place] for place in places] if len(places) < len(entries) else entries
            for take in of_arrays:
                arrays += map(take, some)
            for take in of_numbers:
                numbers += map(take, some)
        return arrays, numbers

    def _pointers_of(self, arrays: Tensors, numbers: Tensors) -> list[int]:
        return [*map(POINTER, _locals(arrays, self.sharded)), *map(POINTER, numbers)]

    def knows(self, parameter: torch.Tensor, gradient: torch.Tensor, group: ReadGroup, number: int) -> bool:
        """Whether the parameter is a member, of this group and of this number, and with gradients like this one."""
        place = self.places.get(id(parameter))
        if place is None or self.slots[place].group is not group or self.slots[place].span.number != number:
            return False
        slot, here = self.slots[place], local(gradient)
        kind = slot.gradient_dtype, slot.size, slot.gradient_strides
        return placements(gradient) == placements(parameter) and (here.dtype, here.size(), here.stride()) == kind

    def selection(self, stepping: Tensors, params: Tensors, absent: list[int]) -> Selection | None:
        """The selection of these members, if there was one."""
        kept = self.selections.get(tuple(map(id, stepping)))
        return kept if kept is not None and kept.is_of(params, absent) else None

    def new_selection(
        self, stepping: Tensors, params: Tensors, absent: list[int], gradients: Tensors, planned: Planned
    ) -> Selection:
        """Plans for these members, kept in place of the oldest where there are many."""
        while len(self.selections) >= SELECTIONS:
            del self.selections[next(iter(self.selections))]
        slots = [self.slots[self.places[id(p)]] for p in stepping]
        selection = Selection(self, params, absent, slots, gradients, planned)
        self.selections[tuple(map(id, stepping))] = selection
        return selection

    def holds(self, state: Mapping[Any, Any], sizes: list[int]) -> bool:
        """Whether all members and their state are where they were."""
        if sizes != self.sizes:
            return False
        parameters = _locals(self.members, self.sharded)
        if list(map(POINTER, parameters)) != self._pointers:
            return False
        if _layouts(parameters) != self._layouts:
            return False
        if len(state) != len(self._keys) or not all(map(is_, state, self._keys)):
            return False
        try:
            arrays, numbers = self._state_tensors(state)
        except KeyError:
            return False
        if not all(map(is_, numbers, self._numbers)) or not all(map(is_, arrays, [array() for array in self._arrays])):
            return False
        return self._pointers_of(arrays, numbers) == self._state_pointers


def _segments(slots: Sequence[Slot], places: Mapping[int, int]) -> list[tuple[list[int], list[Taker], list[Taker]]]:
    """Members of one group with the same keys: the places of their state dicts, and what takes arrays and numbers out
    of one."""
    segments: dict[tuple[int, tuple[str, ...]], tuple[list[int], list[Taker], list[Taker]]] = {}
    for slot in slots:
        rule, arrays = slot.group.rule, slot.span.keys
        kind = id(slot.group), arrays
        if kind not in segments:
            numbers = [name for name in (rule.counter_key, *rule.scalar_state) if name is not None]
            if not arrays and not numbers:
                continue
            segments[kind] = ([], list(map(operator.itemgetter, arrays)), list(map(operator.itemgetter, numbers)))
        segments[kind][0].append(places[id(slot.parameter)])
    for segment in segments.values():
        segment[0].sort()  # so that all of them are the state dicts as they stand
    return list(segments.values())


Taker = Callable[[Any], torch.Tensor]
Planned = Callable[[Place, list[Slot]], Plan]


@dataclasses.dataclass
class Route:
    """The part of a step that one device takes, and which of the gradients it needs."""

    place: Place
    plan: Plan
    numbers: list[int]


class Selection:
    """The members that have a gradient: what their gradients are and where, and the plans that were made for them.

    Args:
        binding: What they are members of.
        params: All parameters of the optimizer.
        absent: Places in it of those without a gradient.
        slots, gradients: Of those with one.
        planned: Makes a plan for some of one place.
    """

    def __init__(
        self,
        binding: Binding,
        params: Tensors,
        absent: list[int],
        slots: Sequence[Slot],
        gradients: Tensors,
        planned: Planned,
    ) -> None:
        self._sharded, self._params, self._absent = binding.sharded, params, absent
        self.copies = [copy for slot in slots for copy in slot.copies]
        self.parameters = [slot.parameter for slot in slots]
        places = _locals(gradients, binding.sharded)
        self._placements = list(map(placements, self.parameters)) if self._sharded else None
        self._dtypes, self._layouts = list(map(DTYPE, places)), _layouts(places)
        self._pointers = [slot.gradient_pointer for slot in slots]
        self.behind = False  # whether the plans have yet to be told where the gradients are
        self._version = binding.version
        by_place: dict[int, list[int]] = {}
        for number, slot in enumerate(slots):
            by_place.setdefault(id(slot.place), []).append(number)
        self.routes = []
        for numbers in by_place.values():
            place = slots[numbers[0]].place
            self.routes.append(Route(place, planned(place, [slots[number] for number in numbers]), numbers))

    def is_of(self, params: Tensors, absent: list[int]) -> bool:
        """Whether these parameters step."""
        return absent == self._absent and len(params) == len(self._params) and all(map(is_, params, self._params))

    def moved(self, gradients: Tensors) -> bool:
        """Note where the gradients are; whether some are elsewhere than the plans know.

        Raises:
            LookupError: One has another dtype, shape or memory layout, or is shared otherwise among processes.
        """
        if self._placements is not None and list(map(placements, gradients)) != self._placements:
            raise LookupError
        places = _locals(gradients, self._sharded)
        if list(map(DTYPE, places)) != self._dtypes or _layouts(places) != self._layouts:
            raise LookupError
        before, self._pointers = self._pointers, list(map(POINTER, places))
        self.behind = self.behind or self._pointers != before
        return self.behind

    def addresses(self, route: Route) -> list[int]:
        """Where the gradients of a route are."""
        return self._pointers if len(self.routes) == 1 else [self._pointers[number] for number in route.numbers]

    def refresh(self, version: int) -> None:
        """Give the plans the groups' numbers, where they have those of another version."""
        if self._version != version:
            for route in self.routes:
                route.plan.refresh()
            self._version = version

    def step(
        self, gradients: Tensors, moved: bool, grad_scale: Any, found_inf: Any, write_back: bool
    ) -> tuple[Plan, ...]:
        """Carry the plans out, and copy back what was copied.

        Args:
            gradients: Of all members that step.
            moved: Whether the plans have yet to be told where these are.
            grad_scale, found_inf: As a GradScaler has them; None: there is none.
            write_back: Whether gradients are left unscaled.

        Returns:
            The plans of graphs that are being captured, which was no step.

        Raises:
            RuntimeError: A gradient cannot be left unscaled; nothing has changed.
        """
        if write_back and any(placements(copy.copy) != placements(copy.original) for copy in self.copies):
            raise RuntimeError(
                "a gradient that is not sharded as its parameter cannot be left unscaled; make the optimizer with "
                "write_back_gradients=False."
            )
        captured: tuple[Any, ...] = ()
        behind = False  # whether plans outside of a graph have yet to be told where the gradients are
        for route in self.routes:
            plan = route.plan
            if route.place.capturing():
                plan = plan.captured()  # type: ignore[attr-defined]  # of a device, where graphs are
                captured += (plan,)
                plan.move(self.addresses(route))
                behind = self.behind
            elif moved:
                plan.move(self.addresses(route))
            plan.step(route.place.scalar(grad_scale), route.place.scalar(found_inf), write_back)
        self.behind = behind
        written = self.parameters + gradients if write_back else self.parameters
        torch.autograd.graph.increment_version(written)  # for autograd, past which memory was written
        for copy in self.copies:
            if write_back or not copy.gradient:
                copy.original.copy_(copy.copy)
        return captured
