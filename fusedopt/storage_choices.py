"""The storages that one chooses among: one table for tests, pages and `bench`, with the bytes of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fusedopt.rules.rule import Rule
from fusedopt.storage import BLOCK, ITEMSIZE, SMALL, Storage, storage_of
from fusedopt.tracing import trace
from fusedopt.traffic import traffic

LARGE = SMALL * BLOCK  # elements of a parameter that is not small, in whole blocks


@dataclasses.dataclass(frozen=True)
class Choice:
    """A way to keep parameters, their gradients and states.

    Attributes:
        name: On the command line, and in results.
        title: As tables have it.
        dtype: Of parameters and gradients.
        options: Of the optimizer, or of a param group.
    """

    name: str
    title: str
    dtype: str
    options: Mapping[str, Any]

    @property
    def written(self) -> str:
        """The options as they are written in a call."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def rule(self, rule: Rule) -> Rule:
        """A rule with these options."""
        return dataclasses.replace(rule, **self.options)

    def storage(self, rule: Rule, size: int = LARGE) -> Storage:
        """How a parameter of so many elements is kept, with the states of this rule."""
        return storage_of(self.rule(rule), self.dtype, self.dtype, size)

    def moved(self, rule: Rule, size: int = LARGE) -> float:
        """Bytes that a step moves for each parameter, from what the traced rule loads and stores."""
        return traffic(trace(self.rule(rule))).bytes(self.storage(rule, size))

    def kept(self, rule: Rule, size: int = LARGE) -> float:
        """Bytes for each parameter beyond itself and its gradient."""
        storage = self.storage(rule, size)
        states = sum(kept.bytes for kept in storage.states)
        return states + storage.parameter.bytes - ITEMSIZE[self.dtype]

    def in_all(self, rule: Rule, size: int = LARGE) -> float:
        """Bytes for each parameter, itself and its gradient with it."""
        return self.kept(rule, size) + 2 * ITEMSIZE[self.dtype]


def _choice(name: str, title: str, dtype: str = "bfloat16", **options: Any) -> Choice:
    return Choice(name, title, dtype, MappingProxyType(options))


CHOICES: dict[str, Choice] = {
    choice.name: choice
    for choice in (
        _choice("float32", "float32 everything", "float32"),
        _choice("master", "float32 master, float32 states", master_weights="float32", state_dtype="float32"),
        _choice("split", "split master, float32 states", master_weights="split", state_dtype="float32"),
        _choice("split+bfloat16", "split master, bf16 states", master_weights="split", state_dtype="bfloat16"),
        _choice("split+int8", "split master, int8 states", master_weights="split", state_dtype="int8"),
        _choice("split24+int8", "split24 master, int8 states", master_weights="split24", state_dtype="int8"),
        _choice(
            "split+random",
            "split master, bf16 states rounded at random",
            master_weights="split",
            state_dtype="bfloat16",
            stochastic_rounding=True,
        ),
        _choice(
            "kahan+random",
            "Kahan's compensation, bf16 states rounded at random",
            kahan=True,
            state_dtype="bfloat16",
            stochastic_rounding=True,
        ),
        _choice("random", "everything bf16, rounded at random", state_dtype="bfloat16", stochastic_rounding=True),
        _choice("random+int8", "bf16 rounded at random, int8 states", state_dtype="int8", stochastic_rounding=True),
    )
}
