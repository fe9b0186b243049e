"""A parameter that is to step: its tensors are checked; then its missing state is made, and a slot of it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from fusedopt.rules.rule import Rule, State
from fusedopt.rules.stages import ROW
from fusedopt.storage import plain
from fusedopt.torch import places
from fusedopt.torch.groups import ReadGroup
from fusedopt.torch.slots import Copy, Counter, Slot, Span
from fusedopt.torch.tensors import (
    DTYPES,
    has_order,
    has_rows,
    in_order,
    is_plain,
    local,
    memory_order,
    number_of,
    placements,
    storable,
)

Entry = Mapping[str, Any]


def begun(parameter: torch.Tensor, entry: dict[str, Any], rule: Rule) -> Counter | None:
    """Make a parameter's state ahead of its first step, and its counter; neither where it has no memory yet."""
    if torch.nn.parameter.is_lazy(parameter) or parameter.is_meta:
        return None
    counter = Counter(rule, parameter.device)
    entry.update(counter.views)
    for state in rule.states():
        entry[state.name] = _new_state(parameter, rule.initial(state), parameter.dtype)
    if rule.counter_key is None and rule.kept_states:
        counter.row[0] = 1.0  # a state that is there is not its first gradient
        counter.ages = weakref.ref(entry[rule.kept_states[0]])
    return counter


def _new_state(parameter: torch.Tensor, initial: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.full_like(parameter, initial, dtype=dtype, memory_format=torch.preserve_format).detach()


class Candidate:
    """A parameter with its gradient and its state, checked before anything is changed.

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
        alike = self._sharded_alike(gradient)
        self.local, self.gradient = local(parameter), local(alike)
        self.copies = [] if alike is gradient else [Copy(alike, gradient, gradient=True)]
        self.device = self.local.device
        self._check_tensor(self.local, "it")
        self._check_whole()
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
        if is_plain(type(gradient)) == is_plain(type(self.parameter)):
            wanted = placements(self.parameter)
            if placements(gradient) == wanted:
                return gradient
            return gradient.redistribute(placements=wanted)  # type: ignore[attr-defined, no-any-return]  # a DTensor
        raise RuntimeError(
            f"{self.what} is a {type(self.parameter).__name__} and its gradient a {type(gradient).__name__}; both must "
            f"be sharded, or neither."
        )

    def _check_whole(self) -> None:
        """What is summed is summed over the whole parameter, which must be here."""
        if self.group.rule.stages and not is_plain(type(self.parameter)):
            raise RuntimeError(
                f"{self.what} is a {type(self.parameter).__name__}, of which this process has a part, and "
                f"{type(self.group.rule).__name__} here needs sums over all of it "
                f"({', '.join(name for stage in self.group.rule.stages for name in stage.names)}); use an optimizer "
                f"without them, and torch.nn.utils.clip_grad_norm_ for clip_norm."
            )

    def _check_tensor(self, tensor: torch.Tensor, which: str) -> None:
        """What holds for each tensor by itself."""
        if not is_plain(type(tensor)):
            kind = type(tensor)
            raise RuntimeError(
                f"{self.what}: {which} is a {kind.__module__}.{kind.__qualname__}; fusedopt.torch updates plain "
                f"tensors, and DTensors of them."
            )
        if tensor.layout != torch.strided:
            raise RuntimeError(
                f"{self.what}: this optimizer does not support sparse gradients; give it to SparseAdam or LazyAdam, or "
                f"use a dense gradient, as Embedding(sparse=False) makes, or gradient.to_dense()."
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
            wide = self.local.dtype == torch.float64
            taken = "float32 or float64" if wide else "float32, float16 or bfloat16"
            raise RuntimeError(
                f"{self.what} has {self.local.dtype} and {which} {tensor.dtype}, where it may have {taken}; convert "
                f"one of them."
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
        step = entry.get(self.group.rule.counter_key) if self.group.rule.counter_key is not None else None
        if step is None or (isinstance(step, torch.Tensor) and step.device.type != "cpu"):  # which would be waited for
            return
        number = number_of(step)
        if not isinstance(number, (int, float)) or not (number >= 0 and math.isfinite(number) and number % 1 == 0):
            raise ValueError(f"{self.what}: its step must be a whole number from 0, got {step!r}.")

    def made_ready(self, entry: dict[str, Any], counter: Counter | None) -> Slot:
        """Make what is missing of the state, and find where everything lies.

        Args:
            entry: The parameter's state in `optimizer.state`.
            counter: The one that it had, if any.
        """
        rule = self.group.rule
        if counter is None or counter.row.device != self.device or not counter.is_of(rule, entry):
            counter = self._new_counter(entry)
            entry.update(counter.views)  # before the arrays, as torch has it
        dtype = next((local(state).dtype for state in self.states if state is not None), self.local.dtype)
        for i, state in enumerate(rule.states()):
            if self.states[i] is None:
                entry[state.name] = self.states[i] = self._initial_state(state, dtype)
        if rule.counter_key is None and rule.kept_states:
            counter.ages = weakref.ref(entry[rule.kept_states[0]])
        return self._slot(counter)

    def _initial_state(self, state: State, dtype: torch.dtype) -> torch.Tensor:
        """A state as it is at first; what it starts from may be a tensor on the device, for which nobody waits."""
        new = _new_state(self.parameter, self.group.rule.initial(state), dtype)
        if isinstance(state.initial, str):
            source = self.group.sources.get(self.group.rule.number_names().index(state.initial))
            if source is not None:
                local(new).fill_(source.reshape(()))
        return new

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
        if rule.counter_key is None and any(state is not None for state in self.states):
            counter.row[0] = 1.0  # a state that is there is not its first gradient
        return counter

    def _order(self) -> tuple[int, ...]:
        """The strides of the tensors that the kernel works on: the parameter's, unless rows must lie together."""
        order, form = memory_order(self.local), self.group.rule.form(tuple(self.local.shape))
        in_rows = any(stage.over == ROW for stage in form.stages)
        if not in_rows or has_rows(self.local, order):
            return order
        return torch.empty(self.local.shape, device="meta").stride()

    def _slot(self, counter: Counter) -> Slot:
        """Where everything lies; what does not lie in the parameter's order is copied into it."""
        order, place = self._order(), places.place_of(self.device)
        tensors = [self.local, self.gradient, *(local(state) for state in self.states if state is not None)]
        placed = [t if has_order(t, order) and not t.is_neg() else in_order(t, order) for t in tensors]
        self.copies += [Copy(copy, t, t is self.gradient) for copy, t in zip(placed, tensors) if copy is not t]
        names, size = [DTYPES[tensor.dtype] for tensor in placed], self.local.numel()
        parameter, gradient, *states, counters = place.memories(
            [tensor.data_ptr() for tensor in (*placed, counter.row)],
            [size] * len(placed) + [counter.row.numel()],
            [*names, "float64"],
        )
        shape = tuple(self.local.shape)
        kept = plain(names[0], names[1], tuple(names[2:]))
        span = Span(self.group, size, shape, kept, parameter, gradient, states, counters)
        dtype, shape, strides = self.gradient.dtype, self.gradient.size(), self.gradient.stride()
        return Slot(self.parameter, place, span, counter, dtype, shape, strides, placed[1].data_ptr(), self.copies)
