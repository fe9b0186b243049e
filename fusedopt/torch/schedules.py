"""Schedules of torch's param groups: kept beside the dicts, which hold the numbers in force, as torch's own do."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fusedopt.groups import of_group, scheduled_rule
from fusedopt.rules.rule import Rule
from fusedopt.scheduled import warn_of_no_count
from fusedopt.schedules.options import STEP, Function, checked_step, explained, number_at, schedules_in, title_of
from fusedopt.torch.groups import ReadGroup, checked_rule, read
from fusedopt.torch.tensors import number_of

Groups = Sequence[dict[str, Any]]


def found_in(rule: type[Rule], group: Mapping[str, Any]) -> dict[str, Function]:
    """The schedules among a group's options. A tensor is none: it is a number that the kernel reads."""
    return schedules_in(rule, {name: value for name, value in group.items() if not isinstance(value, torch.Tensor)})


def rule_at(rule: Rule, schedules: Mapping[str, Function], step: int, group: Mapping[str, Any]) -> Rule:
    """The rule with a group's options and the numbers of its schedules, checked."""
    return scheduled_rule(rule, schedules, step, group, checked_rule)


def warn_of_take_over(number: int, schedule: Function, rate: Any) -> None:
    """Warn that a scheduler of torch's has ended a schedule of this library."""
    warnings.warn(
        f"param group {number}: lr followed {title_of(schedule)}, and a torch.optim.lr_scheduler that was built on it "
        f"has written {rate!r}: the schedule is over. Keep one of them: build no scheduler, or make lr a number first.",
        stacklevel=2,
    )


class Followed:
    """What one param group follows.

    A schedule is in force while the group holds the very number that it has written: what somebody else writes, wins.

    Args:
        group: The dict.
        schedules: By option, each of which is in the group as a number.
        steps, total: How many the group has had, and the optimizer.
    """

    def __init__(self, group: dict[str, Any], schedules: Mapping[str, Function], steps: int, total: int) -> None:
        self.group, self._before = group, total - steps
        self._schedules: dict[str, Function] = {}
        self._written: dict[str, float] = {}
        self._beside_scheduler = False  # whether one of torch's was there while `lr` followed a schedule
        self._warned = False
        if schedules:
            self.install(schedules, {name: group[name] for name in schedules}, total)

    @property
    def schedules(self) -> dict[str, Function]:
        """Those in force."""
        return {name: it for name, it in self._schedules.items() if self.group.get(name) is self._written[name]}

    def install(self, schedules: Mapping[str, Function], numbers: Mapping[str, float], total: int) -> None:
        """Follow these schedules too, with these numbers in force."""
        said = self.group.get(STEP)  # written together with the first schedule
        steps = self.steps(total) if said is None else checked_step(said)
        self._schedules = self.schedules | dict(schedules)
        self._written = {name: number for name, number in self._written.items() if name in self._schedules}
        for name in schedules:
            self._put(name, numbers[name])
        self.count_from(steps, total)

    def _put(self, name: str, number: float) -> None:
        self.group[name] = self._written[name] = number * 1.0  # an object that nobody else has

    def steps(self, total: int) -> int:
        """How many the group has had; as it says itself where it follows something, since that may be set by hand."""
        said = self.group.get(STEP) if self._schedules else None
        return total - self._before if said is None else checked_step(said)

    def count_from(self, steps: int, total: int) -> None:
        """Go on from a number of steps, when the optimizer has had `total`."""
        self._before = total - steps
        if self.schedules:
            self.group[STEP] = steps
        elif self._schedules:
            self.group.pop(STEP, None)

    def notice_take_over(self, number: int) -> None:
        """Warn, once, where a scheduler of torch's was built on the schedule of `lr`, and has written its own number.

        Such a scheduler leaves `initial_lr` in the group: the number that it found there.
        """
        if "initial_lr" not in self.group or "lr" not in self._schedules or self._warned:
            return
        written = self._written["lr"]
        if self.group.get("lr") is written:
            self._beside_scheduler = True
        elif self._beside_scheduler or self.group["initial_lr"] is written:
            self._warned = True
            warn_of_take_over(number, self._schedules["lr"], self.group.get("lr"))

    def write(self, rule: Rule) -> None:
        """Put checked numbers into the group."""
        for name in self.schedules:
            number = getattr(rule, name)
            if number != self._written[name]:
                self._put(name, number)


