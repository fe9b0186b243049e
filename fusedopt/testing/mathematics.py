"""Checks of a rule as a plain function: what depends on what, how it rounds, and what becomes of odd gradients.

Each check takes the subject, returns what it has seen, and raises `Failure`, `Note` or `Skip`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from fusedopt.rules.rule import Rule, check_declaration, is_flag
from fusedopt.testing.report import Failure, Note
from fusedopt.testing.runs import Plain
from fusedopt.testing.subject import Array, Subject, differ, ordinary, shown, unequal
from fusedopt.tracing import trace

SIZE = 200  # elements: enough that a share of 1 % is some of them
STEPS = 5
MANY_STEPS = 12  # in which what is switched on by the step's number should show: RAdam's second moment at the sixth
# Ten roundings a step, half a unit each, and as many again in constants and where terms cancel.
ULPS_A_STEP = 16


def declaration(subject: Subject) -> str:
    """The class is a rule, a frozen dataclass of hyperparameters."""
    check_declaration(subject.rule)
    count = len(subject.rule.number_names()), len(subject.rule.switches())
    return f"{count[0]} numbers, {count[1]} flags and switches, with those that every rule has"


def tracing(subject: Subject) -> str:
    """Its two functions become statements, with every combination of flags."""
    rules = dict.fromkeys((subject.base, *subject.combinations, *subject.variants))
    for rule in rules:
        trace(rule)
    return f"{len({rule.flags for rule in rules})} combinations of flags"


def dtype(subject: Subject) -> str:
    """As a plain function it stays in the arrays' dtype."""
    for rule in subject.variants:
        for name in ("float32", "float64"):
            Plain(rule, ordinary(SIZE, name, 0)).after(gradients(2, name))
    return "float32 stays float32, float64 stays float64"


def gradients(count: int, dtype: Any = "float64", seed: int = 10) -> list[Array]:
    """Ordinary ones."""
    return [ordinary(SIZE, dtype, seed + number) for number in range(count)]


def begun(rule: Rule, steps: int = 2, dtype: str = "float64") -> Plain:
    """A parameter after some steps."""
    return Plain(rule, ordinary(SIZE, dtype, 0)).after(gradients(steps, dtype))


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
    some = subject.with_other_numbers(keeping[0])  # where a number keeps it at rest
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
    values = [start.after(gradients(steps)).values[name] for steps in (0, 1, MANY_STEPS)]
    return differ(values[0], values[1]) or differ(values[1], values[2])


def _counts(rule: Rule, name: str, shown_by: Iterable[str]) -> bool:
    """Whether another value of a state gives another parameter, or another result, within some steps."""
    before = begun(rule)
    other = before.after([])
    if name in other.states:
        other.states[name] = 0.5 * other.states[name] + 0.1
    else:
        other.scalar_state[name] = np.float64(0.5 * other.scalar_state[name] + 0.1)
    for gradient in gradients(MANY_STEPS, seed=30):
        before.update(gradient)
        other.update(gradient)
        if any(differ(before.values[key], other.values[key]) for key in shown_by if key in before.values):
            return True
    return False


def hyperparameters(subject: Subject) -> str:
    """Another value of each option gives another parameter or another state."""
    options, own = subject.rule.options(), subject.own()
    # The last: what counts only where another number is zero, as LAMB's always_adapt without weight decay.
    rules = list(dict.fromkeys((*subject.variants, subject.base, *subject.with_other_numbers(subject.base))))
    idle = [name for name in own if not any(_matters(subject, rule, name) for rule in rules)]
    if idle:
        where = {name: "scalars or update" if is_flag(options[name]) else "scalars" for name in idle}
        kinds = {name: "flag" if is_flag(options[name]) else "hyperparameter" for name in idle}
        raise Failure(
            " ".join(
                f"{kinds[name]} {name!r} of {subject.rule.__name__} changes nothing in {MANY_STEPS} steps, whatever "
                f"its value; use self.{name} in {where[name]}, or remove it."
                for name in idle
            )
        )
    return ", ".join(own) + ": each counts" if own else "there are none"


def _matters(subject: Subject, rule: Rule, name: str) -> bool:
    before = _everything(rule)
    return any(_differs(before, _everything(other)) for other in subject.others(rule, name))


def _everything(rule: Rule) -> list[dict[str, Any]]:
    """All values after each of some steps."""
    plain = Plain(rule, ordinary(SIZE, "float64", 0))
    return [(plain := plain.after([gradient])).values for gradient in gradients(MANY_STEPS)]


def _differs(left: Iterable[dict[str, Any]], right: Iterable[dict[str, Any]]) -> bool:
    return any(a.keys() != b.keys() or any(differ(a[n], b[n]) for n in a) for a, b in zip(left, right, strict=True))


