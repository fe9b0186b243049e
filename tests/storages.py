"""Every way to keep arrays: which options go with which dtypes, all of them or a few in which each two meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusedopt.rules import Rule
from fusedopt.storage import SMALL, Storage, StoredGroup, check_storage, storage_of

FACTORS: Mapping[str, Sequence[Any]] = {
    "dtype": ("bfloat16", "float16", "float32", "float64"),
    "gradient": ("float32", "bfloat16", "float16", "float64"),
    "finer": (None, "float32", "split", "split24", "kahan"),
    "states": (None, "float32", "bfloat16", "float16", "int8"),
    "stochastic": (False, True),
}


@dataclass(frozen=True)
class Way:
    """One way: the dtypes of a parameter and its gradient, and what is asked of the optimizer.

    Attributes:
        finer: What keeps half-precision parameters finer: None, "kahan", or a value of `master_weights`.
        states: `state_dtype`.
    """

    dtype: str
    gradient: str
    finer: str | None
    states: str | None
    stochastic: bool

    def options(self, rule: type[Rule], **others: Any) -> dict[str, Any]:
        """The hyperparameters that say so; states that cannot be 8 bits wide are float32 beside those that are."""
        kept: Any = self.states
        if kept == "int8":
            kept = {state.name: "int8" if state.codes else "float32" for state in rule(**others).all_states()} or None
        return {
            **others,
            "kahan": self.finer == "kahan",
            "master_weights": None if self.finer == "kahan" else self.finer,
            "state_dtype": kept,
            "stochastic_rounding": self.stochastic,
            "seed": 2**40 + 7,  # both words of it count
        }

    def is_valid(self, rule: type[Rule], **others: Any) -> bool:
        """Whether the rule takes it."""
        if self.gradient not in (("float64", "float32") if self.dtype == "float64" else FACTORS["gradient"][:3]):
            return False  # `Parameter` refuses it
        try:
            check_storage(StoredGroup(rule(**self.options(rule, **others)), [self.dtype], ["it"]))
        except ValueError:
            return False
        return True

    def storage(self, rule: Rule, size: int = SMALL) -> Storage:
        """How a parameter of so many elements is kept."""
        return storage_of(rule, self.dtype, self.gradient, size)


def uncentered(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which a rule's states may be 8 bits wide: of a variance, small differences decide."""
    return {**options, "centered": False} if "centered" in options else dict(options)


def every_way(rule: type[Rule], **others: Any) -> list[Way]:
    """All that a rule takes, but for those that come to the same storage as one before."""
    found: dict[Storage, Way] = {}
    for values in itertools.product(*FACTORS.values()):
        way = Way(*values)
        if way.is_valid(rule, **others):
            found.setdefault(way.storage(rule(**way.options(rule, **others))), way)
    return list(found.values())


def covering(ways: Sequence[Way], together: int = 2) -> list[Way]:
    """A few of them, in which any two values meet, or three, that meet in one of all: greedily, that with most new."""
    met = {way: set(itertools.combinations(_values(way), together)) for way in ways}
    left, chosen = set().union(*met.values()), []
    while left:
        best = max(ways, key=lambda way: len(left & met[way]))
        chosen.append(best)
        left -= met[best]
    return chosen


def each_value(ways: Sequence[Way]) -> list[Way]:
    """Fewer, in which each value is once."""
    left = {value for way in ways for value in _values(way)}
    chosen = []
    while left:
        best = max(ways, key=lambda way: len(left & set(_values(way))))
        chosen.append(best)
        left -= set(_values(best))
    return chosen


def _values(way: Way) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(way, name)) for name in FACTORS)