class Schedules:
    """What the param groups of an optimizer follow, and how often it has stepped.

    Each method is given the optimizer's `param_groups`, a list that anybody may change.

    Attributes:
        any: Whether there are schedules.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule, self._steps = rule, 0
        self._followed: list[Followed] = []
        self.any = False

    def of(self, groups: Groups) -> list[Followed]:
        """What each of the groups follows, in their order."""
        known = {id(followed.group): followed for followed in self._followed}
        self._followed = [known.get(id(group)) or Followed(group, {}, 0, 0) for group in groups]
        return self._followed

    def add(self, groups: Groups, schedules: Mapping[str, Function], steps: int = 0) -> None:
        """Follow these schedules in the last of the groups, after some steps."""
        self._followed = [*self.of(groups[:-1]), Followed(groups[-1], schedules, steps, self._steps)]
        self.any |= bool(schedules)

    def saved(self, groups: Groups) -> list[tuple[dict[str, Function], int]]:
        """For each group its schedules, and how many steps they have had."""
        return [(followed.schedules, followed.steps(self._steps)) for followed in self.of(groups)]

    def take(self, groups: Groups) -> bool:
        """Take out of the groups what was written there as a schedule; whether there was any."""
        found = []
        for number, followed in enumerate(self.of(groups)):
            with of_group(number):
                schedules = found_in(type(self._rule), followed.group)
            if schedules:
                with of_group(number):
                    said = {**self._rule.common_defaults(), **followed.group}
                    rule = rule_at(self._rule, schedules, followed.steps(self._steps), said)
                found.append((followed, schedules, {name: getattr(rule, name) for name in schedules}))
        for followed, schedules, numbers in found:
            followed.install(schedules, numbers, self._steps)
        self.any |= bool(found)
        return bool(found)

    def read(self, groups: Groups, reads: Sequence[ReadGroup]) -> list[ReadGroup]:
        """Read the groups with the numbers of the coming step, which are put into them once all are checked."""
        new = [
            self._read_one(followed, before, number)
            for number, (followed, before) in enumerate(zip(self.of(groups), reads))
        ]
        for followed, now in zip(self._followed, new):
            followed.write(now.rule)
        return new

    def _read_one(self, followed: Followed, before: ReadGroup, number: int) -> ReadGroup:
        followed.notice_take_over(number)
        schedules = followed.schedules
        if not schedules:
            return read(followed.group, before, number)
        with of_group(number):
            step = followed.steps(self._steps)
            title = type(self._rule).__name__
            numbers = {name: number_of(number_at(f"{title}: {name}", it, step)) for name, it in schedules.items()}
        try:
            return read({**followed.group, **numbers}, before, number)
        except (TypeError, ValueError) as error:
            raise explained(error, schedules, step) from None

    def count_step(self, groups: Groups) -> None:
        """The optimizer has stepped."""
        total, self._steps = self._steps, self._steps + 1
        if self.any:
            for followed in self.of(groups):
                followed.count_from(followed.steps(total) + 1, self._steps)

    def count_from(self, groups: Groups, steps: Sequence[int]) -> None:
        """The groups have had so many steps."""
        for followed, count in zip(self.of(groups), steps):
            followed.count_from(count, self._steps)

    def sync(self, groups: Groups, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """The groups have had as many steps as their parameters, which their state says."""
        for number, (followed, (schedules, steps)) in enumerate(zip(self.of(groups), self.saved(groups))):
            key = self._rule.step_key or "step"  # which is there for random rounding
            entries = [state[p] for p in followed.group["params"] if p in state]
            taken = [number_of(entry[key]) for entry in entries if key in entry]
            if self._rule.step_key is not None or taken:
                followed.count_from(int(max(taken, default=0)), self._steps)
            elif schedules:
                warn_of_no_count(f"param group {number}", self._rule, steps, stacklevel=4)
