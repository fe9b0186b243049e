"""What is stepped: a published model's tensors or equal pieces, as much of it as fits in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedopt.cli.bench import streams
from fusedopt.cli.bench.machine import Machine

if TYPE_CHECKING:
    from fusedopt.cli.bench.models import Model

Shape = tuple[int, ...]
# Of fusedopt, and of a peer beside it: parameter, gradient, two states, and as much again for its temporary arrays.
BYTES_A_PARAMETER = 2 * 24
MOST_STATES = 2
NOISE = 2**22  # random numbers, repeated


@dataclasses.dataclass(frozen=True)
class Work:
    """Tensors to be updated.

    Attributes:
        title: For people; it says how many layers were left out.
        model: The model's name, or "" for equal pieces.
        layers: Of the model; None for equal pieces.
        shapes: Of the tensors.
    """

    title: str
    model: str
    layers: int | None
    shapes: Sequence[Shape] = dataclasses.field(repr=False)

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes))

    def arrays(self, seed: int, scale: float) -> list[np.ndarray[Any, Any]]:
        """Normal float32 numbers of this deviation, a read-only view for each shape; the memory is that of the largest.

        Zeros can be faster than what people train with.
        """
        largest = max(map(prod, self.shapes))
        some = np.float32(scale) * np.random.default_rng(seed).standard_normal(min(NOISE, 2 * largest), np.float32)
        numbers = np.resize(some, largest + len(some))
        numbers.flags.writeable = False
        starts = (7_919 * index % len(some) for index in range(len(self.shapes)))
        return [numbers[start : start + prod(shape)].reshape(shape) for start, shape in zip(starts, self.shapes)]


def need_bytes(shapes: Sequence[Shape]) -> int:
    """Memory for two ways to take the step, and for the streams."""
    parameters = sum(map(prod, shapes))
    return BYTES_A_PARAMETER * parameters + streams.resident_bytes(parameters, MOST_STATES)


def equal_pieces(size: int, tensors: int) -> Work:
    """So many parameters in tensors that differ by one element at most."""
    small, larger = divmod(size, tensors)
    shapes = [(small + 1,)] * larger + [(small,)] * (tensors - larger)
    pieces = f"{tensors:,} tensors" if tensors > 1 else "one tensor"
    return Work(f"{size:,} parameters in {pieces}", "", None, shapes)


def slice_of(model: Model, layers: int | None, free: int | None) -> Work:
    """A model, or as many of its first layers as fit into the free memory; where none does, without what is no layer.

    Raises:
        MemoryError: Not even one layer fits.
    """
    counts = range(layers or model.layers, 0, -1)
    for part, shapes_of in (("", model.shapes), (" alone", model.block_shapes)):
        for count in counts:
            shapes = [shape for _, shape in shapes_of(count)]
            if free is None or need_bytes(shapes) <= free:
                cut = f", {count} of {model.layers} layers{part}" if part or count < model.layers else ""
                return Work(model.title + cut, model.name, count, shapes)
    raise MemoryError(f"{model.name}: {_too_little(shapes, free)}")


def works(
    machine: Machine, models: Sequence[Model], layers: int | None, sizes: Sequence[int], tensors: int
) -> list[Work]:
    """The models, then the sizes.

    Raises:
        MemoryError: One of them does not fit.
    """
    free = machine.free_bytes()
    pieces = [equal_pieces(size, tensors) for size in sizes]
    for work in pieces:
        if free is not None and need_bytes(work.shapes) > free:
            raise MemoryError(f"--sizes {work.parameters}: {_too_little(work.shapes, free)}")
    return [slice_of(model, layers, free) for model in models] + pieces


def _too_little(shapes: Sequence[Shape], free: int | None) -> str:
    need = need_bytes(shapes) / 1e9
    return f"a comparison needs {need:,.1f} GB of memory, {(free or 0) / 1e9:,.1f} GB are free; take a smaller one."
