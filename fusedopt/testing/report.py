"""What `check_rule` found, as values and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

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
    """All outcomes, in the order in which they were made: `list(report)`, or one by its name, `report["states"]`.

    Attributes:
        title: The rule and its hyperparameters.
        remark: On the title, where it has values that nobody gave; or "".
    """

    title: str
    checks: Sequence[Check]
    remark: str = ""

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == FAILED)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, name: str) -> Check:
        """The outcome of one check by its name.

        Raises:
            KeyError: There is none of that name.
        """
        by_name = {check.name: check for check in self.checks}
        if name not in by_name:
            raise KeyError(f"the report has no check {name!r}; it has {', '.join(by_name)}.")
        return by_name[name]

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{outcome:>7}  {name:<{width}}  {detail}" for outcome, name, detail in self._rows()]
        count = f"{len(self.failures)} of {len(self.checks)} checks failed"
        again = [f"{check.name}: {check.detail}" for check in self.failures]
        verdict = "\n".join([f"{count}:", *again]) if again else "No check failed."
        return "\n".join([self.title, *filter(None, [self.remark]), *lines, verdict])

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        """Outcome, name and detail of a line each; those that were skipped for one reason are one line."""
        told: set[str] = set()
        for check in self.checks:
            alike = [it.name for it in self.checks if it.outcome == SKIPPED and it.detail == check.detail]
            if check.outcome != SKIPPED or len(alike) == 1:
                yield check.outcome, check.name, check.detail
            elif check.detail not in told:
                told.add(check.detail)
                yield SKIPPED, f"{len(alike)} checks", f"{check.detail}: {', '.join(alike)}"
