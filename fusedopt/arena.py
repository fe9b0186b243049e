"""The flat buffers of a core optimizer's parameters, and the spans of neighbours in them that step together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedopt.layout import Changes, HasRule, Memory, Presence, offsets_of
from fusedopt.rounding import widen
from fusedopt.storage import MASTER, SMALL, Storage, blocks_of, keys_of, storage_of
from fusedopt.stored_arrays import StoredArray, stored_arrays

if TYPE_CHECKING:
    from fusedopt.parameter import Parameter
    from fusedopt.rules.rule import Rule

NO_HISTORY = 0  # the cohort of parameters that no step has been attempted on


class Arena:
    """The flat buffers of one group's parameters of one dtype on one device.

    Attributes:
        group: The param group, whose rule is read at each step.
        parameters: They lie in this order.
        numbers: Of each of them in the optimizer.
        data, gradients: Flat arrays; each parameter's `data` and `grad` are views of them.
        states: What is kept beside them: flat arrays by state dict key, made when a step first needs them.
        counters: float64 (parameters, 2 + scalar states): step, scalar state, and a place for the kernel's ticket.
        presence: Which parameters have a gradient, and which are trained.
        cohorts: A number a parameter; equal numbers have had the same steps attempted, so their counters are equal.
    """

    def __init__(
        self,
        memory: Memory,
        group: HasRule,
        parameters: Sequence[Parameter],
        changes: Changes,
        numbers: Sequence[int],
    ) -> None:
        self.memory, self.group, self.parameters = memory, group, tuple(parameters)
        self.numbers = tuple(numbers)
        self.dtype, self.grad_dtype = parameters[0].dtype, parameters[0].grad_dtype
        self.sizes = [parameter.size for parameter in parameters]
        unit = min(self.dtype.itemsize, self.grad_dtype.itemsize)
        self.offsets, length = offsets_of(self.sizes, unit)
        self._block_offsets, self._blocks = offsets_of([blocks_of(size) for size in self.sizes], 4)
        self.data, self.gradients = memory.zeros(length, self.dtype), memory.zeros(length, self.grad_dtype)
        self.states: dict[str, Any] = {}
        self._rule: Rule | None = None  # that `storage`, `stored` and `keys` were asked of last
        self.initial = np.array([0.0, *group.rule.scalar_state.values(), 0.0])
        self.counters = memory.asarray(np.tile(self.initial, (len(parameters), 1)))
        self.presence = Presence(len(parameters), changes)
        self.cohorts = np.full(len(parameters), NO_HISTORY, np.int64)

    def _follow_rule(self) -> None:
        """Find out how things are kept with the group's rule as it is now."""
        rule = self.group.rule
        if rule is not self._rule:
            dtype, size = self.dtype.name, max(self.sizes)
            self._storage = storage_of(rule, dtype, self.grad_dtype.name, size)
            self._stored = stored_arrays(rule, dtype, size)
            self._keys = keys_of(rule, self._storage)
            self._rule = rule

    @property
    def storage(self) -> Storage:
        """How the arrays of each of its parameters are kept."""
        self._follow_rule()
        return self._storage

    @property
    def stored(self) -> dict[str, StoredArray]:
        """What may lie beside parameters and gradients, by state dict key."""
        self._follow_rule()
        return self._stored

    @property
    def keys(self) -> tuple[str, ...]:
        """State dict keys of all that a step needs beside parameters and gradients, in a span's order."""
        self._follow_rule()
        return self._keys

    def take_parameters(self) -> None:
        """Move the parameters' values and gradients into the buffers."""
        for index, parameter in enumerate(self.parameters):
            parameter.move_to(self.presence, index, self.view(self.data, index), self.view(self.gradients, index))

    def view(self, buffer: Any, index: int) -> Any:
        """One parameter's part of a flat buffer, in its shape."""
        start = self.offsets[index]
        return buffer[start : start + self.sizes[index]].reshape(self.parameters[index].shape)

    def part(self, key: str, index: int, buffer: Any = None) -> Any:
        """One parameter's part of what is kept under a key: in its shape, or a scale for each block.

        Args:
            buffer: A copy of the flat array that is kept, to take the part of.
        """
        buffer = self.states[key] if buffer is None else buffer
        if not self.stored[key].scales:
            return self.view(buffer, index)
        start = self._block_offsets[index]
        return buffer[start : start + blocks_of(self.sizes[index])]

    def length(self, key: str) -> int:
        """Elements of the flat buffer of what is kept under a key."""
        return self._blocks if self.stored[key].scales else len(self.data)

    def state(self, key: str) -> Any:
        """The flat buffer of what is kept under a key; when it is new, full of what it starts from."""
        if key not in self.states:
            rule, stored = self.group.rule, self.stored[key]
            self.states[key] = self.memory.zeros(self.length(key), np.dtype(stored.dtype))
            with self.memory.here():
                if stored.initial != 0:
                    self.states[key].fill(stored.initial)
                if rule.step_key is None and key in rule.kept_states:  # it is of age 0, whatever was counted
                    self.counters[:, 0] = 0
        return self.states[key]

    def bytes_of(self, key: str) -> int:
        """Of the flat buffer of what is kept under a key, made already or not."""
        if key in self.states:
            return int(self.states[key].nbytes)
        return self.length(key) * np.dtype(self.stored[key].dtype).itemsize

    def begin(self, new: np.ndarray[Any, Any]) -> None:
        """Start what is kept of parameters without history from what the rule says now, and masters from them."""
        starting = np.flatnonzero(new & (self.cohorts == NO_HISTORY)).tolist()
        # Buffers are full of what these were when they were made.
        changing = [key for key in self.states if self.stored[key].varies]
        with self.memory.here():
            for index in starting:
                for key in changing:
                    self.part(key, index)[...] = self.stored[key].initial
            self.begin_masters(starting)

    def begin_masters(self, indices: Sequence[int]) -> None:
        """Start what keeps these parameters finer from what they are now."""
        key = self.storage.parameter.beside_key
        for index in indices if key else ():
            part = self.part(key, index, self.state(key))
            if key == MASTER:
                widen(self.view(self.data, index), part)
            else:
                part[...] = 0

    def part_cohorts(self, stepping: np.ndarray[Any, Any]) -> None:
        """Number the cohorts of those that step afresh: from here on, the others of a cohort have another history."""
        _, rank = np.unique(self.cohorts[stepping], return_inverse=True)
        self.cohorts[stepping] = self.cohorts.max(initial=NO_HISTORY) + 1 + rank

    def join_cohorts(self, histories: Sequence[object]) -> None:
        """Number the cohorts by what each parameter's counter holds; None is no history."""
        numbers: dict[object, int] = {None: NO_HISTORY}
        self.cohorts[:] = [numbers.setdefault(history, len(numbers)) for history in histories]


