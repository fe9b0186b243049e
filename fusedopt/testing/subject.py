"""The rule under test: its flag combinations, other values of its hyperparameters, and values to step on."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fusedopt.rules.hyperparameter import Interval, is_flag
from fusedopt.rules.rule import Rule
from fusedopt.tracing import Traced, trace

Array = np.ndarray[Any, Any]
Options = Mapping[str, Any]

MOST_COMBINATIONS = 64
SHARED = {field.name for field in dataclasses.fields(Rule)}  # what every rule has
OF_GROUPS = {"clip_norm"}  # what no parameter's step alone can be compared with
# Tried in turn where a hyperparameter should have another value; its range says which it can have.
CANDIDATES = (0.1, 0.9, 0.5, 0.01, 1.0, 2.0, 0.0, 1e-3, 10.0, -0.5, 3.0, 1e-6, 1e3)
EXTREMES = (
    *(0.0, -0.0, 1.0, -1.0, 1e-8, 1e8, np.inf, -np.inf, np.nan),
    *(5e-324, 1e-310, 1e-45, -1e-40, 6e-8, 1e-30, -1e30, 6e4, 3.4e38, -1e308),  # denormals, and what overflows
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A rule class, the options that it is checked with, and the states that nothing else depends on."""

    rule: type[Rule]
    options: Options
    results: Collection[str] = ()

    @functools.cached_property
    def base(self) -> Rule:
        return self.rule(**self.options)

    @functools.cached_property
    def telling(self) -> Rule:
        """With other values for what is zero and no switch, so that no term of the equations is hidden."""
        rule = self.base
        for name, field in self._numbers().items():
            if getattr(rule, name) == 0 and not field.metadata["switch"] and name not in SHARED:
                rule = next(self.others(rule, name), rule)
        return rule

    def _numbers(self) -> dict[str, dataclasses.Field[Any]]:
        return {name: field for name, field in self.rule.options().items() if field.init and not is_flag(field)}

    def own(self) -> list[str]:
        """Names of the options that can be set, without those that every rule has."""
        return [name for name, field in self.rule.options().items() if field.init and name not in SHARED]

    def switches(self, shared: bool) -> list[str]:
        """Flags and switches that can be set: the rule's own, or those that every rule has."""
        options = self.rule.options()
        return [name for name in self.rule.switches() if options[name].init and (name in SHARED) == shared]

    def places(self, name: str) -> Iterable[int | None]:
        """Of an option that is a tuple, each place in it; of another, None."""
        value = getattr(self.base, name)
        return range(len(value)) if isinstance(value, tuple) else (None,)

    def others(self, rule: Rule, name: str, place: int | None = None) -> Iterator[Rule]:
        """The rule with other values for one option, or one place in it, as far as it takes them."""
        field, value = self.rule.options()[name], getattr(rule, name)
        interval = field.metadata["interval"]
        if field.metadata["choices"]:
            values = [choice for choice in field.metadata["choices"] if choice != value]
        elif is_flag(field):
            values = [not value]
        elif isinstance(value, tuple):
            places = range(len(value)) if place is None else (place,)
            ranges = interval or (None,) * len(value)
            values = [(*value[:i], c, *value[i + 1 :]) for i in places for c in _tried(value[i], ranges[i])]
        else:
            values = _tried(value, interval)
        yield from filter(None, (changed(rule, {name: value}) for value in values))

    @functools.cached_property
    def combinations(self) -> list[Rule]:
        """Of the rule's own flags and switches, those it takes, the fewest changes first; at most 64.

        A flag that goes with no number which `telling` has changed is combined with the caller's own numbers.
        """
        found = self._combined(self.telling)
        for name in self.switches(shared=False):
            if not any(_other(rule, self.telling, name) for rule in found):
                found += [rule for rule in self._combined(self.base) if _other(rule, self.telling, name)]
        return found[:MOST_COMBINATIONS]

    def _combined(self, start: Rule) -> list[Rule]:
        names = self.switches(shared=False)
        settings = [self._settings(start, name) for name in names]
        places = itertools.product(*(range(len(values)) for values in settings))
        few_first = sorted(itertools.islice(places, 4096), key=lambda place: sum(map(bool, place)))
        changes = ({n: values[i] for n, values, i in zip(names, settings, place)} for place in few_first)
        return list(itertools.islice(filter(None, (changed(start, some) for some in changes)), MOST_COMBINATIONS))

    def with_other_numbers(self, rule: Rule) -> Iterator[Rule]:
        """The rule with another value of each of its own numbers in turn."""
        numbers = self._numbers()
        for name in self.own():
            if name in numbers:
                yield from self.others(rule, name)

    def _settings(self, start: Rule, name: str) -> list[Any]:
        """The values of a flag; of a switch, off and on. The first is that of `start`."""
        field, value = self.rule.options()[name], getattr(start, name)
        if field.metadata["choices"]:
            return [value, *(choice for choice in field.metadata["choices"] if choice != value)]
        if is_flag(field):
            return [value, not value]
        others = [getattr(rule, name) for rule in self.others(start, name)]
        return [value, *[other for other in others if bool(other) != bool(value)][:1]]

    @functools.cached_property
    def variants(self) -> list[Rule]:
        """`telling`, and for each flag or switch the first combination in which it is another one."""
        found = [self.telling]
        for name in self.switches(shared=False):
            found += [rule for rule in self.combinations if _other(rule, self.telling, name)][:1]
        for name in (name for name in self.switches(shared=True) if name not in OF_GROUPS):
            found += itertools.islice(self.others(self.telling, name), 1)
        return list(dict.fromkeys(found))

    @functools.cached_property
    def traced(self) -> Traced:
        return trace(self.telling)


