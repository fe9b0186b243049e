"""State dicts in torch's format: steps as torch writes them, and back into the tensors that are there, never cast."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch

from fusedopt.conversion import check_kept, storage_keys
from fusedopt.foreign_states import in_our_keys
from fusedopt.rules.rule import Rule
from fusedopt.scheduled import loaded_steps, rules_in_force
from fusedopt.state_dict import checked_entry, checked_groups
from fusedopt.storage import SCALE
from fusedopt.stored_arrays import StoredArray
from fusedopt.torch.arguments import described
from fusedopt.torch.conversion import check_codes, converted_entry, stored_beside
from fusedopt.torch.groups import checked_rule, kept_as
from fusedopt.torch.schedules import Followed
from fusedopt.torch.slots import Counter
from fusedopt.torch.storages import (
    BESIDE,
    is_scale,
    like_scale,
    received,
    scale_shape,
    sent,
    start_again,
)
from fusedopt.torch.tensors import DTYPES, has_order, is_plain, local, memory_order, storable

State = Mapping[torch.Tensor, Mapping[str, Any]]


def written(state: State, groups: Sequence[Mapping[str, Any]], counters: Mapping[torch.Tensor, Counter]) -> State:
    """The state as torch writes it: steps are tensors of their own, and states that hold no gradient yet are left out.

    All other tensors are those that are there, as in torch.
    """
    copied: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    on_device = {id(p): bool(g.get("fused") or g.get("capturable")) for g in groups for p in g["params"]}
    known = [(p, counter) for p in state if (counter := counters.get(p)) is not None]
    numbers = dict(zip((id(p) for p, _ in known), _on_host([counter.row for _, counter in known])))
    for p, entry in state.items():
        if not isinstance(p, torch.Tensor) or not isinstance(entry, Mapping):
            copied[p] = entry  # somebody else's
            continue
        copied[p] = dict(entry)
        counter = counters.get(p)
        if counter is None:
            continue
        for i, (key, view) in enumerate(counter.views.items()):
            if entry.get(key) is view:
                copied[p][key] = _as_torch_has_it(numbers[id(p)][i], p.device if on_device.get(id(p)) else "cpu")
        if not counter.views and numbers[id(p)][0] == 0 and counter.ages is not None:
            copied[p] = {key: value for key, value in entry.items() if value is not counter.ages()}
    return copied


def state_dict(
    state: State, groups: Sequence[Mapping[str, Any]], counters: Mapping[torch.Tensor, Counter]
) -> dict[str, Any]:
    """State and options, of types that processes can send to one another, with parameters by their numbers."""
    numbers: dict[int, int] = {}
    for p in chain.from_iterable(group["params"] for group in groups):
        numbers.setdefault(id(p), len(numbers))
    return {
        "state": {
            numbers[id(p)] if isinstance(p, torch.Tensor) else p: _sendable(entry)
            for p, entry in written(state, groups, counters).items()
        },
        "param_groups": [
            {key: value for key, value in group.items() if key != "params"}
            | {"params": [numbers[id(p)] for p in group["params"]]}
            for group in groups
        ],
    }


def _sendable(entry: Any) -> Any:
    return {key: sent(key, value) for key, value in entry.items()} if isinstance(entry, Mapping) else entry


def _on_host(rows: Sequence[torch.Tensor]) -> list[list[float]]:
    """The numbers in some tensors of one shape; each device is waited for once."""
    found: dict[int, list[float]] = {}
    for device in {row.device for row in rows}:
        places = [i for i, row in enumerate(rows) if row.device == device]
        found.update(zip(places, torch.stack([rows[i] for i in places]).tolist()))
    return [found[i] for i in range(len(rows))]


def _as_torch_has_it(number: float, device: Any) -> torch.Tensor:
    """A 0-d float32, or float64 where that is torch's default or float32 cannot tell the number from its neighbours."""
    tensor = torch.tensor(number, dtype=torch.float32, device=device)
    exact = torch.get_default_dtype() != torch.float64 and tensor.device.type != "meta" and float(tensor) == number
    return tensor if exact else torch.tensor(number, dtype=torch.float64, device=device)


