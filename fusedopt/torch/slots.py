"""Where a parameter's tensors are, as kernels need them: its counter, its span, and what was read of them."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from fusedopt.layout import TensorSpan
from fusedopt.rules.rule import Rule
from fusedopt.torch.groups import ReadGroup
from fusedopt.torch.places import Place


class Counter:
    """A parameter's step and scalar state, in one small tensor that the device alone writes.

    Attributes:
        row: float64: the step, the scalar states, and a place for the kernel's ticket.
        views: Elements of it, 0-d, by their keys in `optimizer.state`, which so are live.
        ages: Where the counter is the age of the state, rather than state itself: the state tensor that it belongs to.
    """

    def __init__(self, rule: Rule, device: torch.device) -> None:
        self.row = torch.tensor([0.0, *rule.scalar_state.values(), 0.0], dtype=torch.float64, device=device)
        keys = [rule.counter_key, *rule.scalar_state]
        self.views = {key: self.row[i] for i, key in enumerate(keys) if key is not None}
        self._first = len(keys) - len(self.views)
        self.ages: weakref.ref[torch.Tensor] | None = None

    def is_of(self, rule: Rule, entry: Mapping[str, Any]) -> bool:
        """Whether it counts for this state: nobody has replaced what it belongs to."""
        if list(self.views) != [key for key in (rule.counter_key, *rule.scalar_state) if key is not None]:
            return False  # a rule that draws from now on counts its steps
        if any(entry.get(key) is not view for key, view in self.views.items()):
            return False
        if any(self.row[i].data_ptr() != view.data_ptr() for i, view in enumerate(self.views.values(), self._first)):
            return False  # somebody gave a view another memory
        first = entry.get(rule.kept_states[0]) if rule.counter_key is None and rule.kept_states else None
        return first is None if self.ages is None else first is not None and first is self.ages()


@dataclasses.dataclass(frozen=True)
class Span(TensorSpan):
    """A parameter as the backends see it.

    Attributes:
        keys: Of `states`, in `optimizer.state`.
    """

    group: ReadGroup
    keys: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Copy:
    """A copy of a tensor whose elements do not lie as its parameter's do.

    Attributes:
        copy: What the kernel works on.
        original: What it is copied back to.
        gradient: Whether it is a gradient, which is copied back only where it has changed.
    """

    copy: torch.Tensor
    original: torch.Tensor
    gradient: bool


@dataclasses.dataclass(frozen=True)
class Slot:
    """One parameter that has been made ready.

    Attributes:
        parameter: As it stands in its group.
        place, span, counter: Where it is updated, what is updated, and its step.
        gradient_dtype, size, gradient_strides, gradient_pointer: Of the part of its gradient that is here.
        copies: Empty as a rule; a slot that has some is good for one step.
        order: Strides of the order in which the elements are taken.
    """

    parameter: torch.Tensor
    place: Place
    span: Span
    counter: Counter
    gradient_dtype: torch.dtype
    size: torch.Size
    gradient_strides: tuple[int, ...]
    gradient_pointer: int
    copies: list[Copy]
    order: tuple[int, ...]

    @property
    def group(self) -> ReadGroup:
        return self.span.group
