"""A parameter that is to step: its tensors are checked; then its missing state is made, and a slot of it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch

from fusedopt.rules.declaration import State
from fusedopt.rules.rule import Rule
from fusedopt.rules.stages import ROW
from fusedopt.storage import SCALE, Kept, array_dtypes
from fusedopt.torch import places
from fusedopt.torch.checks import check_beside, check_place, check_tensor
from fusedopt.torch.groups import ReadGroup
from fusedopt.torch.slots import Copy, Counter, Slot, Span
from fusedopt.torch.storages import (
    BESIDE,
    coded_states,
    dtypes_by_key,
    is_scale,
    new_beside,
    new_states,
    received,
    scale_shape,
    storage_beside,
)
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
)

Entry = Mapping[str, Any]


def begun(parameter: torch.Tensor, entry: dict[str, Any], rule: Rule) -> Counter | None:
    """Make a parameter's state ahead of its first step, and its counter; neither where it has no memory or no kernel.

    What makes it finer begins with that step, from the parameter as it is then.
    """
    if torch.nn.parameter.is_lazy(parameter) or parameter.is_meta or parameter.dtype not in DTYPES:
        return None
    counter = Counter(rule, parameter.device)
    entry.update(counter.views)
    kept, order = storage_beside(rule, parameter, parameter.dtype, {}), _working_order(rule, local(parameter))
    for state, how in zip(rule.states(), kept.states):
        entry.update(new_states(parameter, rule.initial(state), state, how, order))
    if rule.step_key is None and rule.kept_states:
        counter.row[0] = 1.0  # a state that is there is not its first gradient
    if rule.counter_key is None and rule.kept_states:
        counter.ages = weakref.ref(entry[rule.kept_states[0]])
    return counter


def _working_order(rule: Rule, here: torch.Tensor) -> tuple[int, ...]:
    """The strides of the tensors that the kernel works on: the parameter's, unless rows must lie together."""
    order, form = memory_order(here), rule.form(tuple(here.shape))
    if not _in_rows(form) or has_rows(here, order):
        return order
    return torch.empty(here.shape, device="meta").stride()


def _in_rows(form: Rule) -> bool:
    return any(stage.over == ROW for stage in form.stages)


