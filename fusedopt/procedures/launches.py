"""Procedures as launches around what other operations compute of whole tensors: their updates.

So what keeps a parameter finer, rounds it at random or keeps a state in 8 bits is a matter of the launch, with the bits
of every rule; no procedure knows of it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from fusedopt.arena import ArenaSpan
from fusedopt.backends import Backend, Plan
from fusedopt.layout import HasRule, RuleGroup, Span, TensorSpan, offsets_of
from fusedopt.parameter import Parameter
from fusedopt.procedures.launched_rules import Movement
from fusedopt.rules.rule import Rule
from fusedopt.storage import Kept, Storage, storage

# Elements whose updates are there at a time: 64 MiB of float32 beside any model. A larger tensor is alone.
BATCH = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Task:
    """The step of one parameter.

    Attributes:
        span: The parameter with its gradient and all that is kept beside it.
        update: Flat memory for its update, of the arithmetic's type, as the backend takes it.
    """

    span: Span
    update: Any

    @property
    def states(self) -> Sequence[Any]:
        """The arrays of the rule's states."""
        return self.span.states[: len(self.span.storage.states)]

    @property
    def beside_parameter(self) -> Sequence[Any]:
        """What keeps the parameter finer."""
        first = len(self.span.storage.states)
        return self.span.states[first : first + bool(self.span.storage.parameter.beside)]

    @property
    def scales(self) -> Sequence[Any]:
        """Those of 8-bit states."""
        return self.span.states[len(self.span.storage.states) + len(self.beside_parameter) :]

    def launched(
        self, group: RuleGroup, kept: Storage, parameter: Any, gradient: Any, states: Sequence[Any]
    ) -> TensorSpan:
        """A launch for all elements of the parameter, with its counter and its random numbers."""
        span = self.span
        arrays = parameter, gradient, states
        return TensorSpan(group, span.size, span.shape, kept, *arrays, span.counters, span.number)

    def moved(self, group: RuleGroup) -> TensorSpan:
        """The launch that moves the parameter by its update."""
        kept = self.span.storage
        how = storage(kept.parameter, Kept(kept.real), ())
        return self.launched(group, how, self.span.parameter, self.update, self.beside_parameter)


T = TypeVar("T", bound=Task)


@dataclasses.dataclass(frozen=True)
class Batch(Generic[T]):
    """Some tasks whose updates are there together.

    Attributes:
        before: What is launched before these are computed, which reads the gradients.
        after: And after, in order.
    """

    tasks: Sequence[T]
    before: Plan | None
    after: list[Plan]


class LaunchPlan(ABC, Generic[T]):
    """Tasks on one device, done a batch at a time; a `backends.Plan`.

    Args:
        backend: Of the device.
        batches: The tasks.
    """

    def __init__(self, backend: Backend, batches: Sequence[Sequence[T]]) -> None:
        self._backend = backend
        self._groups: dict[Any, tuple[HasRule, RuleGroup]] = {}
        self._batches = [self._made_ready(tasks) for tasks in batches]

    @abstractmethod
    def movement(self, rule: Any) -> Movement:
        """How parameters of a group with this rule move by their updates."""

    @abstractmethod
    def compute(self, task: T) -> None:
        """Write an update."""

    def before(self, task: T) -> TensorSpan | None:
        """What is launched before an update is computed: its gradient is the parameter's."""
        return None

    def after(self, task: T) -> list[TensorSpan]:
        """What is launched before the parameter moves."""
        return []

    def group(self, task: T, rule_of: Callable[[Any], Rule]) -> RuleGroup:
        """The param group with the rule that follows from its own: the same one for all of its tasks."""
        own = task.span.group
        return self._groups.setdefault((id(own), rule_of), (own, RuleGroup(rule_of(own.rule))))[1]

    def _made_ready(self, tasks: Sequence[T]) -> Batch[T]:
        before = [span for task in tasks if (span := self.before(task)) is not None]
        after = [span for task in tasks for span in self.after(task)]
        moved = [task.moved(self.group(task, self.movement)) for task in tasks]
        plan = self._backend.plan
        return Batch(tasks, plan(before) if before else None, [plan(some) for some in (after, moved) if some])

    def refresh(self) -> None:
        """Take over the numbers of the groups' rules."""
        for (_, rule_of), (own, made) in self._groups.items():
            made.rule = rule_of(own.rule)
        for batch in self._batches:
            for plan in (batch.before, *batch.after):
                if plan is not None:
                    plan.refresh()

    def move(self, addresses: Sequence[int]) -> None:
        """Read the gradients from elsewhere: an address for each task."""
        first = 0
        for batch in self._batches:
            last = first + len(batch.tasks)
            if batch.before is not None:
                batch.before.move(addresses[first:last])
            first = last

    def step(self, grad_scale: Any, found_inf: Any, write_back: bool = False) -> None:
        """Update every parameter once; the optimizer has refused scales."""
        for batch in self._batches:
            if batch.before is not None:
                batch.before.step(None, None)
            with self._backend.here():
                for task in batch.tasks:
                    self.compute(task)
            for plan in batch.after:
                plan.step(None, None)


S = TypeVar("S", bound=Span)


def cut(spans: Sequence[S]) -> list[list[S]]:
    """Spans in order, in as few batches as may be, each of one type of arithmetic."""
    batches: list[list[S]] = []
    elements = 0
    for span in spans:
        if not batches or elements + span.size > BATCH or span.storage.real != batches[-1][0].storage.real:
            batches.append([])
            elements = 0
        batches[-1].append(span)
        elements += span.size
    return batches


def places_of_updates(batch: Sequence[Span]) -> tuple[list[int], int]:
    """Where the update of each span begins in memory that a batch has for them, and how long that is; in elements."""
    return offsets_of([span.size for span in batch], np.dtype(batch[0].storage.real).itemsize)


@dataclasses.dataclass(frozen=True)
class ArenaTask(Task):
    """One of an arena's parameters."""

    span: ArenaSpan

    @property
    def parameter(self) -> Parameter:
        return self.span.arena.parameters[self.span.first]

    @property
    def data(self) -> Any:
        """The parameter's values, in its shape."""
        return self.span.parameter.reshape(self.span.shape)

    @property
    def gradient(self) -> Any:
        """Likewise."""
        return self.span.gradient.reshape(self.span.shape)


def arena_tasks(backend: Backend, spans: Sequence[ArenaSpan]) -> list[list[ArenaTask]]:
    """The parameters of some spans in batches, which share the memory of their updates."""
    batches = cut([one for span in spans for one in span.single()])
    lengths = [(batch[0].storage.real, places_of_updates(batch)[1]) for batch in batches]
    longest = {real: max(length for r, length in lengths if r == real) for real, _ in lengths}
    memory = {real: backend.zeros(length, np.dtype(real)) for real, length in longest.items()}
    return [
        [
            ArenaTask(span, memory[span.storage.real][first : first + span.size])
            for span, first in zip(batch, places_of_updates(batch)[0])
        ]
        for batch in batches
    ]
