"""Param groups: what a user may pass as `params`, and dicts that check every change of a hyperparameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from fusedopt.layout import Changes
from fusedopt.parameter import Parameter
from fusedopt.rules.rule import Rule


class Group(dict[str, Any]):
    """The parameters (`group["params"]`) and hyperparameters of one param group.

    A changed hyperparameter is checked at once, with nothing changed where it is wrong, and takes effect at the next
    step. Parameters are added by `Optimizer.add_param_group` alone.
    """

    def __init__(self, rule: Rule, params: tuple[Parameter, ...], changes: Changes, extras: Mapping[str, Any]) -> None:
        super().__init__(rule.shown() | dict(extras), params=params)
        self.rule, self._changes = rule, changes
        self.sources: dict[int, Any] = {}  # numbers alone

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *others: Any, **options: Any) -> None:
        """Change several options together: they are checked together."""
        new = dict(*others, **options)
        if "params" in new and new.pop("params") is not self["params"]:
            raise TypeError("a param group's params cannot be replaced; use optimizer.add_param_group.")
        known = self.rule.options()
        for key in new:
            if key not in known and key not in self:
                raise KeyError(self.rule.unknown_option(key))
        rule = changed_rule(self.rule, {key: value for key, value in new.items() if key in known})
        self.rule = rule
        super().update({key: getattr(rule, key) if key in known else value for key, value in new.items()})
        self._changes.hyperparameters += 1

    def adopt(self, rule: Rule, extras: Mapping[str, Any]) -> None:
        """Take over loaded hyperparameters, and the keys that other libraries' state dicts have beside them."""
        self.rule = rule
        super().update(rule.shown() | dict(extras))
        self._changes.hyperparameters += 1

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __ior__(self, other: Any) -> Group:  # type: ignore[override, misc]  # dict's own is overloaded
        self.update(other)
        return self

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("a param group keeps all of its options; assign another value instead.")

    __delitem__ = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


def changed_rule(rule: Rule, options: Mapping[str, Any]) -> Rule:
    """The rule with other options, checked; one that is fixed may be given its own value."""
    fields = type(rule).options()
    for name, value in options.items():
        if not fields[name].init and value != fields[name].default:
            raise ValueError(
                f"{type(rule).__name__}: {name} is {fields[name].default} by definition, got {value!r}; leave it out."
            )
    return dataclasses.replace(rule, **{name: value for name, value in options.items() if fields[name].init})


def check_norm(rule: Rule, number: int, devices: Iterable[str]) -> None:
    """Raise RuntimeError where the gradients of a group, of this number, have a norm to take and are apart."""
    names = sorted(set(devices))
    if rule.clip_norm and len(names) > 1:
        raise RuntimeError(
            f"param group {number} has clip_norm={rule.clip_norm} and gradients on {', '.join(names)}; their norm is "
            f"taken on one device: make a group of its own for each, or clip before the step."
        )


def groups_of(params: Any) -> list[dict[str, Any]]:
    """What a user passed as `params`, as new dicts whose "params" are lists.

    Raises:
        TypeError: Not a Parameter, a dict, or an ordered iterable of Parameters, (name, Parameter) pairs or dicts.
        ValueError: It is empty, or some parameters are named and some not.
    """
    if isinstance(params, (Parameter, Mapping)):
        params = [params]
    params = _in_order(params, "params")
    if not params:
        raise ValueError("the optimizer got an empty parameter list; give at least one Parameter.")
    if any(isinstance(entry, Mapping) for entry in params):
        return [_group(entry, f"params[{i}]") for i, entry in enumerate(params)]
    return [_group({"params": params}, "params")]


def _group(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise TypeError(f"{where} is a {type(entry).__name__} beside dicts; make all of them dicts.")
    if "params" not in entry:
        keys = ", ".join(map(repr, entry)) or "no keys"
        raise ValueError(f"{where} is a param group without 'params'; it has {keys}.")
    group = dict(entry)
    params = group["params"]
    params = [params] if isinstance(params, Parameter) else _in_order(params, f"{where}['params']")
    named = [isinstance(p, (tuple, list)) and len(p) == 2 and isinstance(p[0], str) for p in params]
    if any(named) and not all(named):
        raise ValueError(f"{where}: some parameters are (name, Parameter) pairs and some are not; name all or none.")
    if named and all(named):
        group["param_names"], params = [pair[0] for pair in params], [pair[1] for pair in params]
    for index, parameter in enumerate(params):
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"{where}: element {index} is a {_type_name(parameter)}, not a fusedopt.Parameter; wrap arrays: "
                f"fusedopt.Parameter(array)."
            )
    group["params"] = params
    return group


def _type_name(value: Any) -> str:
    """A type as one imports it: torch, too, has Parameters."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _in_order(params: Any, where: str) -> list[Any]:
    if isinstance(params, (set, frozenset)):
        raise TypeError(f"{where} is a set, whose order changes from run to run; give a list.")
    if not isinstance(params, Iterable) or isinstance(params, (str, bytes)) or hasattr(params, "dtype"):
        raise TypeError(
            f"{where} must be a Parameter, an iterable of them, of (name, Parameter) pairs or of dicts, got "
            f"{type(params).__name__}; wrap arrays: fusedopt.Parameter(array)."
        )
    return list(params)
