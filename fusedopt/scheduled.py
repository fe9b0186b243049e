"""Schedules of all param groups together: the numbers of a step, and which step it is after loading or skipping."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusedopt.groups import Group, changed_rule, of_group, scheduled_rule
from fusedopt.rules.rule import Rule
from fusedopt.schedules.options import STEP, Function, checked_step


def follow(groups: Sequence[Group]) -> None:
    """Put the numbers of the coming step in force, once those of all groups are checked."""
    rules = []
    for number, group in enumerate(groups):
        if group.schedules:
            with of_group(number):
                rules.append((group, group.rule_at(group.steps)))
    for group, rule in rules:
        group.follow(rule)


def count_taken(groups: Sequence[Group], taken: Sequence[Sequence[Any]]) -> None:
    """Let each group go on from the largest step of its parameters.

    Args:
        groups: Those of one optimizer.
        taken: For each, arrays of its parameters' steps.
    """
    for number, (group, steps) in enumerate(zip(groups, taken)):
        if group.rule.counter_key is not None:
            group.count_from(int(max((array.max() for array in steps), default=0)))
        elif group.schedules:
            warn_of_no_count(f"param group {number}", group.rule, group.steps, stacklevel=4)


def warn_of_no_count(what: str, rule: Rule, step: int, stacklevel: int) -> None:
    """Warn that nobody knows how many steps were taken."""
    warnings.warn(
        f"{what}: {type(rule).__name__} counts no steps, so that its schedules go on from step {step}; set "
        f"group[{STEP!r}] where that is wrong.",
        stacklevel=stacklevel,
    )


def _warn_of_lost_schedules(number: int, rule: Rule, step: int) -> None:
    """Warn that the numbers of a group were saved with schedules, and stay what they were at that step."""
    options = type(rule).options()
    kept = f"lr stays {rule.lr!r}" if "lr" in options else "its numbers stay"  # type: ignore[attr-defined]  # most have
    warnings.warn(
        f"param group {number} of the state dict was saved with a schedule ({STEP} {step}), and this optimizer has "
        f"none: {kept}; build it with the same schedules, or assign one.",
        stacklevel=5,
    )


def loaded_steps(
    extras: Sequence[dict[str, Any]],
    rules: Sequence[Rule],
    scheduled: Sequence[Mapping[str, Function]],
    entries: Sequence[Sequence[Mapping[str, Any] | None]],
) -> list[int]:
    """Each group's count of steps, taken out of the extras: where it was not saved, its parameters' largest step.

    Args:
        extras: The keys of each saved group that are no options.
        rules, scheduled: The rule and the schedules of each group.
        entries: The checked state of each group's parameters.
    """
    steps = []
    for number, (extra, rule, schedules, some) in enumerate(zip(extras, rules, scheduled, entries)):
        saved, key = extra.pop(STEP, None), rule.counter_key
        taken = 0 if key is None else int(max((entry[key] for entry in some if entry), default=0))
        if saved is not None:
            with of_group(number, " of the state dict"):
                steps.append(checked_step(saved))
            if not schedules:
                _warn_of_lost_schedules(number, rule, steps[-1])
            elif taken > steps[-1]:  # torch keeps the key, and does not count
                warnings.warn(
                    f"param group {number} of the state dict has {STEP} {steps[-1]}, and its parameters have had "
                    f"{taken} steps: another library has taken some. Schedules go on from {steps[-1]}; set "
                    f"group[{STEP!r}] where that is wrong.",
                    stacklevel=4,
                )
            continue
        if key is None and schedules:
            warn_of_no_count(f"param group {number} of the state dict lacks {STEP!r}", rule, 0, stacklevel=5)
        steps.append(taken)
    return steps


def rules_in_force(
    rules: Sequence[Rule],
    scheduled: Sequence[Mapping[str, Function]],
    steps: Sequence[int],
    changed: Callable[[Rule, Mapping[str, Any]], Rule] = changed_rule,
) -> list[Rule]:
    """The rules with the numbers that the last of so many steps used; before any, those of the first."""
    found = []
    for number, (rule, schedules, count) in enumerate(zip(rules, scheduled, steps)):
        with of_group(number):
            found.append(scheduled_rule(rule, schedules, max(0, count - 1), changed=changed))
    return found
