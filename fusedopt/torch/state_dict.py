"""State dicts in torch's format: steps as torch writes them, and back into the tensors that are there, never cast."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch

from fusedopt.rules.rule import Rule
from fusedopt.scheduled import loaded_steps, rules_in_force
from fusedopt.state_dict import checked_entry, checked_groups
from fusedopt.torch.groups import checked_rule
from fusedopt.torch.schedules import Followed
from fusedopt.torch.slots import Counter
from fusedopt.torch.tensors import is_plain, storable

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
) -> list[int]:
    """Check all of a state dict, then copy it: into the tensors that are there, where they fit.

    Returns:
        The count of steps of each group's schedules.

    Raises:
        ValueError, TypeError, KeyError: As `fusedopt.Optimizer.load_state_dict`.
    """
    groups, scheduled = [some.group for some in followed], [some.schedules for some in followed]
    rules, extras, found = checked_groups(saved, groups, [rule] * len(groups), scheduled, checked_rule)
    params = [(p, rule) for group, rule in zip(groups, rules) for p in group["params"]]
    names = [name for group in groups for name in names_of(group)]
    checked = [
        (p, rule, checked_entry(entry, rule, name, partial(_tensor, parameter=p)))
        for (p, rule), name, entry in zip(params, names, found)
    ]
    entries = iter([loaded for _, _, loaded in checked])
    steps = loaded_steps(extras, rules, scheduled, [list(islice(entries, len(group["params"]))) for group in groups])
    in_force = rules_in_force(rules, scheduled, steps, checked_rule)
    for some, schedules, entry, rule, extra in zip(followed, scheduled, saved["param_groups"], in_force, extras):
        for name, field in rule.options().items():
            if name in entry and field.init and name not in schedules:
                _assign(some.group, name, entry[name])
        some.group.update(extra)
        some.write(rule)
    for p, rule, loaded in checked:
        if loaded is None:
            state.pop(p, None)
        else:
            state[p] = _filled(p, rule, loaded, state.get(p, {}), counters.get(p))
    return steps


def names_of(group: Mapping[str, Any]) -> Iterable[str]:
    names = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
    return (f"parameter {name!r} (shape {tuple(p.shape)})" for name, p in zip(names, group["params"]))


def _tensor(what: str, key: str, value: Any, parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.shape != parameter.shape:
        raise ValueError(f"{what} has shape {tuple(value.shape)} and the parameter {tuple(parameter.shape)}.")
    return checked_tensor(what, value, parameter)


def checked_tensor(what: str, value: Any, parameter: torch.Tensor) -> torch.Tensor:
    """The value, where it is a tensor whose kind and dtype go with the parameter's.

    Raises:
        TypeError: It is no tensor, or of a dtype that does not.
        ValueError: One of the two is a DTensor, say, and the other is not.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(value).__name__}; convert it, as with torch.from_numpy.")
    if is_plain(type(value)) != is_plain(type(parameter)):
        kinds = f"{type(value).__name__} and the parameter a {type(parameter).__name__}"
        raise ValueError(f"{what} is a {kinds}; use torch.distributed.checkpoint.state_dict.set_state_dict.")
    if not storable(value.dtype, parameter.dtype):
        raise TypeError(
            f"{what} has {value.dtype}, which does not go with a parameter of {parameter.dtype}; nothing is cast "
            f"silently: convert it where that is meant."
        )
    return value


def _assign(group: dict[str, Any], name: str, value: Any) -> None:
    """Set a hyperparameter; a tensor on a device keeps its place, since captured graphs read it."""
    ours = group.get(name)  # an option that every rule has may not have been there
    if isinstance(ours, torch.Tensor) and ours.device.type != "cpu":
        ours.fill_(value) if not isinstance(value, torch.Tensor) else ours.copy_(value.reshape(ours.shape))
    else:
        group[name] = tuple(value) if isinstance(value, list) else copy.deepcopy(value)


def _filled(
    p: torch.Tensor, rule: Rule, loaded: Mapping[str, Any], entry: Mapping[str, Any], counter: Counter | None
) -> dict[str, Any]:
    """The state of a parameter with loaded values, in the tensors that it has, or in new ones like the parameter."""
    filled = dict(entry) if isinstance(entry, dict) else {}
    live = counter.views if counter is not None and counter.is_of(rule, entry) else {}
    for key in list(filled):
        if key not in loaded:
            del filled[key]
    for key, value in loaded.items():
        if not isinstance(value, torch.Tensor):
            if key in live:
                live[key].fill_(value)
            else:
                filled[key] = _as_torch_has_it(value, "cpu")  # until the first step makes a counter of it
            continue
        ours = filled.get(key)
        if not isinstance(ours, torch.Tensor) or (ours.dtype, ours.device, ours.shape) != (
            value.dtype,
            p.device,
            p.shape,
        ):
            filled[key] = ours = torch.empty_like(p, dtype=value.dtype, memory_format=torch.preserve_format)
        ours.copy_(value)
    first = filled.get(rule.kept_states[0]) if rule.kept_states else None
    if counter is not None and counter.ages is not None and first is not None and counter.ages() is first:
        counter.row[0] = 1.0
    return filled
