"""Param groups of torch: plain dicts that anybody may write to, read afresh at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fusedopt.groups import changed_rule
from fusedopt.rules.hyperparameter import is_flag
from fusedopt.rules.rule import Rule
from fusedopt.torch import places
from fusedopt.torch.tensors import number_of

SIMPLE = frozenset({float, bool, int, str, type(None)})
ROUNDING = 1e-12  # a schedule that ends at zero may end this much below it


def checked_rule(rule: Rule, options: Mapping[str, Any]) -> Rule:
    """The rule with other options, as torch takes them: numbers, or tensors of one element.

    Raises:
        ValueError: A value is out of range; a tensor has more elements; some betas are tensors and some not.
        TypeError: A value is no number.
    """
    known = type(rule).options()
    return changed_rule(rule, {name: _plain(rule, name, options[name]) for name in known if name in options})


def kept_as(rule: Rule, group: Mapping[str, Any]) -> Rule:
    """A rule with a group's options of how arrays are kept; its numbers, which may be on a device, are not read."""
    return checked_rule(rule, {name: group[name] for name in rule.storage_options() if name in group})


def _plain(rule: Rule, name: str, value: Any) -> Any:
    """A value as a rule takes it: no tensors, flags of truth values, and zero for what rounding alone put below it."""
    what = f"{type(rule).__name__}: {name}"
    items = value if isinstance(value, (tuple, list)) else (value,)
    tensors = [item for item in items if isinstance(item, torch.Tensor)]
    if any(tensor.numel() != 1 for tensor in tensors):
        raise ValueError(f"{what} as a tensor must have one element, got {value}.")
    field = type(rule).options()[name]
    if tensors and (field.metadata["storage"] or (field.metadata["whole"] and field.metadata["common"])):
        raise TypeError(f"{what} is for the host, which would wait for a tensor; give its value, as with .item().")
    if tensors and len(tensors) != len(items):
        raise ValueError(f"{what} must be all numbers or all tensors, got {value}.")
    if isinstance(value, (tuple, list)):
        return tuple(map(number_of, value))
    value = number_of(value)
    if isinstance(field.default, bool) and not isinstance(value, bool) and value in (0, 1):
        return bool(value)
    return 0.0 if isinstance(value, float) and -ROUNDING < value < 0 else value


@dataclasses.dataclass(eq=False)
class ReadGroup:
    """What a param group said when it was last read.

    Attributes:
        rule: Its hyperparameters; those that `sources` has, with a value of no matter.
        sources: Those that the kernel reads on the device, by their place in `Rule.number_names`.
        addresses: Where and of what dtype these are.
        values: As they stood in the group, or None where one was a tensor.
        numbers: The same with tensors as numbers, by name; without those that `sources` has.
    """

    rule: Rule
    sources: dict[int, Any]
    addresses: dict[int, tuple[int, torch.dtype]]
    values: tuple[Any, ...] | None
    numbers: dict[str, Any]


def read(group: Mapping[str, Any], before: ReadGroup, number: int) -> ReadGroup:
    """What the group of this number says now: `before` itself where that is the same.

    Raises:
        KeyError: An option is missing.
        ValueError, TypeError: As `checked_rule`.
    """
    try:
        return _read(group, before)
    except (TypeError, ValueError) as error:
        raise type(error)(f"param group {number}: {error}") from None


def _read(group: Mapping[str, Any], before: ReadGroup) -> ReadGroup:
    options = type(before.rule).options()
    try:
        said = {**type(before.rule).common_defaults(), **group}
        values = tuple(map(_frozen, map(said.__getitem__, options)))
    except KeyError as error:
        raise KeyError(f"a param group of {type(before.rule).__name__} lacks {error}; give it a value.") from None
    if _has_no_tensor(values):
        if before.values == values:
            return before
        numbers = dict(zip(options, values))
        return ReadGroup(checked_rule(before.rule, numbers), {}, {}, values, numbers)
    numbers, sources, column = {}, {}, 0
    for (name, field), value in zip(options.items(), values):
        items = value if isinstance(value, (tuple, list)) else (value,)
        count = len(field.default) if isinstance(field.default, tuple) else 1
        # The host must know switches, which choose the kernel, and all that a procedure computes with.
        known = before.rule.procedure or is_flag(field) or name in (*before.rule.switches(), "seed")
        readable = len(items) == count and not known
        if readable and all(_kernel_reads(item, group) for item in items):
            sources.update({column + i: item for i, item in enumerate(items)})
        else:
            numbers[name] = _plain(before.rule, name, value)
        column += 0 if is_flag(field) else len(items)
    addresses = {place: (source.data_ptr(), source.dtype) for place, source in sources.items()}
    same = all(before.sources[i] is sources[i] for i in sources) if before.addresses == addresses else False
    if same and before.values is None and before.numbers == numbers:
        return before
    return ReadGroup(checked_rule(before.rule, numbers), sources, addresses, None, numbers)


def _frozen(value: Any) -> Any:
    """A value that does not change where its owner writes into a list or an array; tensors are looked at afresh."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else tuple(value.tolist())
    return value


def _has_no_tensor(values: tuple[Any, ...]) -> bool:
    for value in values:
        if type(value) not in SIMPLE:
            items = value if isinstance(value, (tuple, list)) else (value,)
            if any(isinstance(item, torch.Tensor) for item in items):
                return False
    return True


def _kernel_reads(value: Any, group: Mapping[str, Any]) -> bool:
    """Whether a hyperparameter is a tensor on the device of the group's parameters, where no host need wait for it."""
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.float64) or value.numel() != 1:
        return False
    same = all(p.device == value.device for p in group["params"])
    return same and isinstance(places.place_of(value.device), places.Gpu)