def load(
    saved: Mapping[str, Any],
    followed: Sequence[Followed],
    rule: Rule,
    state: dict[Any, Any],
    counters: Mapping[torch.Tensor, Counter],
    convert: bool = False,
) -> list[int]:
    """Check all of a state dict, then copy it: into the tensors that are there, where they fit.

    Args:
        convert: Whether what was kept in another way is converted.

    Returns:
        The count of steps of each group's schedules.

    Raises:
        ValueError, TypeError, KeyError: As `fusedopt.Optimizer.load_state_dict`.
    """
    groups, scheduled = [some.group for some in followed], [some.schedules for some in followed]
    kept = [kept_as(rule, group) for group in groups]
    saved = in_our_keys(saved, kept, groups)
    rules, extras, found = checked_groups(saved, groups, kept, scheduled, checked_rule, convert)
    params = [(p, rule) for group, rule in zip(groups, rules) for p in group["params"]]
    names = [name for number, group in enumerate(groups) for name, _ in described(group, number)]
    loads = [_Load(p, rule, name, entry, convert) for (p, rule), name, entry in zip(params, names, found)]
    entries = iter([load.entry for load in loads])
    steps = loaded_steps(extras, rules, scheduled, [list(islice(entries, len(group["params"]))) for group in groups])
    in_force = rules_in_force(rules, scheduled, steps, checked_rule)
    for some, schedules, entry, rule, extra in zip(followed, scheduled, saved["param_groups"], in_force, extras):
        for name, field in rule.options().items():
            if name in entry and field.init and name not in schedules and not field.metadata["storage"]:
                _assign(some.group, name, entry[name])
        some.group.update(extra)
        some.write(rule)
    for load in loads:
        load.fill(state, counters)
    return steps


def checked_tensor(what: str, value: Any, parameter: torch.Tensor) -> torch.Tensor:
    """The value, where it is a tensor whose kind and dtype go with the parameter's.

    Raises:
        TypeError: It is no tensor, or of a dtype that does not.
        ValueError: One of the two is a DTensor, say, and the other is not.
    """
    _check_kind(what, value, parameter)
    if not storable(value.dtype, parameter.dtype):
        raise TypeError(
            f"{what} has {value.dtype}, which does not go with a parameter of {parameter.dtype}; nothing is cast "
            f"silently: convert it where that is meant."
        )
    kept: torch.Tensor = value
    return kept


def _check_kind(what: str, value: Any, parameter: torch.Tensor) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(value).__name__}; convert it, as with torch.from_numpy.")
    if is_plain(type(value)) != is_plain(type(parameter)):
        kinds = f"{type(value).__name__} and the parameter a {type(parameter).__name__}"
        raise ValueError(f"{what} is a {kinds}; use torch.distributed.checkpoint.state_dict.set_state_dict.")


def _assign(group: dict[str, Any], name: str, value: Any) -> None:
    """Set a hyperparameter; a tensor on a device keeps its place, since captured graphs read it."""
    ours = group.get(name)  # an option that every rule has may not have been there
    if isinstance(ours, torch.Tensor) and ours.device.type != "cpu":
        ours.fill_(value) if not isinstance(value, torch.Tensor) else ours.copy_(value.reshape(ours.shape))
    else:
        group[name] = tuple(value) if isinstance(value, list) else copy.deepcopy(value)


