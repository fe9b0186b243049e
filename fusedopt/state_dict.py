"""State dicts: what an arena holds as NumPy arrays under torch's and MegEngine's keys, and back again to the bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusedopt.arena import NO_HISTORY, Arena
from fusedopt.conversion import CONVERT, PARAMETER_KEYS, counted, storage_keys
from fusedopt.groups import Group, changed_rule
from fusedopt.parameter import Parameter
from fusedopt.rules.rule import Rule
from fusedopt.schedules.options import Function
from fusedopt.storage import SCALE

Array = np.ndarray[Any, Any]


class LiveState(Mapping[Parameter, dict[str, Any]]):
    """The state of an optimizer's parameters as views of its buffers; empty for a parameter without a step yet."""

    def __init__(self, arenas: Iterator[Arena]) -> None:
        self._places = {
            parameter: (arena, index) for arena in arenas for index, parameter in enumerate(arena.parameters)
        }

    def __getitem__(self, parameter: Parameter) -> dict[str, Any]:
        arena, index = self._places[parameter]
        return _views(arena, index, arena.counters, arena.states) if parameter in self else {}

    def __contains__(self, parameter: object) -> bool:
        arena, index = self._places.get(parameter, (None, 0))  # type: ignore[call-overload]  # any object may be asked for
        return arena is not None and bool(arena.cohorts[index] != NO_HISTORY)

    def __iter__(self) -> Iterator[Parameter]:
        return filter(self.__contains__, self._places)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _views(arena: Arena, index: int, counters: Any, states: Mapping[str, Any]) -> dict[str, Any]:
    rule = arena.group.rule
    named = {rule.counter_key: 0} if rule.counter_key is not None else {}
    named |= {name: 1 + i for i, name in enumerate(rule.scalar_state)}
    scalars = {name: counters[index, column : column + 1].reshape(()) for name, column in named.items()}
    return scalars | {key: arena.part(key, index, states[key]) for key in arena.stored if key in states}


def make_buffers(arena: Arena) -> None:
    """Allocate the state arrays that the rule keeps."""
    for key in arena.keys:
        arena.state(key)


def make_state(arena: Arena) -> None:
    """Allocate the state of all trainable parameters before their first step."""
    rule = arena.group.rule
    new = np.frombuffer(arena.presence.trainable, bool) & (arena.cohorts == NO_HISTORY)
    make_buffers(arena)
    arena.begin(new)
    arena.part_cohorts(new)
    if rule.step_key is None and rule.kept_states:
        counters = arena.memory.host(arena.counters)
        counters[new, 0] = 1  # zeros are a state of age 1, not none
        with arena.memory.here():
            arena.counters[...] = arena.memory.asarray(counters)


def state_dict(groups: Sequence[Group], arenas: Sequence[Sequence[Arena]]) -> dict[str, Any]:
    """One copy to the host for each buffer; the arrays of the result are views of these copies."""
    numbers = _numbers(groups)
    state: dict[int, dict[str, Any]] = {}
    for arena in (arena for of_group in arenas for arena in of_group):
        host = arena.memory.host
        counters, states = host(arena.counters), {name: host(buffer) for name, buffer in arena.states.items()}
        for index, parameter in enumerate(arena.parameters):
            unused = arena.group.rule.counter_key is None and counters[index, 0] == 0
            beside = arena.storage.parameter.beside_key  # which has no age
            held = {key: states[key] for key in states if key == beside} if unused else states
            entry = _views(arena, index, counters, held)
            if arena.cohorts[index] != NO_HISTORY and entry:
                state[numbers[id(parameter)]] = entry
    saved = [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        | {"params": [numbers[id(parameter)] for parameter in group["params"]]}
        for group in groups
    ]
    return {"state": dict(sorted(state.items())), "param_groups": saved}


def _numbers(groups: Sequence[Group]) -> dict[int, int]:
    return {id(p): number for number, p in enumerate(p for group in groups for p in group["params"])}


def checked_groups(
    saved: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    ours: Sequence[Rule],
    scheduled: Sequence[Mapping[str, Function]],
    changed: Callable[[Rule, Mapping[str, Any]], Rule] = changed_rule,
    convert: bool = False,
) -> tuple[list[Rule], list[dict[str, Any]], list[Any]]:
    """The rules with the saved hyperparameters, the keys beside them, and the saved state of each parameter in order.

    Args:
        saved: A state dict.
        groups, ours: The optimizer's param groups, and the rule of each.
        scheduled: The schedules of each, which are kept: the numbers that were saved in their place are not taken.
        changed: Gives a rule other options, and refuses wrong ones.
        convert: Whether state that was kept in another way is to be converted.
    """
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= set(saved):
        keys = ", ".join(map(repr, saved)) if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"a state dict has the keys 'state' and 'param_groups', got {keys or 'none'}; "
            f"give what state_dict() returned."
        )
    theirs = list(saved["param_groups"])
    if len(theirs) != len(groups):
        raise ValueError(
            f"the state dict has {len(theirs)} param groups and the optimizer {len(groups)}; build it with as many."
        )
    rules: list[Rule] = []
    extras: list[dict[str, Any]] = []
    ids: list[Any] = []
    steps: list[Any] = []
    if not isinstance(saved["state"], Mapping):
        raise TypeError(f"the state dict's 'state' must be a dict by parameter, got {type(saved['state']).__name__}.")
    for number, (group, own, kept_schedules, entry) in enumerate(zip(groups, ours, scheduled, theirs)):
        if not isinstance(entry, Mapping) or "params" not in entry:
            got = f"keys {', '.join(map(repr, entry))}" if isinstance(entry, Mapping) else type(entry).__name__
            raise ValueError(f"param group {number} of the state dict must be a dict with 'params', got {got}.")
        if len(entry["params"]) != len(group["params"]):
            raise ValueError(
                f"param group {number} of the state dict has {len(entry['params'])} parameters and the optimizer's has "
                f"{len(group['params'])}; they must be the same parameters in the same order."
            )
        if not convert:
            _check_storage_options(number, own, entry)
        ours_alone = {*kept_schedules, *own.storage_options()}
        options = {key: field for key, field in own.options().items() if key not in ours_alone}
        given = {key: value for key, value in entry.items() if key in options and options[key].init}
        missing = [
            key for key, field in options.items() if field.init and key not in given and not field.metadata["common"]
        ]
        if missing:
            kept = ", ".join(f"{key}={group[key]!r}" for key in missing)
            warnings.warn(f"param group {number} of the state dict lacks {kept}; these values are kept.", stacklevel=4)
        try:
            rules.append(changed(own, given))
        except (TypeError, ValueError) as error:
            raise type(error)(f"param group {number} of the state dict: {error}") from None
        extras.append({k: copy.deepcopy(v) for k, v in entry.items() if k not in own.options() and k != "params"})
        ids.extend(entry["params"])
        shared = None if own.counter_key is None else extras[-1].pop(own.counter_key, None)
        steps.extend([(own.counter_key, shared)] * len(entry["params"]))
    stray = set(saved["state"]) - set(ids)
    if stray:
        warnings.warn(f"state of {sorted(map(str, stray))} belongs to no param group and is left out.", stacklevel=4)
    entries = [saved["state"].get(number, {}) for number in ids]
    return rules, extras, [_with_step(entry, step, key) for entry, (key, step) in zip(entries, steps)]


