"""Param groups: what a user may pass as `params`, and dicts that check every change of a hyperparameter."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from fusedopt.layout import Changes
from fusedopt.parameter import Parameter
from fusedopt.rules.rule import Rule
from fusedopt.schedules.options import STEP, Function, changes_some, checked_step, explained, number_at, schedules_in
from fusedopt.storage import FINER_OPTIONS, StoredGroup, check_storage


class Group(dict[str, Any]):
    """The parameters (`group["params"]`) and hyperparameters of one param group.

    A changed hyperparameter is checked at once, with nothing changed where it is wrong, and takes effect at the next
    step. Parameters are added by `Optimizer.add_param_group` alone.

    Where a hyperparameter follows a schedule, `group[name]` is the number in force: after a step the one that it used.
    A number that is assigned ends the schedule. `group["schedule_step"]`, there in such groups alone, is the step that
    the schedules are asked for next: how often the optimizer's `step` was called.
    """

    def __init__(
        self,
        rule: Rule,
        params: tuple[Parameter, ...],
        changes: Changes,
        extras: Mapping[str, Any],
        schedules: Mapping[str, Function] = MappingProxyType({}),
    ) -> None:
        super().__init__(rule.shown() | {name: getattr(rule, name) for name in schedules} | dict(extras), params=params)
        self.rule, self._changes = rule, changes
        self.refused: Mapping[str, str] = {}  # options that do not change in a group, and why: the error's text
        self.sources: dict[int, Any] = {}  # numbers alone
        self._schedules: dict[str, Function] = {}
        self._first = changes.steps
        self._install(dict(schedules))

    @property
    def schedules(self) -> Mapping[str, Function]:
        """The hyperparameters that follow a schedule, and their schedules."""
        return MappingProxyType(self._schedules)

    @property
    def steps(self) -> int:
        """How often `step` was called since the group was made, or as was loaded."""
        return self._changes.steps - self._first

    def _install(self, schedules: dict[str, Function]) -> None:
        """Follow these schedules from now on, and no others."""
        self._changes.schedules += len(schedules) - len(self._schedules)
        self._schedules = schedules
        self.note_step()

    def note_step(self) -> None:
        """Show how many steps the schedules have had, where there are any."""
        if self._schedules:
            super().__setitem__(STEP, self.steps)
        else:
            super().pop(STEP, None)

    def count_from(self, steps: int) -> None:
        """Go on as if `step` had been called so often."""
        self._first = self._changes.steps - steps
        self.note_step()

    def rule_at(self, step: int) -> Rule:
        """The rule with the numbers of the group's schedules at a step; the one in force where they are the same."""
        return scheduled_rule(self.rule, self._schedules, step)

    def follow(self, rule: Rule) -> None:
        """Put what `rule_at` gave in force."""
        if rule is not self.rule:
            self.rule = rule
            super().update({name: getattr(rule, name) for name in self._schedules})
            self._changes.hyperparameters += 1

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
            if key in self.refused and new[key] != getattr(self.rule, key):
                raise KeyError(self.refused[key])
        steps = checked_step(new.pop(STEP)) if STEP in new else self.steps
        given = {key: value for key, value in new.items() if key in known}
        schedules = schedules_in(type(self.rule), given)
        rule = scheduled_rule(self.rule, schedules, steps, given) if schedules else changed_rule(self.rule, given)
        self._check_storage(rule)
        self.rule = rule
        super().update({key: getattr(rule, key) if key in known else value for key, value in new.items()})
        if rule.draws and "seed" not in self:  # as of an 8-bit state that a flag turned on
            super().__setitem__("seed", rule.seed)
        self._changes.hyperparameters += 1
        if schedules or self._schedules:
            self._install({name: it for name, it in self._schedules.items() if name not in given} | schedules)
            self.count_from(steps)

    def _check_storage(self, rule: Rule) -> None:
        """Raise ValueError where a rule keeps its arrays in another way than those that are there."""
        for name in rule.storage_options():
            if getattr(rule, name) != getattr(self.rule, name):
                raise ValueError(
                    f"{type(rule).__name__}: {name} says how the arrays are kept that are there; make a new optimizer "
                    f"with {name}={getattr(rule, name)!r}, and give it this one's state dict: "
                    f"load_state_dict(state, convert=True)."
                )

    def adopt(self, rule: Rule, extras: Mapping[str, Any], steps: int) -> None:
        """Take over loaded hyperparameters, the keys that other libraries' state dicts have beside them, and the count
        of steps."""
        self.rule = rule
        present = {name: getattr(rule, name) for name in rule.options() if name in self}
        super().update(rule.shown() | present | dict(extras))
        self._changes.hyperparameters += 1
        self.count_from(steps)

    def keep(self, extras: Mapping[str, Any]) -> None:
        """Hold keys that are no options beside them, as schedulers of other libraries do; state dicts have them."""
        super().update(extras)

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


@contextlib.contextmanager
def of_group(number: int, where: str = "") -> Iterator[None]:
    """What is done for one param group: errors say which."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"param group {number}{where}: {error}") from None


def check_defaults(groups: Sequence[StoredGroup]) -> None:
    """Raise ValueError where options of an optimizer are of no use to any of its groups."""
    for option in FINER_OPTIONS:
        if not any(group.may_use(option) for group in groups):
            for number, group in enumerate(groups):
                with of_group(number):
                    check_storage(group, [option])


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


def scheduled_rule(
    rule: Rule,
    schedules: Mapping[str, Function],
    step: int,
    options: Mapping[str, Any] = MappingProxyType({}),
    changed: Callable[[Rule, Mapping[str, Any]], Rule] = changed_rule,
) -> Rule:
    """The rule with other options and the numbers of schedules at a step, checked; itself where that is the same.

    Args:
        rule, options: What there is, and what is changed of it.
        schedules: Of some of its numbers.
        step: From 0.
        changed: Gives a rule other options, and refuses wrong ones.

    Raises:
        ValueError, TypeError: A schedule has no value for the step, or one that the option cannot have.
    """
    title = type(rule).__name__
    numbers = {name: number_at(f"{title}: {name}", schedule, step) for name, schedule in schedules.items()}
    if not options and not changes_some(rule, numbers):
        return rule
    try:
        return changed(rule, {**options, **numbers})
    except (TypeError, ValueError) as error:
        raise explained(error, schedules, step) from None


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
