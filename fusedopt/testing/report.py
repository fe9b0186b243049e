"""What `check_rule` found, as values and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

PASSED, FAILED, NOTED, SKIPPED = "passed", "FAILED", "note", "skipped"


class Failure(Exception):
    """A check does not hold; the message names the thing and the cure."""


class Note(Exception):
    """Something that its author should know, and that can be meant."""


class Skip(Exception):
    """A check cannot be made here, or is none for this rule; the message says why."""


@dataclasses.dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: As `without=` takes it.
        outcome: "passed", "FAILED", "note" or "skipped".
        detail: What was seen, or what is wrong and how to mend it.
    """

    name: str
    outcome: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Report:
    """All outcomes, in the order in which they were made.

    Attributes:
        title: The rule and its hyperparameters.
    """

    title: str
    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == FAILED)

    def __getitem__(self, name: str) -> Check:
        """The outcome of one check by its name."""
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{check.outcome:>7}  {check.name:<{width}}  {check.detail}" for check in self.checks]
        failed = len(self.failures)
        verdict = f"{failed} of {len(self.checks)} checks failed." if failed else "No check failed."
        return "\n".join([self.title, *lines, verdict])
