"""One parameter made ready for a kernel: checked, its missing state made, and where each of its tensors lies."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import MutableMapping
from typing import Any

import torch

from fusedopt.rules.rule import Rule
from fusedopt.torch.groups import ReadGroup
from fusedopt.torch import places
from fusedopt.torch.tensors import DTYPES, has_order, in_order, is_plain, local, memory_order, number_of

Entry = MutableMapping[str, Any]


class Counter:
    """A parameter's step and scalar state, in one small tensor that the device alone writes.

    Attributes:
        row: float64: the step, the scalar states, and a place for the kernel's ticket.
        views: Elements of it, 0-d, by their keys in `optimizer.state`, which so are live.
        ages: Where the counter is the age of the state, rather than state itself: the state tensor that it belongs to.
    """

    def __init__(self, rule: Rule, device: torch.device) -> None:
        self.row = torch.tensor([0.0, *rule.scalar_state.values(), 0.0], dtype=torch.float64, device=device)
        keys = [rule.step_key, *rule.scalar_state]
        self.views = {key: self.row[i] for i, key in enumerate(keys) if key is not None}
        self.ages: weakref.ref[torch.Tensor] | None = None

    def is_of(self, rule: Rule, entry: Entry) -> bool:
        """Whether it counts for this state: nobody has replaced what it belongs to."""
        if any(entry.get(key) is not view for key, view in self.views.items()):
            return False
        first = entry.get(rule.kept_states[0]) if rule.step_key is None and rule.kept_states else None
        return first is None if self.ages is None else first is not None and first is self.ages()


def storable(dtype: torch.dtype, parameter: torch.dtype) -> bool:
    """Whether a gradient or a state may have this dtype: float64 goes with itself and float32 alone."""
    if parameter == torch.float64:
        return dtype in (torch.float64, torch.float32)
    return dtype in DTYPES and dtype != torch.float64


@dataclasses.dataclass(frozen=True)
class Span:
    """A parameter as the backends see it, which is `layout.Span`."""

    group: ReadGroup
    size: int
    dtypes: tuple[str, str, str]
    parameter: Any
    gradient: Any
    states: list[Any]
    counters: Any
    parameters: int = 1


class Slot:
    """A parameter with its gradient and its state, for one step or for many.

    Args:
        name: Of the parameter, as error messages have it.
        parameter, gradient: Two tensors of one shape.
        entry: The parameter's state in `optimizer.state`, or None where it has none yet.
        group: What its param group says.

    Raises:
        RuntimeError: The tensors do not go together, or no kernel takes them.
        ValueError, TypeError: A state is no tensor, or of another shape; a step is no whole number.
    """

    def __init__(
        self, name: str, parameter: torch.Tensor, gradient: torch.Tensor, entry: Entry | None, group: ReadGroup
    ) -> None:
        self.name, self.parameter, self.group = name, parameter, group
        self.local, self.gradient = local(parameter), local(self._sharded_alike(gradient))
        self.device = self.local.device
        self.copies: list[tuple[torch.Tensor, torch.Tensor, bool]] = []  # copy, original, whether it is the gradient
        self._check_tensor(self.local, "it")
        self._check_part(self.gradient, "its gradient")
        self.states = [None if entry is None else entry.get(name) for name in group.rule.kept_states]
        for name, state in zip(group.rule.kept_states, self.states):
            if state is not None:
                self._check_state(name, state)
        if entry is not None:
            self._check_step(entry)

    @property
    def what(self) -> str:
        return f"parameter {self.name} (shape {tuple(self.parameter.shape)})"

    def _sharded_alike(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient, of a DTensor one that is sharded as the parameter is."""
        if type(gradient) is type(self.parameter) or is_plain(type(gradient)) and is_plain(type(self.parameter)):
            placements = getattr(self.parameter, "placements", None)
            if placements is None or gradient.placements == placements:  # type: ignore[attr-defined]  # a DTensor
                return gradient
            return gradient.redistribute(placements=placements)  # type: ignore[attr-defined, no-any-return]
        raise RuntimeError(
            f"{self.what} is a {type(self.parameter).__name__} and its gradient a {type(gradient).__name__}; both must "
            f"be sharded, or neither."
        )

    def _check_tensor(self, tensor: torch.Tensor, which: str) -> None:
        """What holds for each tensor by itself."""
        if not is_plain(type(tensor)):
            kind = type(tensor)
            raise RuntimeError(
                f"{self.what}: {which} is a {kind.__module__}.{kind.__qualname__}; fusedopt.torch updates plain tensors "
                f"and DTensors of them."
            )
        if tensor.layout != torch.strided:
            raise RuntimeError(
                f"{self.what}: this optimizer does not support sparse gradients; use a dense one, as "
                f"Embedding(sparse=False) makes, or gradient.to_dense()."
            )
        if tensor.is_complex():
            raise RuntimeError(f"{self.what}: {which} is complex, which is not supported; use torch.view_as_real.")
        if tensor.dtype not in DTYPES:
            names = ", ".join(DTYPES.values())
            raise RuntimeError(f"{self.what}: {which} has {tensor.dtype}, not one of {names}; convert it.")
        if tensor.device.type == "meta":
            raise RuntimeError(f"{self.what}: {which} is on the meta device and has no values; materialize it first.")

    def _check_part(self, tensor: torch.Tensor, which: str) -> None:
        """What holds for a gradient and a state beside their parameter."""
        self._check_tensor(tensor, which)
        if tensor.device != self.device:
            raise RuntimeError(
                f"{self.what} is on {self.device} and {which} on {tensor.device}; move both to one device."
            )
        if tensor.shape != self.local.shape:
            raise RuntimeError(
                f"{self.what}: {which} has shape {tuple(tensor.shape)} and the parameter {tuple(self.local.shape)}; "
                f"they must be equal."
            )
        if not storable(tensor.dtype, self.local.dtype):
            raise RuntimeError(
                f"{self.what} has {self.local.dtype} and {which} {tensor.dtype}; float64 goes with float64 and float32 "
                f"alone: convert one of them."
            )

    def _check_state(self, name: str, state: Any) -> None:
        if not isinstance(state, torch.Tensor):
            raise TypeError(f"{self.what}: its state {name!r} must be a tensor, got {type(state).__name__}.")
        if is_plain(type(state)) != is_plain(type(self.parameter)):
            raise RuntimeError(
                f"{self.what} is a {type(self.parameter).__name__} and its state {name!r} a {type(state).__name__}; "
                f"both must be sharded, or neither."
            )
        self._check_part(local(state), f"its state {name!r}")
        others = {local(s).dtype for s in self.states if isinstance(s, torch.Tensor)}
        if len(others) > 1:
            raise RuntimeError(f"{self.what}: its states have several dtypes, {others}; convert them to one.")

    def _check_step(self, entry: Entry) -> None:
        step = entry.get(self.group.rule.step_key) if self.group.rule.step_key is not None else None
        if step is None or (isinstance(step, torch.Tensor) and step.device.type != "cpu"):  # which would be waited for
            return
        number = number_of(step)
        if not isinstance(number, (int, float)) or not (number >= 0 and math.isfinite(number) and number % 1 == 0):
            raise ValueError(f"{self.what}: its step must be a whole number from 0, got {step!r}.")

    @property
    def place(self) -> places.Place:
        return places.place_of(self.device)

    def make_state(self, entry: Entry, counter: Counter | None) -> Counter:
        """Make what is missing of the state; returns the counter that goes with it, which may be the one that was."""
        rule = self.group.rule
        if counter is None or counter.row.device != self.device or not counter.is_of(rule, entry):
            counter = self._new_counter(entry)
            entry.update(counter.views)  # before the arrays, as torch has it
        dtype = next((local(state).dtype for state in self.states if state is not None), self.local.dtype)
        for i, name in enumerate(rule.kept_states):
            if self.states[i] is None:
                entry[name] = self.states[i] = torch.zeros_like(
                    self.parameter, dtype=dtype, memory_format=torch.preserve_format
                )
        if rule.step_key is None and rule.kept_states:
            counter.ages = weakref.ref(entry[rule.kept_states[0]])
        return counter

    def _new_counter(self, entry: Entry) -> Counter:
        """A counter with the numbers of a state that somebody else made: loaded, copied, or written by hand."""
        rule = self.group.rule
        counter = Counter(rule, self.device)
        for key, view in counter.views.items():
            value = entry.get(key)
            if isinstance(value, torch.Tensor):
                view.copy_(value.reshape(()))
            elif value is not None:
                view.fill_(value)
        if rule.step_key is None and any(state is not None for state in self.states):
            counter.row[0] = 1.0  # a state that is there is not its first gradient
        return counter

    def span(self, counter: Counter) -> Span:
        """Where everything lies; what does not lie in the parameter's order is copied into it."""
        order = memory_order(self.local)
        tensors = [self.local, self.gradient, *(local(state) for state in self.states if state is not None)]
        placed = [tensor if has_order(tensor, order) else in_order(tensor, order) for tensor in tensors]
        self.copies = [(copy, t, t is self.gradient) for copy, t in zip(placed, tensors) if copy is not t]
        names = [DTYPES[tensor.dtype] for tensor in placed]
        size = self.local.numel()
        parameter, gradient, *states, counters = self.place.memories(
            [tensor.data_ptr() for tensor in (*placed, counter.row)],
            [size] * len(placed) + [counter.row.numel()],
            [*names, "float64"],
        )
        return Span(self.group, size, (names[0], names[1], names[-1]), parameter, gradient, states, counters)
