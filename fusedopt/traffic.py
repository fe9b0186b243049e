"""What a step of a traced rule moves: the arrays that it reads and writes, and their bytes."""

from __future__ import annotations

import dataclasses

from fusedopt.statements import INPUT
from fusedopt.storage import Storage
from fusedopt.tracing import Traced


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Names of the arrays of a step: `p`, `g` and the states.

    Attributes:
        arrays: All that there are, in the order of `Storage.streams`.
        read: Those that some result is made of; those that a stage reads before the update are there once more.
        written: Those that get another value. The gradient is none of them.
    """

    arrays: tuple[str, ...]
    read: tuple[str, ...]
    written: tuple[str, ...]

    def bytes(self, storage: Storage | None = None) -> float:
        """Moved for each parameter, where arrays are kept so; without a storage, all in float32."""
        if storage is None:
            return 4 * (len(self.read) + len(self.written))
        kept = dict(zip(self.arrays, storage.streams))
        return sum(kept[name].bytes_read for name in self.read) + sum(kept[name].bytes for name in self.written)


def traffic(traced: Traced) -> Traffic:
    """Of one step, after the first."""
    statements = traced.body.statements
    names = {number: s.value.removeprefix("s.") for number, s in enumerate(statements) if s.operation == INPUT}
    results = {name: number for name, number in traced.body.results.items() if name != "g"}
    written = {name: number for name, number in results.items() if names.get(number) != name}
    needed = set(written.values())
    for number in reversed(range(len(statements))):
        if number in needed:
            needed |= set(statements[number].operands)
    arrays = ("p", "g", *traced.states)
    read = {names[number] for number in needed if number in names}
    first, then = summed(traced), tuple(a for a in arrays if a in read)
    return Traffic(arrays, (*first, *then), tuple(a for a in arrays if a in written))


def summed(traced: Traced) -> tuple[str, ...]:
    """The arrays that the launches before the update read, once for each of these."""
    arrays = ("p", "g", *traced.states)
    return tuple(a for stage in traced.stages for a in arrays if {a, f"s.{a}"} & stage.body.inputs)
