"""`check_rule(MyRule)`: whether a rule of one's own is right, by the chain of proof that the library's rules have.

It needs neither pytest nor a GPU; what is not here is skipped, and said so. `python -m fusedopt check` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fusedopt.rules.place import place_in
from fusedopt.rules.rule import Rule, check_declaration
from fusedopt.single_step import state_names
from fusedopt.statements import TracingError
from fusedopt.testing import dependence, low_precision, machines, mathematics, whole_optimizers
from fusedopt.testing.report import FAILED, NOTED, PASSED, SKIPPED, Check, Failure, Note, Report, Skip
from fusedopt.testing.subject import Subject, shown

__all__ = ["CHECKS", "Check", "Report", "check_rule"]

# In this order; the first two must hold for the others to make sense.
CHECKS: dict[str, Callable[[Subject], str]] = {
    "declaration": mathematics.declaration,
    "tracing": mathematics.tracing,
    "dtype": mathematics.dtype,
    "states": dependence.states,
    "hyperparameters": dependence.hyperparameters,
    "precision": mathematics.precision,
    "descends": mathematics.descends,
    "maximize": mathematics.maximize,
    "elements": mathematics.elements,
    "zero gradient": mathematics.zero_gradient,
    "nan": mathematics.nan,
    "infinity": mathematics.infinity,
    "numpy bits": machines.numpy_bits,
    "numba bits": machines.numba_bits,
    "cuda bits": machines.cuda_bits,
    "cost": machines.cost,
    "state dict": whole_optimizers.state_dict,
    "copies": whole_optimizers.copies,
    "no gradient": whole_optimizers.no_gradient,
    "schedule": whole_optimizers.schedule,
    "torch": whole_optimizers.torch_adapter,
    "storages": low_precision.storages,
}
FIRST = ("declaration", "tracing")


def check_rule(
    rule: type[Rule],
    *,
    results: Collection[str] = (),
    without: Collection[str] = (),
    raise_on_failure: bool = True,
    **options: Any,
) -> Report:
    """Check a rule of one's own; `print(check_rule(MyRule))` shows what was seen.

    It cannot know whether the formula is the one that was meant: compare some steps with the paper's, or with another
    library's.

    Args:
        rule: A class derived from `fusedopt.rules.Rule`, or an optimizer class, which stands for its rule.
        results: Names of states from which nothing else is computed, such as an average of the parameters.
        without: Names of checks, keys of `CHECKS`, that are left out.
        raise_on_failure: False returns the report of a rule that fails too.
        **options: Hyperparameters to check it with; for the others the defaults, and where these are zero something
            else, so that no term is hidden.

    Returns:
        What was checked, what failed, and what was skipped and why.

    Raises:
        AssertionError: A check failed; the message is the first failure's, which names the thing and the cure.
        TypeError, ValueError: It is no rule, or an option, a state or a check is unknown.
    """
    rule = getattr(rule, "rule", rule)
    _check_call(rule, results, without, options)
    checks: list[Check] = []
    subject = Subject(rule, options, results)
    broken = ""
    for name, check in CHECKS.items():
        if broken:
            checks.append(Check(name, SKIPPED, f"{broken} failed"))
        elif name in without:
            checks.append(Check(name, SKIPPED, "left out by without="))
        else:
            checks.append(_outcome(name, check, subject))
        broken = name if name in FIRST and checks[-1].outcome == FAILED else broken
    title = getattr(rule, "__name__", repr(rule)) if broken else shown(subject.telling)
    report = Report(title, tuple(checks), "" if broken else _chosen(subject))
    if raise_on_failure and report.failures:
        first = report.failures[0]
        raise AssertionError(f"{title} fails the check {first.name!r}: {first.detail}")
    return report


def _chosen(subject: Subject) -> str:
    """Which values of the title nobody has given."""
    base, telling = subject.base, subject.telling
    chosen = [name for name in base.options() if getattr(base, name) != getattr(telling, name)]
    if not chosen:
        return ""
    return f"({' and '.join(chosen)}: 0 where nobody gives it, which would hide a term; checked with another value.)"


def _check_call(rule: Any, results: Collection[str], without: Collection[str], options: Mapping[str, Any]) -> None:
    """Raise for arguments that make no sense, rather than call the rule wrong."""
    for name in without:
        if name not in CHECKS:
            raise ValueError(f"check_rule: there is no check {name!r}; there are {', '.join(CHECKS)}.")
    try:
        check_declaration(rule)
    except TypeError:  # a check of its own
        return
    if rule.procedure:
        raise TypeError(f"check_rule: {rule.__name__} is a procedure, and no rule that becomes one kernel.")
    states = state_names(rule)
    for name in results:
        if name not in states:
            raise ValueError(
                f"check_rule: {rule.__name__} has no state {name!r}; it has {', '.join(states) or 'none'}."
            )
    for name in options:
        if name not in rule.options():
            raise TypeError(f"check_rule: {rule.unknown_option(name)}")
    if options:
        rule(**options)


def _outcome(name: str, check: Callable[[Subject], str], subject: Subject) -> Check:
    try:
        return Check(name, PASSED, check(subject))
    except Skip as skip:
        return Check(name, SKIPPED, str(skip))
    except Note as note:
        return Check(name, NOTED, str(note))
    except Failure as failure:
        return Check(name, FAILED, str(failure))
    except TracingError as error:
        return Check(name, FAILED, str(error))
    except Exception as error:  # a rule fails as it likes; which check it was, is half of the story
        place = place_in(subject.rule, error.__traceback__)
        return Check(name, FAILED, f"{type(error).__name__}: {error}" + (f" ({place})" if place else ""))
