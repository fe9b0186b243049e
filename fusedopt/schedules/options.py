"""Options that are given as schedules: which of them are, and what numbers they stand for at a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fusedopt.rules.hyperparameter import is_flag
from fusedopt.rules.rule import Rule
from fusedopt.schedules.schedule import Table

Function = Callable[[int], Any]
NumberOrSchedule = float | Sequence[float] | Function
STEP = "schedule_step"  # a group's key for how many steps its schedules have had


def schedules_in(rule: type[Rule], options: Mapping[str, Any]) -> dict[str, Function]:
    """Those of the options that are functions of the step, or sequences with a value for each, which become Tables.

    A number may be given so; a flag, a choice, a seed and a tuple of numbers may not.

    Raises:
        TypeError, ValueError: A sequence is empty, or holds something else than numbers; a schedule's class is given,
            or a schedule for a tuple of numbers, for one of them, or for a seed.
    """
    found: dict[str, Function] = {}
    known = rule.options()
    for name, value in options.items():
        if type(value) is float:  # as nearly all are
            continue
        field = known.get(name)
        if field is None or is_flag(field):
            continue
        if isinstance(field.default, tuple):
            _check_no_schedule(f"{rule.__name__}: {name}", field.default, value)
        elif field.metadata["whole"] and field.metadata["common"]:  # the seed
            if callable(value) or _is_sequence(value):
                raise TypeError(
                    f"{rule.__name__}: {name} must be a whole number, got {value!r}; it follows no schedule: random "
                    f"numbers are others at each step anyway."
                )
        elif isinstance(value, type):
            raise TypeError(
                f"{rule.__name__}: {name} must be a number, a schedule (an instance, as Cosine(1e-3, 100)), a function "
                f"of the step or a sequence, got the class {value.__name__}."
            )
        elif callable(value):
            found[name] = value
        elif _is_sequence(value):
            try:
                found[name] = Table(value)
            except (TypeError, ValueError) as error:
                raise type(error)(
                    f"{rule.__name__}: {name} as a sequence with a value for each step: {error}"
                ) from None
    return found


def _check_no_schedule(what: str, default: tuple[float, ...], value: Any) -> None:
    items = value if isinstance(value, (tuple, list)) else (value,)
    if any(map(callable, items)):
        raise ValueError(
            f"{what} must be {len(default)} numbers such as {default}, got {value!r}; tuples follow no schedule: "
            f"assign other numbers to the group where they change."
        )


def _is_sequence(value: Any) -> bool:
    if hasattr(value, "shape"):
        return len(value.shape) == 1 and hasattr(value, "tolist")
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def number_at(what: str, schedule: Function, step: int) -> Any:
    """The value of a schedule at a step, not checked yet.

    Raises:
        ValueError: It says that it has none.
    """
    try:
        return schedule(step)
    except ValueError as error:
        raise ValueError(f"{what} at step {step}: {error}") from error


def changes_some(rule: Rule, values: Mapping[str, Any]) -> bool:
    """Whether some of the values are not those that the rule has already."""
    return any(
        isinstance(value, bool) or not isinstance(value, (int, float)) or value != getattr(rule, name)
        for name, value in values.items()
    )


def explained(error: Exception, schedules: Mapping[str, Function], step: int) -> Exception:
    """The error of a wrong number, with the schedule that it comes from."""
    named = [name for name in schedules if f": {name} " in str(error)] or list(schedules)
    sources = " and ".join(f"{name} follows {title_of(schedules[name])}" for name in named)
    return type(error)(f"{error} At step {step}, where {sources}.") if named else error


def title_of(schedule: Function) -> str:
    """A schedule as messages name it."""
    text = str(getattr(schedule, "__qualname__", schedule))
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_lengths(groups: Iterable[Mapping[str, Function]]) -> None:
    """Raise ValueError where sequences of an optimizer differ in length: they are for the same steps."""
    lengths = {
        f"{name} of param group {number}": len(schedule.values)
        for number, schedules in enumerate(groups)
        for name, schedule in schedules.items()
        if isinstance(schedule, Table)
    }
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{what} has {length}" for what, length in lengths.items())
        raise ValueError(f"sequences with a value for each step must be of one length; {said}.")


def checked_step(value: Any, what: str = STEP) -> int:
    """A count of steps, from a state dict or a user.

    Raises:
        TypeError, ValueError: It is no whole number from 0.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a whole number from 0, got {value!r}.")
    if not (value >= 0 and value % 1 == 0):
        raise ValueError(f"{what} must be a whole number from 0, got {value!r}.")
    return int(value)