def arenas_of(group: Any, memories: Sequence[Memory], changes: Changes, first: int) -> list[Arena]:
    """The flat buffers of a param group: parameters on one device that are kept in the same way lie together.

    Args:
        group: A param group.
        memories: Of each of its parameters.
        first: Number of its first parameter in the optimizer.
    """
    rule = group.rule
    coded = any(rule.state_dtype_of(state.name) == "int8" for state in rule.all_states())  # or will be, by a flag
    members: dict[tuple[Any, ...], list[int]] = {}
    for place, (parameter, memory) in enumerate(zip(group["params"], memories)):
        small = coded and parameter.size < SMALL  # which has no codes
        members.setdefault((memory.device, parameter.dtype, parameter.grad_dtype, small), []).append(place)
    return [
        Arena(memories[some[0]], group, [group["params"][i] for i in some], changes, [first + i for i in some])
        for some in members.values()
    ]


@dataclasses.dataclass(frozen=True)
class ArenaSpan:
    """Neighbouring parameters of an arena with one history, as a span.

    Attributes:
        first, last: Indices of the first and the last parameter.
        start, stop: Elements of the flat buffers.
    """

    arena: Arena
    first: int
    last: int
    start: int
    stop: int

    def single(self) -> list[ArenaSpan]:
        """Each of the parameters by itself."""
        arena, indices = self.arena, range(self.first, self.last + 1)
        starts = [arena.offsets[index] for index in indices]
        return [ArenaSpan(arena, i, i, start, start + arena.sizes[i]) for i, start in zip(indices, starts)]

    @property
    def group(self) -> HasRule:
        return self.arena.group

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arena.parameters[self.first].shape if self.first == self.last else (self.size,)

    @property
    def storage(self) -> Storage:
        return self.arena.storage

    @property
    def parameter(self) -> Any:
        return self.arena.data[self.start : self.stop]

    @property
    def gradient(self) -> Any:
        return self.arena.gradients[self.start : self.stop]

    @property
    def states(self) -> list[Any]:
        arena = self.arena
        if arena.storage.merges:
            return [arena.state(key)[self.start : self.stop] for key in arena.keys]
        return [arena.part(key, self.first, arena.state(key)).reshape(-1) for key in arena.keys]

    @property
    def counters(self) -> Any:
        return self.arena.counters[self.first : self.last + 1]

    @property
    def parameters(self) -> int:
        return self.last - self.first + 1

    @property
    def number(self) -> int:
        return self.arena.numbers[self.first]


def spans_of(arena: Arena, stepping: np.ndarray[Any, Any]) -> list[ArenaSpan]:
    """The fewest spans that cover the stepping parameters and nothing else; one a parameter where the rule has sums, or
    the storage counts elements from its start."""
    runs: list[list[int]] = []
    merging = not arena.group.rule.stages and arena.storage.merges
    for index in np.flatnonzero(stepping).tolist():
        if merging and runs and runs[-1][1] == index - 1 and arena.cohorts[index] == arena.cohorts[index - 1]:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return [
        ArenaSpan(arena, first, last, arena.offsets[first], arena.offsets[last] + arena.sizes[last])
        for first, last in runs
    ]
