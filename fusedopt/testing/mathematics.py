"""Checks of a rule as a plain function: how it rounds, where it goes, and what becomes of odd gradients.

What depends on what is in `dependence`. Each check takes the subject, returns what it has seen, and raises `Failure` or
`Note`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fusedopt.rules.hyperparameter import is_flag
from fusedopt.rules.rule import Rule, check_declaration
from fusedopt.testing.report import Failure, Note
from fusedopt.testing.runs import Plain
from fusedopt.testing.subject import SHARED, Array, Subject, changed, differ, ordinary, shown, unequal
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


def precision(subject: Subject) -> str:
    """float32 follows float64 in parameter and states, in units in the last place of what a step works with."""
    worst = 0.0
    for rule in subject.variants:
        for name, error in _errors(rule).items():
            worst = max(worst, error)
            if error > ULPS_A_STEP * STEPS:
                what = "" if name == "p" else f"{name!r} of "
                raise Failure(
                    f"{what}{shown(rule)} in float32 is {error:.0f} units in the last place from float64 after {STEPS} "
                    f"steps, allowed are {ULPS_A_STEP * STEPS}: move what cancels (1 - x) or is tiny into scalars, "
                    f"which are float64."
                )
    return f"after {STEPS} steps float32 is within {worst:.1f} units in the last place of float64"


def _errors(rule: Rule) -> dict[str, float]:
    """Of the parameter and of each state: how far float32 is from float64, in units in the last place."""
    wide = Plain(rule, ordinary(SIZE, "float32", 0).astype("float64"))
    narrow = Plain(rule, ordinary(SIZE, "float32", 0))
    names = ("p", *rule.kept_states)
    largest = {name: np.abs(wide.values[name]) for name in names}
    for gradient in gradients(STEPS, "float32"):
        before = wide.values
        wide.update(gradient.astype("float64"))
        narrow.update(gradient)
        for name in names:
            now = wide.values[name]
            largest[name] = np.maximum(largest[name], np.maximum(np.abs(now), np.abs(now - before[name])))
    if not np.isfinite(wide.parameter).all() or not np.isfinite(narrow.parameter).all():
        kind = "float32" if np.isfinite(wide.parameter).all() else "float64"
        raise Failure(
            f"{shown(rule)} makes infinity or NaN of ordinary numbers in {kind} within {STEPS} steps: look for a "
            f"division by zero, the root of a negative number, or a constant that {kind} cannot hold."
        )
    # Of a state, units of its largest element: FTRL's `linear` is a difference of numbers 1,000 times as large.
    units = {name: values if name == "p" else values.max() for name, values in largest.items()}
    return {name: _apart(narrow.values[name], wide.values[name], units[name]) for name in names}


def _apart(narrow: Array, wide: Array, size: Any) -> float:
    """The 99th percentile, as a sign of next to nothing may turn in a few; what both call infinite is equal."""
    with np.errstate(all="ignore"):
        error = np.where(narrow == wide, 0.0, np.abs(narrow - wide)) / np.spacing(size.astype("float32"))
    return float(np.percentile(np.nan_to_num(error, nan=0.0, posinf=np.inf), 99))


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
                f"{shown(turned)} goes the wrong way: {MANY_STEPS - 1} steps along the gradient of |p|^2 / 2 take |p| "
                f"from {before:.6g} to {after:.6g}, and it should get {way}. Look for a wrong sign: p - lr * d "
                f"descends. If the steps are too long, check with a smaller lr; if it is meant, leave the check out: "
                f"without=('descends',)."
            )
    return f"|p|^2 / 2 gets smaller{', and larger with maximize' if len(ways) > 1 else ''}"


def _moving(subject: Subject) -> Rule:
    """The rule with its defaults; where these keep the parameter at rest, as lr=0 does, with other numbers."""
    before, after = _sizes(subject.base)
    return subject.telling if before == after else subject.base


def _sizes(rule: Rule) -> tuple[float, float]:
    """|p| after the first and after the last of some steps whose gradient is p; FTRL's first forgets where p began."""
    plain = Plain(rule, ordinary(SIZE, "float64", 0))
    sizes = []
    for _ in range(MANY_STEPS):
        plain.update(plain.parameter)
        sizes.append(float(np.linalg.norm(plain.parameter)))
    return sizes[0], sizes[-1]


def maximize(subject: Subject) -> str:
    """`maximize` is the negative gradient: the parameter has the same values."""
    if "maximize" not in subject.switches(shared=False):
        return "there is none"
    for rule in subject.combinations:
        up, down = changed(rule, {"maximize": True}), changed(rule, {"maximize": False})
        if up is None or down is None:
            continue
        start, some = ordinary(SIZE, "float32", 0), gradients(STEPS, "float32")
        if differ(Plain(up, start).after(some).parameter, Plain(down, start).after([-g for g in some]).parameter):
            raise Failure(
                f"{shown(up)} takes other steps than with maximize=False and the negative gradient: negate g first, "
                f"wherever it is used, as g = -g if self.maximize else g."
            )
    return "the same as the negative gradient without it, to the bit"


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


def zero_gradient(subject: Subject) -> str:
    """Where the first gradient is zero, the parameter stays finite; where the caller's numbers are why not, a note."""
    options = subject.rule.options()
    defaults = {name: options[name].default for name in subject.options if not is_flag(options[name])}
    for rule in dict.fromkeys((subject.base, *subject.variants)):  # decay, which `telling` adds, may hide it
        if not _rests(rule):
            what = f"{shown(rule)} makes NaN or infinity of a parameter whose first gradient is zero"
            right = changed(rule, defaults)
            if right is not None and _rests(right):
                raise Note(f"{what}; {shown(right)} does not.")
            raise Failure(
                f"{what}, as that of a word which the batch has not: look for 0 / 0. Add to what divides, as "
                f"np.sqrt(v) + c.eps, or choose with np.where(v > 0, g / np.sqrt(v), 0.0)."
            )
    return "a zero gradient at the first step leaves the parameter finite"


def _rests(rule: Rule) -> bool:
    """Whether the parameter is finite after a zero gradient."""
    after = Plain(rule, ordinary(SIZE, "float32", 0)).after([np.zeros(SIZE, "float32")])
    return bool(np.isfinite(after.parameter).all())


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
    zeros = [name for name in zeros if not is_flag(options[name]) and name not in SHARED]
    found = Plain(subject.base, np.array([np.inf, -np.inf])).after([np.full(2, 0.5)] * 2)
    if zeros and np.isnan(found.parameter).any():
        raise Note(
            f"an infinite parameter becomes NaN. If it is by the term of {' or '.join(zeros)}, which is 0: 0 * inf is "
            f"NaN, and torch leaves such a term out, as np.where(c.decay != 0, p - c.decay * p, p) does."
        )
    return "no term of zero makes NaN of an infinite parameter"