def _check_storage_options(number: int, own: Rule, entry: Mapping[str, Any]) -> None:
    """Raise ValueError where a param group was saved with other storages than ours, which its arrays may not tell."""
    for name in ("master_weights", "kahan", "stochastic_rounding"):
        if name in entry and entry[name] != getattr(own, name):
            raise ValueError(
                f"param group {number} of the state dict was saved with {name}={entry[name]!r} and this optimizer has "
                f"{name}={getattr(own, name)!r}; convert the state: {CONVERT}, or build it with the former."
            )


def _with_step(entry: Any, step: Any, key: str | None) -> Any:
    """A parameter's saved state, with the step that apex and TransformerEngine save once for a group."""
    lacks = step is not None and isinstance(entry, Mapping) and bool(entry) and key not in entry
    return {key: step, **entry} if lacks else entry


def checked_entry(
    entry: Mapping[str, Any], rule: Rule, described: str, array: Callable[[str, str, Any], Any]
) -> dict[str, Any] | None:
    """A parameter's numbers under their names and its arrays, or None where it has no state.

    Args:
        entry: What a state dict has for the parameter.
        rule: The rule that it is for.
        described: The parameter, as error messages name it.
        array: (what it is, its key, value) -> the value, or an error where it is no state array of the parameter.
    """
    if not isinstance(entry, Mapping):
        raise TypeError(f"the state of {described} must be a dict, got {type(entry).__name__}.")
    entry = {key: value for key, value in entry.items() if value is not None}
    if "step" in entry and rule.step_key is None:
        entry["step"] = _number(f"the state of {described}: step", entry["step"], whole=True)
    entry = counted(entry, rule) if entry else entry
    if not entry:
        return None
    what, states = f"the state of {described}", [state.name for state in rule.all_states()]
    scalars = [*([rule.counter_key] if rule.counter_key is not None else []), *rule.scalar_state]
    for key in entry:
        if key not in states and key not in scalars and key not in storage_keys(rule):
            names = ", ".join([*scalars, *states]) or "no state"
            raise ValueError(f"{what} has {key!r}; {type(rule).__name__} keeps {names}.")
    for name in states:  # two arrays, or one
        scale = f"{name}{SCALE}"
        if str(getattr(entry.get(name), "dtype", "")).endswith("uint8") != (scale in entry):
            has, lacks = (scale, name) if scale in entry else (name, scale)
            raise KeyError(f"{what} has {has!r} and lacks {lacks!r}: codes of 8 bits are read with their scales.")
    # A flag's state may be missing: the flag was turned on after the last step, and its state starts then. All of them
    # may where they have an age, which is 0 then.
    unused = rule.counter_key is None and entry.keys() <= PARAMETER_KEYS
    always = [] if unused else [state.name for state in rule.all_states() if state.when is None]
    for key in [*scalars, *always]:
        if key not in entry:
            raise KeyError(f"{what} lacks {key!r}; it has {', '.join(map(repr, entry))}.")
    return {
        key: _number(f"{what}: {key}", value, whole=key == rule.counter_key) if key in scalars
        else array(f"{what}: {key}", key, value)
        for key, value in entry.items()
    }  # fmt: skip


def _number(what: str, value: Any, whole: bool) -> float:
    if getattr(value, "size", 1) != 1 and not callable(getattr(value, "size", None)):
        raise ValueError(f"{what} must be one number, got an array of shape {value.shape}.")
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):  # the last is torch's, of a tensor with several elements
        raise TypeError(f"{what} must be a number, got {value!r}.") from None
    if whole and not (number >= 0 and number == np.floor(number) and number < 2**53):
        raise ValueError(f"{what} must be a whole number from 0, got {value!r}.")
    return number


def check_array(what: str, value: Any) -> None:
    """Raise TypeError where a value is no array of NumPy or CuPy."""
    if not hasattr(value, "shape") or not isinstance(getattr(value, "dtype", None), np.dtype):
        kind = type(value).__name__
        raise TypeError(f"{what} must be a NumPy array, got {kind}; convert it, as with tensor.numpy().")