def _other(rule: Rule, than: Rule, name: str) -> bool:
    """Whether a flag or switch is another one."""
    here, there = dict(rule.flags)[name], dict(than.flags)[name]
    return bool(here != there)


def _tried(value: float, interval: Interval | None) -> list[float]:
    """Other values for a number: some that most ranges have, then some by its range and by itself, for narrow ones."""
    low, high = (interval.low, interval.high) if interval else (-math.inf, math.inf)
    near = ((low + high) / 2, value * 2, value / 2, value + (high - value) / 2)
    return [other for other in dict.fromkeys((*CANDIDATES, *near)) if other != value and math.isfinite(other)]


def changed(rule: Rule, options: Options) -> Rule | None:
    """The rule with other values; None where it does not take them."""
    try:
        return dataclasses.replace(rule, **options)
    except ValueError:  # out of range, or not together with the others
        return None


def shown(rule: Rule) -> str:
    """The rule as one writes it, with what is not its default."""
    values = {n: getattr(rule, n) for n, f in rule.options().items() if f.init and getattr(rule, n) != f.default}
    return f"{type(rule).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def ordinary(size: int, dtype: Any, seed: int) -> Array:
    """Numbers from the standard normal distribution."""
    return np.random.default_rng([seed, size]).standard_normal(size).astype(dtype)


def extreme(size: int, dtype: Any, seed: int) -> Array:
    """A third each of `EXTREMES`, of numbers of any magnitude from 1e-30 to 1e30, and of ordinary ones."""
    random = np.random.default_rng([seed, size])
    kinds = [
        random.choice(EXTREMES, size),
        random.choice([-1, 1], size) * 10 ** random.uniform(-30, 30, size),
        random.standard_normal(size),
    ]
    with np.errstate(all="ignore"):
        chosen: Array = np.choose(random.integers(0, 3, size), kinds).astype(dtype)
    return chosen


def unequal(ours: Any, expected: Any) -> Array:
    """Where the bits differ; any NaN is every NaN, whose sign and payload differ by chip."""
    ours, expected = np.asarray(ours).reshape(-1), np.asarray(expected).reshape(-1)
    bits = f"u{expected.dtype.itemsize}"
    wrong: Array = (ours.view(bits) != expected.view(bits)) & ~(np.isnan(ours) & np.isnan(expected))
    return wrong


def differ(left: Any, right: Any) -> bool:
    """Whether two numbers or arrays have other values; NaN is NaN."""
    return not np.array_equal(left, right, equal_nan=True)


def first_difference(ours: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """The first array whose bits differ, in words; None where all are equal."""
    for name, values in expected.items():
        wrong = np.flatnonzero(unequal(ours[name], values))
        if len(wrong):
            got, wanted = np.asarray(ours[name]).reshape(-1)[wrong[0]], np.asarray(values).reshape(-1)[wrong[0]]
            count = math.prod(np.shape(values))
            return f"{len(wrong)} of {count} elements of {name} differ, the first is {got} and should be {wanted}"
    return None
