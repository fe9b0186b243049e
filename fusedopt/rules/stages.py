"""What a rule sums before its update, and the launches that it takes to do so."""

from __future__ import annotations

from dataclasses import dataclass

SLOTS = 3  # launches that may come before an update, in order; each where a rule needs it
CLIPPING, CENTERING, OWN = range(SLOTS)
GROUP, TENSOR, ROW = "group", "tensor", "row"
GRADIENT_SQUARE, GRADIENT_MEAN = "gradient_square", "gradient_mean"


@dataclass(frozen=True)
class Reduction:
    """A sum of a rule's `terms` over all elements of a tensor, which `ratios` has before `update`.

    Args:
        name: What `terms` calls the elements, and `ratios` the sum.
        when: The flag or switch that it depends on; None if it is always there.
    """

    name: str
    when: str | None = None


@dataclass(frozen=True)
class Stage:
    """One launch before the update, which reads the tensors and writes nothing but what it has summed.

    Attributes:
        slot: CLIPPING, CENTERING or OWN: stages of several rules that have the same one share a launch.
        over: Over what it sums: all tensors of the param GROUP that have a gradient; each TENSOR; each ROW, that is a
            slice along the first axis, of which it then keeps the mean.
        names: Of its results.
    """

    slot: int
    over: str
    names: tuple[str, ...]
