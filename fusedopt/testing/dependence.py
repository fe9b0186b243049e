"""Checks of what depends on what: each state and each hyperparameter changes something.

Each check takes the subject, returns what it has seen, and raises `Failure` or `Note`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fusedopt.rules.hyperparameter import is_flag
from fusedopt.rules.rule import Rule
from fusedopt.testing.mathematics import MANY_STEPS, SIZE, begun, gradients
from fusedopt.testing.report import Failure, Note
from fusedopt.testing.runs import Plain
from fusedopt.testing.subject import Array, Subject, differ, ordinary
from fusedopt.tracing import Program, trace


def with_an_outlier(seed: int = 10) -> list[Array]:
    """Ordinary gradients but for the last but one, 1,000 times as large: what counts or limits outliers shows."""
    some = gradients(MANY_STEPS, seed=seed)
    some[-2] *= 1e3
    return some


def states(subject: Subject) -> str:
    """Each state changes, and the parameter depends on it."""
    names = [*(state.name for state in subject.rule.all_states()), *subject.rule.scalar_state]
    wrong = [f"state {name!r} of {subject.rule.__name__} {what}" for name in names if (what := _idle(subject, name))]
    if wrong:
        raise Failure(" ".join(wrong))
    return ", ".join(names) + ": each counts" if names else "there are none"


def _idle(subject: Subject, name: str) -> str | None:
    """What is wrong with a state that nobody needs; None if somebody does."""
    rules = [*subject.variants, *subject.combinations]
    keeping = [rule for rule in rules if name in rule.kept_states or name in rule.scalar_state]
    if not keeping:
        return "is kept with no flags that were tried; correct its `when`."
    some = list(subject.with_other_numbers(keeping[0]))  # where a number keeps it at rest
    if not any(_changes(rule, name) for rule in (*keeping, *some)):
        where = "scalars" if name in subject.rule.scalar_state else "update"
        return f"never changes: {where} returns it as it was; return its new value."
    shown_by = ("p", *subject.results)
    if name in subject.results or any(_counts(rule, name, shown_by) for rule in (*keeping, *some)):
        return None
    return (
        f"changes nothing: the parameter does not depend on it; use it in update, or remove it. If it is a result, "
        f"such as an average of the parameters, give results=({name!r},)."
    )


def _changes(rule: Rule, name: str) -> bool:
    start = Plain(rule, ordinary(SIZE, "float64", 0))
    values = [start.after(some).values[name] for some in ([], gradients(1), with_an_outlier())]
    return differ(values[0], values[1]) or differ(values[1], values[2])


def _counts(rule: Rule, name: str, shown_by: Iterable[str]) -> bool:
    """Whether another value of a state gives another parameter, or another result, within some steps."""
    before = begun(rule)
    other = before.after([])
    if name in other.states:
        other.states[name] = 0.5 * other.states[name] + 0.1
    else:
        other.scalar_state[name] = np.float64(0.5 * other.scalar_state[name] + 0.1)
    for gradient in with_an_outlier(seed=30):
        before.update(gradient)
        other.update(gradient)
        if any(differ(before.values[key], other.values[key]) for key in shown_by if key in before.values):
            return True
    return False


def hyperparameters(subject: Subject) -> str:
    """Another value of each option, of a tuple each number, gives another parameter or another state."""
    # The last: what counts only where another number is zero, as LAMB's always_adapt without weight decay.
    others = subject.with_other_numbers(subject.base)
    rules = list(dict.fromkeys((*subject.variants, subject.base, *others)))
    places = [(name, place) for name in subject.own() for place in subject.places(name)]
    idle = [each for each in places if not any(_matters(subject, rule, *each) for rule in rules)]
    excused = {each: why for each in idle if (why := _excuse(subject, rules, *each))}
    wrong = [_unused(subject, *each) for each in idle if each not in excused]
    if wrong:
        raise Failure(" ".join(wrong))
    if excused:
        raise Note(" ".join(excused.values()))
    return ", ".join(subject.own()) + ": each counts" if places else "there are none"


def _matters(subject: Subject, rule: Rule, name: str, place: int | None) -> bool:
    before = _everything(rule)
    return any(_differs(before, _everything(other)) for other in subject.others(rule, name, place))


def _everything(rule: Rule) -> list[dict[str, Any]]:
    """All values after each of some steps."""
    plain = Plain(rule, ordinary(SIZE, "float64", 0))
    return [(plain := plain.after([gradient])).values for gradient in with_an_outlier()]


def _differs(left: Iterable[dict[str, Any]], right: Iterable[dict[str, Any]]) -> bool:
    return any(a.keys() != b.keys() or any(differ(a[n], b[n]) for n in a) for a, b in zip(left, right, strict=True))


def _unused(subject: Subject, name: str, place: int | None) -> str:
    flag, shown = is_flag(subject.rule.options()[name]), _shown(name, place)
    return (
        f"{'flag' if flag else 'hyperparameter'} {shown!r} of {subject.rule.__name__} changes nothing in {MANY_STEPS} "
        f"steps, whatever its value; use self.{shown} in {'scalars or update' if flag else 'scalars'}, or remove it."
    )


def _shown(name: str, place: int | None) -> str:
    """As `number_names` has it."""
    return name if place is None else f"{name}[{place}]"


def _excuse(subject: Subject, rules: Sequence[Rule], name: str, place: int | None) -> str | None:
    """Why a hyperparameter may be right though no other value of it counted; None where there is no reason."""
    shown = f"{_shown(name, place)!r} of {subject.rule.__name__}"
    if not any(True for rule in rules for _ in subject.others(rule, name, place)):
        return f"{shown} takes no other value of those that were tried, so nobody knows whether it counts."
    if any(_goes_with_the_step(rule, _shown(name, place)) for rule in rules):
        return (
            f"{shown} changes nothing in {MANY_STEPS} steps, whatever its value; it goes with the step's number, and "
            f"may count later. See that it does."
        )
    return None


def _goes_with_the_step(rule: Rule, number: str) -> bool:
    """Whether something that a launch or a scalar state needs is made of a hyperparameter and what steps advance."""
    traced = trace(rule)
    needed = set(traced.advanced)
    for launch in (*traced.stages, traced):
        needed |= {name for name in launch.prologue.results if f"c.{name}" in launch.body.inputs}
    made_of = [Program(traced.prologue.statements, {"": traced.prologue.results[name]}).inputs for name in needed]
    return any(f"h.{number}" in names and any(n == "step" or n.startswith("a.") for n in names) for names in made_of)
