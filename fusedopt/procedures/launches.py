"""Procedures over arrays as launches: what array operations compute of whole tensors is carried out by kernels.

So what keeps a parameter finer, rounds it at random or keeps a state in 8 bits is a matter of the launch, with the bits
of every rule; no procedure knows of it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fusedopt.backends import Backend, Plan
from fusedopt.layout import Arena, ArenaSpan, HasRule, offsets_of
from fusedopt.procedures.launched_rules import Movement
from fusedopt.rules.rule import Rule
from fusedopt.storage import Kept, Storage, storage

# Elements whose updates are there at a time: 64 MiB of float32 beside any model. A larger tensor is alone.
BATCH = 16 * 2**20


@dataclasses.dataclass(eq=False)
class LaunchGroup:
    """A param group as a launch has it.

    Attributes:
        rule: Of the launch.
        sources: None: a procedure reads hyperparameters on the host.
    """

    rule: Rule
    sources: dict[int, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TensorSpan:
    """One tensor as a launch has it; see `layout.Span`."""

    group: LaunchGroup
    size: int
    shape: tuple[int, ...]
    storage: Storage
    parameter: Any
    gradient: Any
    states: Sequence[Any]
    counters: Any
    number: int
    parameters: int = 1


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A parameter of an arena, and where its update is computed.

    Attributes:
        update: Flat, of the arithmetic's type.
    """

    arena: Arena
    index: int
    update: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arena.parameters[self.index].shape

    @property
    def data(self) -> Any:
        """The parameter's values, in its shape."""
        return self.arena.view(self.arena.data, self.index)

    @property
    def gradient(self) -> Any:
        return self.arena.view(self.arena.gradients, self.index)

    @property
    def counters(self) -> Any:
        return self.arena.counters[self.index : self.index + 1]

    @property
    def number(self) -> int:
        return self.arena.numbers[self.index]

    def kept(self, *keys: str) -> list[Any]:
        """What is kept beside the parameter under these keys, flat."""
        arena = self.arena
        return [arena.part(key, self.index, arena.state(key)).reshape(-1) for key in keys]

    def moved(self, group: LaunchGroup) -> TensorSpan:
        """The launch that moves the parameter by its update."""
        parameter, data = self.arena.storage.parameter, self.data.reshape(-1)
        how = storage(parameter, Kept(self.update.dtype.name), ())
        beside = self.kept(*filter(None, (parameter.beside_key,)))
        return TensorSpan(group, len(data), self.shape, how, data, self.update, beside, self.counters, self.number)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some tensors whose updates are there together.

    Attributes:
        before, after: What is launched before these are computed, and after, in order.
    """

    tensors: list[Tensor]
    before: list[Plan]
    after: list[Plan]


class LaunchPlan(ABC):
    """Spans on one device, whose updates are computed a batch at a time; see `backends.Steps`."""

    def __init__(self, backend: Backend, spans: Sequence[ArenaSpan]) -> None:
        self._backend = backend
        self._groups: dict[Any, tuple[HasRule, LaunchGroup]] = {}
        self._batches = [self._made_ready(tensors) for tensors in _batches(backend, spans)]

    @abstractmethod
    def movement(self, rule: Any) -> Movement:
        """How parameters of a group with this rule move by their updates."""

    @abstractmethod
    def compute(self, tensor: Tensor) -> None:
        """Write a tensor's update."""

    def before(self, tensor: Tensor) -> list[TensorSpan]:
        """What is launched before its update is computed: spans of one class of rules."""
        return []

    def after(self, tensor: Tensor) -> list[TensorSpan]:
        """What is launched before it moves, likewise."""
        return []

    def group(self, tensor: Tensor, rule_of: Callable[[Any], Rule]) -> LaunchGroup:
        """The tensor's group with the rule that follows from its own: the same one for all of its tensors."""
        own = tensor.arena.group
        return self._groups.setdefault((id(own), rule_of), (own, LaunchGroup(rule_of(own.rule))))[1]

    def _made_ready(self, tensors: list[Tensor]) -> Batch:
        before = [span for tensor in tensors for span in self.before(tensor)]
        after = [span for tensor in tensors for span in self.after(tensor)]
        moved = [tensor.moved(self.group(tensor, self.movement)) for tensor in tensors]
        plan = self._backend.plan
        return Batch(tensors, [plan(before)] if before else [], [*([plan(after)] if after else []), plan(moved)])

    def refresh(self) -> None:
        """Take over the numbers of the groups' rules."""
        for (_, rule_of), (own, made) in self._groups.items():
            made.rule = rule_of(own.rule)
        for batch in self._batches:
            for plan in (*batch.before, *batch.after):
                plan.refresh()

    def step(self, grad_scale: Any, found_inf: Any, write_back: bool = False) -> None:
        """Update every parameter once; the optimizer has refused scales."""
        for batch in self._batches:
            for plan in batch.before:
                plan.step(None, None)
            with self._backend.here():
                for tensor in batch.tensors:
                    self.compute(tensor)
            for plan in batch.after:
                plan.step(None, None)


def real_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the arithmetic on values of this one."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _batches(backend: Backend, spans: Sequence[ArenaSpan]) -> Iterator[list[Tensor]]:
    """The parameters of some spans in order, in as few batches as may be; these share the memory of their updates."""
    cut = _cut([(span.arena, index) for span in spans for index in range(span.first, span.last + 1)])
    reals = [real_of(some[0][0].dtype) for some in cut]
    placed = [offsets_of([a.sizes[i] for a, i in some], real.itemsize) for some, real in zip(cut, reals)]
    longest: dict[np.dtype[Any], int] = {}
    for real, (_, length) in zip(reals, placed):
        longest[real] = max(length, longest.get(real, 0))
    scratch = {real: backend.zeros(length, real) for real, length in longest.items()}
    for some, real, (offsets, _) in zip(cut, reals, placed):
        yield [Tensor(a, i, scratch[real][start : start + a.sizes[i]]) for (a, i), start in zip(some, offsets)]


def _cut(parameters: list[tuple[Arena, int]]) -> list[list[tuple[Arena, int]]]:
    """In batches, each of one type of arithmetic."""
    batches: list[list[tuple[Arena, int]]] = []
    elements = 0
    for arena, index in parameters:
        size, real = arena.sizes[index], real_of(arena.dtype)
        if not batches or elements + size > BATCH or real != real_of(batches[-1][0][0].dtype):
            batches.append([])
            elements = 0
        batches[-1].append((arena, index))
        elements += size
    return batches