class _Load:
    """What a state dict has for a parameter: checked when it is made, and nothing changed; then filled in.

    Attributes:
        entry: Its numbers and tensors by key; None where it has no state.
    """

    def __init__(self, p: torch.Tensor, rule: Rule, described: str, found: Any, convert: bool) -> None:
        self._p, self._rule = p, rule
        self._stored: dict[str, StoredArray] = {}
        self._moved: torch.Tensor | None = None  # the values that the parameter has after a conversion
        if isinstance(found, Mapping):
            found = {key: received(key, value) for key, value in found.items() if value is not None}
            if found and p.dtype in DTYPES:
                check_codes(f"the state of {described}", found, rule, p)
                self._stored = stored_beside(rule, p, found)
                found = self._converted(described, found) if convert else found
        self.entry = checked_entry(found, rule, described, self._tensor)
        for key in self._stored.keys() & (self.entry or {}).keys():
            scale = f"{key}{SCALE}"
            if scale in self._stored and self.entry is not None and scale not in self.entry:
                raise KeyError(f"the state of {described} lacks {scale!r}, without which 8-bit codes mean nothing.")

    def _converted(self, described: str, found: Mapping[str, Any]) -> dict[str, Any]:
        what, rule = f"the state of {described}", self._rule
        for key in {*storage_keys(rule), *(state.name for state in rule.all_states())} & found.keys():
            self._check_shape(f"{what}: {key}", key, found[key])
            _check_kind(f"{what}: {key}", found[key], self._p)
        entry, self._moved = converted_entry(what, found, rule, self._p, self._stored)
        return entry

    def _tensor(self, what: str, key: str, value: Any) -> torch.Tensor:
        """A saved tensor, where it is what is kept under the key."""
        self._check_shape(what, key, value)
        _check_kind(what, value, self._p)
        if key in {state.name for state in self._rule.all_states()} and value.dtype != torch.uint8:
            checked_tensor(what, value, self._p)
        check_kept(what, key, str(value.dtype).removeprefix("torch."), self._stored)
        tensor: torch.Tensor = value
        return tensor

    def _check_shape(self, what: str, key: str, value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            return
        right = tuple(self._p.shape)
        if is_scale(self._rule, key):
            right = scale_shape(self._p)
            if is_plain(type(self._p)) and value.numel() == right[-1]:  # of a DTensor's, a row for each of its rows
                return
        if tuple(value.shape) != right:
            whole = "the parameter" if right == tuple(self._p.shape) else "those of the parameter"
            raise ValueError(f"{what} has shape {tuple(value.shape)} and {whole} {right}.")

    def fill(self, state: dict[Any, Any], counters: Mapping[torch.Tensor, Counter]) -> None:
        """Copy everything into the tensors that are there, or into new ones like the parameter."""
        p, rule, counter = self._p, self._rule, counters.get(self._p)
        if self._moved is not None:
            local(p).copy_(self._moved)
        if self.entry is None:
            state.pop(p, None)
            return
        before = state.get(p, {})
        filled = state[p] = dict(before) if isinstance(before, dict) else {}
        live = counter.views if counter is not None and counter.is_of(rule, before) else {}
        for key in filled.keys() - self.entry.keys():
            if key in BESIDE & self._stored.keys():
                start_again(p, {key: filled[key]})
            else:
                del filled[key]
        for key, value in self.entry.items():
            if isinstance(value, torch.Tensor):
                filled[key] = self._copied(key, value, filled.get(key))
            elif key in live:
                live[key].fill_(value)
            else:
                filled[key] = _as_torch_has_it(value, "cpu")  # until the first step makes a counter of it
        first = filled.get(rule.kept_states[0]) if rule.kept_states else None
        if counter is not None and counter.ages is not None and first is not None and counter.ages() is first:
            counter.row[0] = 1.0

    def _copied(self, key: str, value: torch.Tensor, ours: Any) -> torch.Tensor:
        p, scale = self._p, is_scale(self._rule, key)
        shape = scale_shape(p) if scale else p.shape
        kind = value.dtype, p.device, shape
        if not isinstance(ours, torch.Tensor) or (ours.dtype, ours.device, tuple(ours.shape)) != kind:
            ours = None
        in_codes = value.dtype == torch.uint8 and is_plain(type(p))
        order = memory_order(value) if in_codes else None  # in which its blocks follow one another
        if ours is not None and order is not None and not has_order(ours, order):
            ours = None
        if ours is None:
            if scale:
                ours = like_scale(p, 0.0)
            elif order is not None:
                ours = torch.empty_strided(p.shape, order, dtype=value.dtype, device=p.device)
            else:
                ours = torch.empty_like(p, dtype=value.dtype, memory_format=torch.preserve_format)
        copied: torch.Tensor = ours.copy_(value.reshape(shape) if scale else value)
        return copied
