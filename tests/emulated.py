"""A device that is none: `device.py`'s surface once more, with the kernel compiled by g++ and host memory.

Copies to it are carried out as late as a GPU may carry them out: a pinned buffer that is written again too early
corrupts the table. `EmulatedArray` is an array of it; fusedopt finds the backend through its type.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from emulator.build import build, launch
from fusedopt.backends.device import DeviceBackend
from fusedopt.backends.scratch import aligned_zeros


class EmulatedArray(np.ndarray):
    """Memory of the first emulated device."""

    __fusedopt_backend__: Any = None

    @property
    def device(self) -> str:
        return self.__fusedopt_backend__.device


class OtherArray(EmulatedArray):
    """Memory of the second one."""


class EmulatedSurface:
    """One emulated GPU.

    Attributes:
        launches: The arguments of every launch so far.
        threads, order, grid: How blocks are run: so many threads, in such an order; so many blocks, where not None.
        sanitize: What the kernels are built with, as `emulator.build.build` has it.
        graph: While a graph is captured, the copies and launches so far; each of them is done at every replay.
        edit: Changes the kernel's texts, by name, before they are compiled: what makes a mutant.
    """

    multiprocessors = 1

    def __init__(self, device: str, array_type: type, threads: int = 64, order: int = 0) -> None:
        self.device, self.array_type, self.threads, self.order = device, array_type, threads, order
        self.grid: int | None = None
        self.launches: list[np.ndarray] = []
        self.graph: list[Callable[[], None]] | None = None
        self.sanitize: str | None = None
        self.edit: Callable[[dict[str, str]], dict[str, str]] = dict
        self._pending: list[tuple[int, Any, np.ndarray]] = []
        self._events = itertools.count()

    def zeros(self, count: int, dtype: np.dtype) -> Any:
        return aligned_zeros(count, dtype).view(self.array_type)

    def asarray(self, array: Any) -> Any:
        return np.asarray(array).view(self.array_type)

    def host(self, array: Any) -> np.ndarray:
        self._carry_out()
        return np.array(array)

    def here(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def pointer(self, array: Any) -> int:
        return array.ctypes.data

    def pinned(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def copy(self, to: Any, source: np.ndarray) -> int:
        if self.graph is not None:
            self.graph.append(lambda: self._pending.append((next(self._events), to, source)))
            return -1
        event = next(self._events)
        self._pending.append((event, to, source))
        return event

    def wait(self, event: int) -> None:
        self._carry_out(event)

    def _carry_out(self, until: float = float("inf")) -> None:
        for _, to, source in [item for item in self._pending if item[0] <= until]:
            np.asarray(to).view(np.uint8)[: source.nbytes] = source
        self._pending = [item for item in self._pending if item[0] > until]

    def kernel(self, source: str, headers: dict[str, str], name: str) -> Any:
        texts = self.edit({"fused_step.cu": source, **headers})
        return build(texts.pop("fused_step.cu"), texts, sanitize=self.sanitize), name

    def capturing(self) -> bool:
        return self.graph is not None

    def launch(self, kernel: Any, blocks: int, arguments: np.ndarray) -> None:
        if self.graph is not None:
            kept = arguments.copy()
            self.graph.append(lambda: self.launch(kernel, blocks, kept))
            return
        self._carry_out()
        self.launches.append(arguments.copy())
        launch(*kernel, self.grid or blocks, self.threads, arguments.tobytes(), self.order)


for number, kind in enumerate((EmulatedArray, OtherArray)):
    kind.__fusedopt_backend__ = DeviceBackend(EmulatedSurface(f"emulated:{number}", kind))


def new_device(**settings: Any) -> type[EmulatedArray]:
    """The array type of one more emulated device, whose surface has these attributes."""

    class NewArray(EmulatedArray):
        pass

    surface = EmulatedSurface("emulated:new", NewArray)
    for name, value in settings.items():
        setattr(surface, name, value)
    NewArray.__fusedopt_backend__ = DeviceBackend(surface)
    return NewArray


def array(values: Any) -> EmulatedArray:
    """A copy on the first emulated device."""
    return np.array(values).view(EmulatedArray)