class Candidate:
    """A parameter with its gradient and its state, checked before anything is changed.

    Args:
        name: Of the parameter, as error messages have it.
        parameter, gradient: Two tensors of one shape.
        entry: The parameter's state in `optimizer.state`, or None where it has none yet.
        group: What its param group says.
        number: Of the parameter in the optimizer.

    Raises:
        RuntimeError: The tensors do not go together, or no kernel takes them.
        ValueError, TypeError: A state is no tensor, or of another shape; a step is no whole number.
    """

    def __init__(
        self,
        name: str,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        entry: Entry | None,
        group: ReadGroup,
        number: int,
    ) -> None:
        self.name, self.parameter, self.group, self.number = name, parameter, group, number
        alike = self._sharded_alike(gradient)
        self.local, self.gradient = local(parameter), local(alike)
        self.copies = [] if alike is gradient else [Copy(alike, gradient, gradient=True)]
        self.device = self.local.device
        check_tensor(self.what, self.local, "it")
        self._check_whole()
        check_beside(self.what, self.gradient, "its gradient", self.local)
        entry = {} if entry is None else entry
        self.storage = storage_beside(group.rule, parameter, self.gradient.dtype, entry)
        self._dtypes = dtypes_by_key(group.rule, self.storage)
        self.states = {key: received(key, entry.get(key)) for key in self._dtypes}
        for key, state in self.states.items():
            if state is not None:
                self._check_state(key, state)
        self._check_kept(entry)
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

    def _check_state(self, name: str, state: Any) -> None:
        if not isinstance(state, torch.Tensor):
            raise TypeError(f"{self.what}: its state {name!r} must be a tensor, got {type(state).__name__}.")
        if is_plain(type(state)) != is_plain(type(self.parameter)):
            raise RuntimeError(
                f"{self.what} is a {type(self.parameter).__name__} and its state {name!r} a {type(state).__name__}; "
                f"both must be sharded, or neither."
            )
        here, which, wanted = local(state), f"its state {name!r}", self._dtypes[name]
        rule = self.group.rule
        if is_scale(rule, name):
            shape = (*self.local.shape[:1], *scale_shape(self.parameter)[1:]) if here is not state else None
            check_place(self.what, here, which, self.local, shape or scale_shape(self.parameter))
        elif name in rule.kept_states and rule.state_dtype_of(name) is None and here.dtype != torch.uint8:
            check_beside(self.what, here, which, self.local)
        else:
            check_place(self.what, here, which, self.local)
        if here.dtype != wanted:
            raise RuntimeError(
                f"{self.what}: {which} has {here.dtype}, and the options of its group keep it in {wanted}; make the "
                f"optimizer with the options that it was made with, or load it with "
                f"load_state_dict(state_dict, convert=True)."
            )

    def _check_kept(self, entry: Entry) -> None:
        """What somebody else put there, or left, must be all of what belongs together, and nothing that has no use."""
        rule = self.group.rule
        for name in coded_states(rule, self.storage):
            if (self.states[name] is None) != (self.states[f"{name}{SCALE}"] is None):
                raise RuntimeError(
                    f"{self.what}: its state {name!r} is in 8-bit codes, which mean nothing without {name + SCALE!r}; "
                    f"put both there, or neither."
                )
        for key in entry:
            waits = key.removesuffix(SCALE) not in rule.kept_states  # until the flag of its state is on again
            if key not in self._dtypes and (key in BESIDE or (is_scale(rule, key) and not waits)):
                raise RuntimeError(
                    f"{self.what}: its state has {key!r}, for which the options of its group, and its dtype "
                    f"{self.local.dtype}, have no use; where the model was converted, give state_dict() to a new "
                    f"optimizer by load_state_dict(state_dict, convert=True); else delete it from optimizer.state."
                )

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
        entry.update({key: state for key, state in self.states.items() if state is not None})
        order = self._order() if self.storage.blocks else None
        for state, how in zip(rule.states(), self.storage.states):
            if self.states[state.name] is None:
                self._begin(entry, new_states(self.parameter, self._initial(state, how), state, how, order))
                self._fill(state, how)
                if rule.step_key is None:  # it is of age 0, whatever was counted
                    counter.row[0] = 0.0
        for key, there in self.states.items():
            if there is None:
                self._begin(entry, {key: new_beside(self.parameter, key, self._dtypes[key])})
        if rule.counter_key is None and rule.kept_states:
            counter.ages = weakref.ref(entry[rule.kept_states[0]])
        return self._slot(counter)

    def _begin(self, entry: dict[str, Any], made: Mapping[str, torch.Tensor]) -> None:
        self.states.update(made)
        entry.update(made)

    def _source(self, state: State) -> torch.Tensor | None:
        """What a state starts from, where that is a tensor on the device."""
        if not isinstance(state.initial, str):
            return None
        return self.group.sources.get(self.group.rule.number_names().index(state.initial))

    def _initial(self, state: State, how: Kept) -> float:
        """What a state starts from, where the host must know it: for 8-bit codes a device is waited for."""
        source = self._source(state)
        return float(source) if source is not None and how.codes else self.group.rule.initial(state)

    def _fill(self, state: State, how: Kept) -> None:
        """Let a new state start from a tensor on the device, for which nobody waits."""
        source, new = self._source(state), self.states[state.name]
        if source is not None and not how.codes and new is not None:
            local(new).fill_(source.reshape(()))

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
        counted = rule.counter_key is not None and rule.counter_key in entry
        if rule.step_key is None and not counted and any(entry.get(name) is not None for name in rule.kept_states):
            counter.row[0] = 1.0  # a state that is there is not its first gradient
        return counter

    def _order(self) -> tuple[int, ...]:
        """The strides of the tensors that the kernel works on. 8-bit states that are there decide: their blocks follow
        one another in memory, and cannot be counted in another order."""
        rule, sharded = self.group.rule, not is_plain(type(self.parameter))
        codes = [name for name in coded_states(rule, self.storage) if self.states[name] is not None]
        if sharded and self.storage.blocks:
            return torch.empty(self.local.shape, device="meta").stride()
        if not codes:
            return _working_order(rule, self.local)
        orders = [memory_order(self.states[name]) for name in codes]
        form = rule.form(tuple(self.local.shape))
        if any(order != orders[0] for order in orders) or (_in_rows(form) and not has_rows(self.local, orders[0])):
            raise RuntimeError(
                f"{self.what}: the elements of its 8-bit states lie in memory in another order than this step takes "
                f"them in; make them anew with load_state_dict(state_dict, convert=True)."
            )
        return orders[0]

    def _slot(self, counter: Counter) -> Slot:
        """Where everything lies; what does not lie in the parameter's order is copied into it."""
        order, place, rule = self._order(), places.place_of(self.device), self.group.rule
        named = {key: local(state) for key, state in self.states.items() if state is not None}
        tensors = [self.local, self.gradient, *named.values()]
        orders = [
            order,
            order,
            *(t.contiguous().stride() if is_scale(rule, key) else order for key, t in named.items()),
        ]
        placed = [t if has_order(t, o) and not t.is_neg() else in_order(t, o) for t, o in zip(tensors, orders)]
        self.copies += [Copy(copy, t, t is self.gradient) for copy, t in zip(placed, tensors) if copy is not t]
        parameter, gradient, *states, counters = place.memories(
            [tensor.data_ptr() for tensor in (*placed, counter.row)],
            [*(tensor.numel() for tensor in placed), counter.row.numel()],
            [*array_dtypes(self.storage), "float64"],
        )
        size, shape = self.local.numel(), tuple(self.local.shape)
        span = Span(
            self.group, size, shape, self.storage, parameter, gradient, states, counters, self.number, keys=tuple(named)
        )
        dtype, size_here, strides = self.gradient.dtype, self.gradient.size(), self.gradient.stride()
        return Slot(
            self.parameter, place, span, counter, dtype, size_here, strides, placed[1].data_ptr(), self.copies, order
        )
