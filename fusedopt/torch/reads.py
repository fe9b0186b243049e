"""The param groups of an optimizer as they were last read, and what of them must not change in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fusedopt.rules.rule import Rule
from fusedopt.torch.arguments import check_keys
from fusedopt.torch.groups import ReadGroup, read
from fusedopt.torch.schedules import Schedules
from fusedopt.torch.storages import options_of

Groups = Sequence[dict[str, Any]]
State = Mapping[torch.Tensor, Mapping[str, Any]]


class Reads:
    """What each param group said when it was last read.

    Attributes:
        groups: In their order. Each is changed in place, since plans hold on to it.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self.groups: tuple[ReadGroup, ...] = ()
        self._lengths: tuple[int, ...] = ()  # of the groups whose keys were checked last

    def again(
        self, groups: Groups, state: State, schedules: Schedules, capturing: Callable[[], bool]
    ) -> tuple[bool, bool]:
        """Read all groups.

        Args:
            state: The optimizer's, whose arrays are kept as the groups said before.
            schedules: What the groups follow; while a graph is captured, which is no step, nothing is asked of them.

        Returns:
            Whether any says something new; and whether a plan for what it said before goes with it no more.

        Raises:
            KeyError: An option is missing, or misspelt.
            ValueError, TypeError: One is wrong, or cannot change any more.
        """
        if len(self.groups) != len(groups):
            some = [*self.groups, *(ReadGroup(self._rule, {}, {}, None, {}) for _ in groups)]
            self.groups = tuple(some[: len(groups)])
        self._check_new_keys(groups)
        try:
            new = self._read(groups, schedules, capturing)
        except (TypeError, ValueError):
            if not schedules.take(groups):
                raise
            new = self._read(groups, schedules, capturing)
        pairs = [(now, before) for now, before in zip(new, self.groups) if now is not before]
        if not pairs:
            return False, False
        for number, (now, before) in enumerate(zip(new, self.groups)):
            _check_kept_alike(number, now, before, (state.get(p) for p in groups[number]["params"]))
        other = any(a.rule.flags != b.rule.flags or options_of(a.rule) != options_of(b.rule) for a, b in pairs)
        for now, before in pairs:
            vars(before).update(vars(now))
        return True, other

    def _read(self, groups: Groups, schedules: Schedules, capturing: Callable[[], bool]) -> list[ReadGroup]:
        if schedules.any and not capturing():
            return schedules.read(groups, self.groups)
        return [read(group, before, number) for number, (group, before) in enumerate(zip(groups, self.groups))]

    def _check_new_keys(self, groups: Groups) -> None:
        """Raise KeyError for a misspelt option that was written into a group: where the number of its keys changed,
        for which a step can look at no cost."""
        lengths = tuple(map(len, groups))
        if lengths != self._lengths:
            for number, group in enumerate(groups):
                check_keys(type(self._rule), group, f"param group {number}: ")
            self._lengths = lengths


def _check_kept_alike(number: int, now: ReadGroup, before: ReadGroup, entries: Any) -> None:
    """Raise ValueError for a group whose options say otherwise how the arrays are kept that are there."""
    if now is before or not before.numbers or (new := options_of(now.rule)) == options_of(before.rule):
        return
    if any(entries):
        name = next(name for name, value in options_of(before.rule).items() if new[name] != value)
        raise ValueError(
            f"param group {number}: {name} says how the arrays are kept that are there, and became {new[name]!r}; "
            f"set it back to {getattr(before.rule, name)!r}, or make a new optimizer with {name}={new[name]!r} and "
            f"give it this one's state by load_state_dict(state_dict, convert=True)."
        )
