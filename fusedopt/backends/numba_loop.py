"""The loop that numba compiles of a traced rule and a storage, as Python text, and what its names stand for.

Where elements are counted, for random words or for scales, it goes by blocks of 128; else by whole rows of the table.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np

from fusedopt.backends import numba_blocks as blocks
from fusedopt.backends.numba_memory import reader, writer
from fusedopt.backends.schedule import Straight, choose, convert
from fusedopt.rules.arithmetic import exponent, scaled
from fusedopt.statements import OPERATORS
from fusedopt.storage import BLOCK, Kept, Storage

EXPRESSIONS = OPERATORS | {
    np.sqrt: "sqrt({})",
    np.absolute: "abs({})",
    np.floor: "floor({})",
    exponent: "real(frexp({})[1])",
    scaled: "ldexp({}, int32({}))",
    choose: "{1} if {0} != 0 else {2}",
    convert: "{}",
}

# Columns of the table before the addresses: a count of elements, the first one's place in its span, how many of the
# span's are a slice along the first axis; and of random words the step, the parameter's number and the seed.
COUNTS = ("count", "start", "length", "step", "number", "seed")
QUADS = BLOCK // 4


@dataclasses.dataclass(frozen=True)
class LoopText:
    """A rule and a storage as the text of a loop.

    Its arrays are the table's addresses, which come after `COUNTS`: of the streams, of what lies beside some, and of
    what stages found out about rows.
    """

    straight: Straight
    storage: Storage

    @functools.cached_property
    def addresses(self) -> int:
        """How many addresses a row of the table has."""
        return self.straight.slots + len(self.storage.beside)

    def array(self, slot: int) -> int:
        """The number of a slot's array: rows come after what lies beside streams."""
        return slot if slot < len(self.storage.streams) else slot + len(self.storage.beside)

    def beside(self, slot: int) -> int:
        """The number of the array beside a stream's; its own where there is none."""
        streams = len(self.storage.streams)
        return streams + self.storage.beside.index(slot) if slot in self.storage.beside else slot

    def kept(self, slot: int) -> Kept:
        """How a slot's elements are kept."""
        return self.storage.streams[slot] if slot < len(self.storage.streams) else Kept(self.storage.real)

    @functools.cached_property
    def uniform(self) -> list[int]:
        """The statements whose uniform values are the loop's constants, in order."""
        computed = {step.value for step in self.straight.steps}
        return sorted(self._read - computed - self.straight.memory.keys())

    @functools.cached_property
    def _read(self) -> set[int]:
        return {operand for step in self.straight.steps for operand in step.operands}

    @functools.cached_property
    def _coded(self) -> list[int]:
        """The slots whose codes are written."""
        return sorted(slot for slot in self.straight.homes.values() if self.kept(slot).codes)

    @functools.cached_property
    def _draws(self) -> bool:
        return any(self.kept(slot).stochastic for slot in self.straight.homes.values())

    @property
    def _counts(self) -> bool:
        """Whether elements are counted."""
        return self._draws or any(self.kept(slot).codes for slot in (*self._coded, *self._loaded.values()))

    @functools.cached_property
    def _loaded(self) -> dict[int, int]:
        """The slots that statements read, by their numbers."""
        return {number: slot for number, slot in self.straight.memory.items() if number in self._read}

    def text(self) -> str:
        """The loop as Python; its arguments are the table, the constants, and the rows to go through."""
        lines = [
            "def loop(table, constants, first, last):",
            *(f"    v{number} = constants[{place}]" for place, number in enumerate(self.uniform)),
            *(f"    b{slot} = buffer()" for slot in self._coded),
            f"    words = {'buffer()' if self._draws else 0}",
            "    for row in range(first, last):",
            *(f"        {name} = table[row, {column}]" for column, name in enumerate(COUNTS)),
            *(f"        m{n} = table[row, {len(COUNTS) + n}]" for n in range(self.addresses)),
        ]
        if self._counts:
            inner = [*self._begin_block(), "for j in range(some):", "    i = block + j"]
            inner += [*(f"    {line}" for line in self._elements()), *self._end_block()]
            lines += [f"        for block in range(0, count, {BLOCK}):", *(f"            {line}" for line in inner)]
        else:
            lines += ["        for i in range(count):", *(f"            {line}" for line in self._elements())]
        return "\n".join([*lines, ""])

    def _begin_block(self) -> Iterator[str]:
        yield f"some = min({BLOCK}, count - block)"
        if self._draws:
            yield f"for quad in range({QUADS}):"
            yield "    draw(words, 4 * quad, (start + block) // 4 + quad, step, number, seed)"
        for slot in self._loaded.values():
            if self.kept(slot).codes:
                yield f"s{slot} = load(m{self.beside(slot)}, block // {BLOCK})"

    def _elements(self) -> Iterator[str]:
        """What is done to one element."""
        for number, slot in self._loaded.items():
            array, beside, place = f"m{self.array(slot)}", f"m{self.beside(slot)}", "i"
            if self.kept(slot).codes:
                beside = f"s{slot}"
            elif slot >= len(self.storage.streams):
                beside, place = array, "(start + i) // length"
            yield f"v{number} = read{slot}({array}, {beside}, {place})"
        for step in self.straight.steps:
            expression = EXPRESSIONS[step.function].format(*(f"v{operand}" for operand in step.operands))
            yield f"v{step.value} = {expression}"
        for value, slot in self.straight.homes.items():
            if self.kept(slot).codes:
                yield f"store(b{slot}, j, v{value})"
            else:
                place = "j" if self.kept(slot).stochastic else "i"
                yield f"write{slot}(m{slot}, m{self.beside(slot)}, i, v{value}, words, {place})"
        yield "pass"

    def _end_block(self) -> Iterator[str]:
        """Scales of the new values, and their codes."""
        for slot in self._coded:
            yield "top = uint32(0)"
            yield "for j in range(some):"
            yield f"    top = max(top, magnitude(b{slot}, j))"
            yield "scale = scale_of(top)"
            yield f"store(m{self.beside(slot)}, block // {BLOCK}, scale)"
            yield "inverse = real(1) / scale if scale > 0 else real(0)"
            yield "for j in range(some):"
            yield f"    encode{slot}(m{slot}, block + j, b{slot}, words, j, inverse)"

    def names(self) -> dict[str, Any]:
        """What the names in the text stand for."""
        real = self.storage.real
        names: dict[str, Any] = {"sqrt": np.sqrt, "floor": np.floor, "frexp": math.frexp, "ldexp": math.ldexp}
        names |= {"real": getattr(numba, real), "int32": numba.int32, "uint32": numba.uint32}
        names |= {"load": blocks.loading("float32"), "magnitude": blocks.loading("uint32"), "store": blocks.store}
        names |= {"buffer": blocks.buffer, "scale_of": blocks.scale_of, "draw": blocks.draw}
        for slot in range(self.straight.slots):
            kept = self.kept(slot)
            if kept.codes:
                names[f"read{slot}"] = blocks.decoding(kept.codes)
                names[f"encode{slot}"] = blocks.encoding(kept.codes, slot - 1)
            else:
                names[f"read{slot}"] = reader(kept, real)
                names[f"write{slot}"] = writer(kept, real, max(0, slot - 1))
        return names