def precision(subject: Subject) -> str:
    """float32 follows float64, in units in the last place of what a step works with."""
    worst = 0.0
    for rule in subject.variants:
        wide = Plain(rule, ordinary(SIZE, "float32", 0).astype("float64"))
        narrow = Plain(rule, ordinary(SIZE, "float32", 0))
        largest = np.abs(wide.parameter)
        for gradient in gradients(STEPS, "float32"):
            before = wide.parameter
            wide.update(gradient.astype("float64"))
            narrow.update(gradient)
            largest = np.maximum(largest, np.maximum(np.abs(wide.parameter), np.abs(wide.parameter - before)))
        if not np.isfinite(wide.parameter).all() or not np.isfinite(narrow.parameter).all():
            kind = "float32" if np.isfinite(wide.parameter).all() else "float64"
            raise Failure(
                f"{shown(rule)} makes infinity or NaN of ordinary numbers in {kind} within {STEPS} steps: look for a "
                f"division by zero, the root of a negative number, or a constant that {kind} cannot hold."
            )
        error = np.abs(narrow.parameter - wide.parameter) / np.spacing(largest.astype("float32"))
        worst = max(worst, float(np.percentile(error, 99)))  # a sign of next to nothing may turn in a few
        if worst > ULPS_A_STEP * STEPS:
            raise Failure(
                f"{shown(rule)} in float32 is {worst:.0f} units in the last place from float64 after {STEPS} steps, "
                f"allowed are {ULPS_A_STEP * STEPS}: move what cancels (1 - x) or is tiny into scalars, which are "
                f"float64."
            )
    return f"after {STEPS} steps float32 is within {worst:.1f} units in the last place of float64"


def descends(subject: Subject) -> str:
    """Steps along the gradient of |p|^2 / 2, which is p itself, lower |p|; with `maximize` they raise it."""
    rule = _moving(subject)
    ways: dict[str, dict[str, Any]] = {"smaller": {}}
    if "maximize" in subject.switches(shared=False):
        ways = {"smaller": {"maximize": False}, "larger": {"maximize": True}}
    for way, option in ways.items():
        turned = dataclasses.replace(rule, **option)
        before, after = _sizes(turned)
        if not (after > before if way == "larger" else after < before):
            raise Failure(
                f"{shown(turned)} goes the wrong way: {MANY_STEPS} steps along the gradient of |p|^2 / 2 take |p| from "
                f"{before:.6g} to {after:.6g}, and it should get {way}. Look for a wrong sign: p - lr * d descends. If "
                f"the steps are too long, check with a smaller lr; if it is meant, leave the check out: "
                f"without=('descends',)."
            )
    return f"|p|^2 / 2 gets smaller{', and larger with maximize' if len(ways) > 1 else ''}"


def _moving(subject: Subject) -> Rule:
    """The rule with its defaults; where these keep the parameter at rest, as lr=0 does, with other numbers."""
    before, after = _sizes(subject.base)
    return subject.telling if before == after else subject.base


def _sizes(rule: Rule) -> tuple[float, float]:
    """|p| before and after some steps whose gradient is p."""
    plain = Plain(rule, ordinary(SIZE, "float64", 0))
    before = float(np.linalg.norm(plain.parameter))
    for _ in range(MANY_STEPS):
        plain.update(plain.parameter)
    return before, float(np.linalg.norm(plain.parameter))


def elements(subject: Subject) -> str:
    """A zero, an infinite or a NaN gradient of one element is nothing to the others, where nothing is summed."""
    odd = np.array([0.0, np.inf, -np.inf, np.nan], "float32")
    for rule in (rule for rule in subject.variants if not rule.stages):
        before = begun(rule, dtype="float32")
        (plain,) = gradients(1, "float32", 40)
        mixed = plain.copy()
        mixed[: len(odd)] = odd
        expected, found = before.after([plain]).values, before.after([mixed]).values
        for name in ("p", *rule.kept_states):
            if unequal(found[name], expected[name])[len(odd) :].any():
                raise Failure(f"{shown(rule)}: an odd gradient of some elements changes {name} of others.")
    return "zero, infinite and NaN gradients change their own elements alone"


def nan(subject: Subject) -> str:
    """A NaN gradient shows in the parameter or in a state."""
    for rule in subject.variants:
        lost = begun(rule).after([np.full(SIZE, np.nan)])
        if not any(np.isnan(lost.values[name]).all() for name in ("p", *rule.kept_states)):
            raise Failure(
                f"{shown(rule)} loses a NaN gradient: neither the parameter nor a state is NaN after it, so nobody "
                f"notices. Comparisons with NaN are false: np.where(g > 0, a, np.where(g <= 0, b, g)) keeps it, and so "
                f"do larger and smaller of fusedopt.rules. If it is meant, leave the check out: without=('nan',)."
            )
    return "a NaN gradient shows in the parameter or in a state"


def infinity(subject: Subject) -> str:
    """An infinite parameter does not become NaN by a term that is switched off."""
    options = subject.rule.options()
    zeros = [n for n, f in options.items() if getattr(subject.base, n) == 0 and not f.metadata["switch"] and f.init]
    zeros = [name for name in zeros if not is_flag(options[name])]
    found = Plain(subject.base, np.array([np.inf, -np.inf])).after([np.full(2, 0.5)] * 2)
    if zeros and np.isnan(found.parameter).any():
        raise Note(
            f"an infinite parameter becomes NaN. If it is by the term of {' or '.join(zeros)}, which is 0: 0 * inf is "
            f"NaN, and torch leaves such a term out, as np.where(c.decay != 0, p - c.decay * p, p) does."
        )
    return "no term of zero makes NaN of an infinite parameter"
