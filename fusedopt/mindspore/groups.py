"""MindSpore's param groups as ours: which keys, in which order parameters count, and who is not decayed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from fusedopt.groups import groups_of
from fusedopt.mindspore.arguments import a_decay, a_flag, a_rate
from fusedopt.parameter import Parameter

KEYS = ("params", "lr", "weight_decay", "grad_centralization", "order_params")


@dataclasses.dataclass(frozen=True)
class Grouped:
    """Parameters as an optimizer of ours takes them.

    Attributes:
        entries: Its param groups, as dicts.
        order: All parameters, as gradients are given and states are numbered.
        undecayed: Those that were left out of the weight decay because of their names.
        own_rates: Whether some group has a learning rate of its own.
        are_groups: Whether groups were given.
    """

    entries: list[dict[str, Any]]
    order: list[Parameter]
    undecayed: list[Parameter]
    own_rates: bool
    are_groups: bool


def grouped(params: Any, decays: bool, owner: str, dynamic_decay: bool = True) -> Grouped:
    """What a user passed as `params`, checked.

    Args:
        decays: There is a weight decay, and parameters without groups whose names have `beta` or `gamma` have none.
        owner: The optimizer, as errors name it.
        dynamic_decay: A group's weight decay may be a function.

    Raises:
        TypeError, ValueError: As for `fusedopt.Optimizer`; or order_params does not have the groups' parameters.
        KeyError: A group has another key than MindSpore's.
    """
    if isinstance(params, Iterable) and not isinstance(params, (Mapping, str, bytes)) and not hasattr(params, "dtype"):
        params = params if isinstance(params, (set, frozenset)) else list(params)
    first = params[0] if isinstance(params, list) and params else params
    if not isinstance(first, Mapping):
        (entry,) = groups_of(params)
        entries, undecayed = _without_groups(entry) if decays else ([entry], [])
        return Grouped(entries, entry["params"], undecayed, own_rates=False, are_groups=False)
    given = [params] if isinstance(params, Mapping) else params
    orders = [entry["order_params"] for entry in given if _is_order(entry, owner)]
    for number, entry in enumerate(given):
        _check_order_key(f"{owner}: params[{number}]", entry)
    entries = groups_of([entry for entry in given if not _is_order(entry, owner)])
    for number, entry in enumerate(entries):
        _check_group(f"{owner}: param group {number}", entry, dynamic_decay)
    order = [parameter for entry in entries for parameter in entry["params"]]
    own_rates = any("lr" in entry for entry in entries)
    return Grouped(entries, _ordered(orders, order, owner), [], own_rates, are_groups=True)


def trainable_params(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Those that are to be trained, as a network's method of this name gives them in MindSpore."""
    return [parameter for parameter in parameters if parameter.requires_grad]


def not_decayed(name: str | None) -> bool:
    """Whether MindSpore leaves a parameter of this name out of the weight decay, as BatchNorm's are called."""
    return any(word in (name or "") for word in ("beta", "gamma"))


def _without_groups(entry: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Parameter]]:
    """One group, or where names ask for it one with and one without weight decay; and the parameters of that."""
    names = entry.get("param_names", [parameter.name for parameter in entry["params"]])
    spared = [not_decayed(name) for name in names]
    decayed = {key: [item for item, no in zip(items, spared) if not no] for key, items in entry.items()}
    undecayed = {key: [item for item, no in zip(items, spared) if no] for key, items in entry.items()}
    parts = [decayed] if decayed["params"] else []
    return [*parts, *([undecayed | {"weight_decay": 0.0}] if undecayed["params"] else [])], undecayed["params"]


def _is_order(entry: Any, owner: str) -> bool:
    if not isinstance(entry, Mapping) or "order_params" not in entry:
        return False
    if len(entry) > 1:
        more = ", ".join(repr(key) for key in entry if key != "order_params")
        raise ValueError(f"{owner}: a dict with 'order_params' has no other key, got {more}; make it one of its own.")
    if not isinstance(entry["order_params"], Iterable):
        kind = type(entry["order_params"]).__name__
        raise TypeError(f"{owner}: order_params must be a list of Parameters, got {kind}.")
    return True


def _check_order_key(what: str, entry: Any) -> None:
    """Raise KeyError where `order_params` is misspelt, which would leave a group without parameters."""
    for key in entry if isinstance(entry, Mapping) and "params" not in entry else ():
        if key != "order_params" and difflib.get_close_matches(str(key), ["order_params"], cutoff=0.8):
            raise KeyError(f"{what} has a key {key!r}; did you mean 'order_params'?")


def _ordered(orders: list[Any], grouped_ones: list[Parameter], owner: str) -> list[Parameter]:
    if not orders:
        return grouped_ones
    ordered = list(orders[0])
    if len(orders) > 1 or sorted(map(id, ordered)) != sorted(map(id, grouped_ones)):
        raise ValueError(
            f"{owner}: order_params must have each parameter of the groups once, {len(grouped_ones)} in all, got "
            f"{len(ordered)} in {len(orders)} of them; give all of the network's trainable parameters."
        )
    return ordered


def _check_group(what: str, entry: dict[str, Any], dynamic_decay: bool) -> None:
    for key in entry:
        if key not in KEYS and key != "param_names":
            near = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(KEYS)}."
            raise KeyError(f"{what} has a key {key!r}; {hint}")
    if "lr" in entry:
        entry["lr"] = a_rate(f"{what}: lr", entry["lr"])
    if "weight_decay" in entry:
        entry["weight_decay"] = a_decay(f"{what}: weight_decay", entry["weight_decay"], dynamic_decay)
    if "grad_centralization" in entry:
        a_flag(f"{what}: grad_centralization", entry["grad_centralization"])
