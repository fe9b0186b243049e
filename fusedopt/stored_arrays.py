"""What is kept beside a parameter and its gradient, by state dict key: its type, its shape, what it starts from."""

from __future__ import annotations

import dataclasses

from fusedopt.eight_bits import encoded_constant
from fusedopt.rules.rule import Rule
from fusedopt.storage import SCALE, Kept, blocks_of, kept_parameter, kept_state


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array that lies beside a parameter.

    Attributes:
        dtype: Name of the elements' type.
        kept: Of the state, or the parameter, that it is an array of.
        initial: What its elements are at first. A master is its parameter, whatever is said here.
        varies: Whether that is not always zero.
        scales: Whether it has an element for each block, else one for each of the parameter's.
    """

    dtype: str
    kept: Kept
    initial: float = 0.0
    varies: bool = False
    scales: bool = False

    def shape(self, parameter: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Its shape beside a parameter of this shape and so many elements."""
        return (blocks_of(size),) if self.scales else parameter


def stored_arrays(rule: Rule, parameter: str, size: int) -> dict[str, StoredArray]:
    """All that some variant of the rule keeps beside a parameter, by key; `storage.keys_of` says which of it this one
    does.

    Args:
        rule: With its options.
        parameter: dtype name.
        size: Elements of the parameter.
    """
    arrays: dict[str, StoredArray] = {}
    for state in rule.all_states():
        kept, initial, varies = kept_state(rule, state, parameter, size), rule.initial(state), state.initial != 0
        initial, scale = encoded_constant(initial, kept) if kept.codes else (initial, 0.0)
        arrays[state.name] = StoredArray(kept.dtype, kept, initial, varies)
        if kept.codes:
            arrays[f"{state.name}{SCALE}"] = StoredArray("float32", kept, scale, varies, scales=True)
    kept = kept_parameter(rule, parameter)
    if kept.finer:
        arrays[kept.beside_key] = StoredArray(kept.beside, kept)
    return arrays
