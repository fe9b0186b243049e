"""Loading: a state dict checked whole, converted where that is asked for, then copied into an optimizer's buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fusedopt.arena import Arena
from fusedopt.conversion import (
    CONVERT,
    age_of,
    check_kept,
    converted,
    decoded_as_it_lies,
    lies_in_order,
    shape_of,
    storage_keys,
)
from fusedopt.foreign_states import in_our_keys
from fusedopt.groups import Group
from fusedopt.parameter import Parameter
from fusedopt.rules.rule import Rule
from fusedopt.scheduled import loaded_steps, rules_in_force
from fusedopt.state_dict import check_array, checked_entry, checked_groups
from fusedopt.storage import BESIDE_PARAMETER, SCALE
from fusedopt.stored_arrays import StoredArray

Array = np.ndarray[Any, Any]


def load_state_dict(
    saved: Mapping[str, Any], groups: Sequence[Group], arenas: Sequence[Sequence[Arena]], convert: bool = False
) -> None:
    """Check all of a state dict, then copy it into the buffers that are there."""
    scheduled = [group.schedules for group in groups]
    ours = [group.rule for group in groups]
    saved = in_our_keys(saved, ours, groups)
    rules, extras, found = checked_groups(saved, groups, ours, scheduled, convert=convert)
    entries = {id(p): entry for p, entry in zip((p for group in groups for p in group["params"]), found)}
    loads = [
        _Load(arena, rule, [entries[id(p)] for p in arena.parameters], convert)
        for rule, of_group in zip(rules, arenas)
        for arena in of_group
    ]
    by_group = [[entry for load in loads if load.arena.group is group for entry in load.entries] for group in groups]
    steps = loaded_steps(extras, rules, scheduled, by_group)
    rules = rules_in_force(rules, scheduled, steps)
    for group, rule, extra, count in zip(groups, rules, extras, steps):
        group.adopt(rule, extra, count)
    for load in loads:
        load.fill()


def _on_host(value: Any) -> Any:
    return value.get() if hasattr(value, "get") else value


def _received(key: str, value: Any) -> Any:
    """What is saved under a key; of a remainder that `fusedopt.torch` wrote as bfloat16 the bits, as int16."""
    of_torch = key == BESIDE_PARAMETER["split"][0] and getattr(getattr(value, "dtype", None), "name", "") == "bfloat16"
    return value.view(np.int16) if of_torch else value


class _Load:
    """What a state dict has for an arena: checked when it is made, and nothing changed; then filled in.

    Attributes:
        entries: Of each parameter, its numbers and arrays by key; None where it has no state.
    """

    def __init__(self, arena: Arena, rule: Rule, found: Sequence[Any], convert: bool) -> None:
        self.arena, self._rule = arena, rule
        self._moved: dict[int, Array] = {}  # values that parameters have after a conversion, by index
        self.entries: list[dict[str, Any] | None] = []
        for index, (parameter, entry) in enumerate(zip(arena.parameters, found)):
            if isinstance(entry, Mapping):
                entry = {key: _received(key, value) for key, value in entry.items()}
            if convert:
                entry = self._converted(index, parameter, entry)
            array = partial(_array, parameter=parameter, rule=rule, stored=arena.stored)
            self.entries.append(checked_entry(entry, rule, parameter.described, array))

    def _converted(self, index: int, parameter: Parameter, entry: Any) -> Any:
        """A parameter's saved state as the arena keeps it."""
        rule = self._rule
        keys = {*storage_keys(rule), *(state.name for state in rule.all_states())}
        if not isinstance(entry, Mapping) or not entry:
            return entry
        what, entry = f"the state of {parameter.described}", {k: v for k, v in entry.items() if v is not None}
        for key in [key for key in entry if key in keys]:  # in an order: of two errors, always the same one
            _check_shape(f"{what}: {key}", key, entry[key], parameter, rule)
            check_array(f"{what}: {key}", entry[key])
            entry[key] = _on_host(entry[key])
        for state in rule.all_states():
            codes, scales = entry.get(state.name), entry.get(f"{state.name}{SCALE}")
            if state.codes and scales is not None and codes is not None and not lies_in_order(codes):
                entry[state.name] = decoded_as_it_lies(codes, entry.pop(f"{state.name}{SCALE}"), state)
        found, moved = converted(what, entry, rule, self.arena.memory.host(parameter.data))
        if moved is not None:
            self._moved[index] = moved
        return found

    def fill(self) -> None:
        """Write counters and states; buffers stay where they are, since tables and captured graphs point at them."""
        arena, rule = self.arena, self._rule
        counters = np.tile(arena.initial, (len(self.entries), 1))
        histories: list[object] = []
        for index, entry in enumerate(self.entries):
            if entry is not None:
                counters[index, 0] = age_of(entry) if rule.counter_key is None else entry[rule.counter_key]
                for column, name in enumerate(rule.scalar_state, 1):
                    counters[index, column] = entry[name]
            histories.append(None if entry is None else counters[index].tobytes())
        self._fill_arrays()
        with arena.memory.here():
            arena.counters[...] = arena.memory.asarray(counters)  # after the arrays: new ones are of age 0
        arena.join_cohorts(histories)

    def _fill_arrays(self) -> None:
        arena = self.arena
        with arena.memory.here():
            for index, values in self._moved.items():
                arena.view(arena.data, index)[...] = arena.memory.asarray(values)
        loaded = {key for entry in self.entries if entry for key in entry} & arena.stored.keys()
        for key in sorted(loaded | set(arena.states)):
            host = np.full(arena.length(key), arena.stored[key].initial, arena.stored[key].dtype)
            for index, entry in enumerate(self.entries):
                if entry is not None and key in entry:
                    arena.part(key, index, host)[...] = _on_host(entry[key])
            with arena.memory.here():
                arena.state(key)[...] = arena.memory.asarray(host)
        begun = arena.storage.parameter.beside_key
        lacking = [index for index, entry in enumerate(self.entries) if entry is not None and begun not in entry]
        with arena.memory.here():
            arena.begin_masters(lacking)


def _array(what: str, key: str, value: Any, parameter: Parameter, rule: Rule, stored: Mapping[str, StoredArray]) -> Any:
    """A saved array, where it is what is stored under the key."""
    _check_shape(what, key, value, parameter, rule)
    check_array(what, value)
    check_kept(what, key, value.dtype.name, stored)
    if value.dtype == np.uint8 and not lies_in_order(value):
        raise ValueError(
            f"{what} has codes that lie in memory in another order than here, as those of a channels_last tensor, and "
            f"the blocks that share a scale with them; convert it: {CONVERT}."
        )
    return value


def _check_shape(what: str, key: str, value: Any, parameter: Parameter, rule: Rule) -> None:
    """Raise ValueError where what is saved under a key has a shape that it cannot have."""
    right = shape_of(rule, key, parameter.shape, parameter.size)
    if hasattr(value, "dtype") and tuple(value.shape) != right:
        whole = "the parameter" if right == parameter.shape else f"{parameter.size} elements need"
        raise ValueError(f"{what} has shape {tuple(value.shape)} and {whole} {right}.")
