"""The memory that an optimizer keeps from step to step, in bytes by kind; what a step takes for itself is not in it."""

from __future__ import annotations

import dataclasses

from fusedopt.arena import Arena
from fusedopt.storage import memory_of

TOTAL = "total"


@dataclasses.dataclass(frozen=True)
class KeptBytes:
    """Bytes by kind; `print` shows a table.

    Attributes:
        elements: Of all parameters together, trained or not.
        parameters, gradients: Theirs; gradients are of those that are trained.
        masters: What keeps half-precision parameters finer: masters, remainders, compensations.
        states, scales: State arrays, and the scales of 8-bit ones.
        counters: Steps and scalar state.
        padding: Of flat buffers, what lies between tensors, and the places of parameters that are not trained.
    """

    elements: int = 0
    parameters: int = 0
    gradients: int = 0
    masters: int = 0
    states: int = 0
    scales: int = 0
    counters: int = 0
    padding: int = 0

    @property
    def by_kind(self) -> dict[str, int]:
        """All kinds of bytes."""
        return {name: number for name, number in dataclasses.asdict(self).items() if name != "elements"}

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())

    @property
    def per_parameter(self) -> dict[str, float]:
        """Bytes an element by kind, and in "total"; zeros where there are no elements."""
        return {name: number / max(1, self.elements) for name, number in {**self.by_kind, TOTAL: self.total}.items()}

    def __add__(self, other: KeptBytes) -> KeptBytes:
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return KeptBytes(**{name: mine[name] + others[name] for name in mine})

    def __str__(self) -> str:
        each = self.per_parameter
        shown = {name: number for name, number in self.by_kind.items() if number} | {TOTAL: self.total}
        cells = [("", "bytes", "a parameter"), *((n, f"{count:,}", f"{each[n]:.4g}") for n, count in shown.items())]
        first, second, third = (max(map(len, column)) for column in zip(*cells))
        return "\n".join(f"{name:{first}}  {count:>{second}}  {share:>{third}}" for name, count, share in cells)


def of_arena(arena: Arena) -> KeptBytes:
    """Of flat buffers, once every parameter that is trained has stepped."""
    storage = arena.storage
    found = KeptBytes(elements=sum(arena.sizes), counters=int(arena.counters.nbytes))
    for size, trained in zip(arena.sizes, arena.presence.trainable):
        bytes_of = memory_of(storage, size)
        found += KeptBytes(**bytes_of if trained else {"parameters": bytes_of["parameters"]})
    will_be = {*arena.states, *(arena.keys if any(arena.presence.trainable) else ())}
    buffers = int(arena.data.nbytes + arena.gradients.nbytes) + sum(map(arena.bytes_of, will_be))
    return dataclasses.replace(found, padding=buffers + found.counters - found.total)
