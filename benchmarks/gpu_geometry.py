"""Adam's device time over launch geometries: chunks, blocks a multiprocessor, threads a block. It decides nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import fusedopt
from fusedopt.backends import device
from record import Result, write
from timing import Figure, figure

MI = 2**20
NO_CAP = 1_000_000  # blocks a multiprocessor: as many as there are chunks
SAMPLES = 3
Geometry = tuple[int, int, int]  # threads, chunk in elements, blocks a multiprocessor at most


def geometries(quick: bool) -> Iterator[Geometry]:
    """The one in use first; then all others, those of the fewest compilations first."""
    usual = device.THREADS, device.CHUNK, device.BLOCKS
    chunks, blocks = ((4, 16), (4, NO_CAP)) if quick else ((4, 8, 16, 32, 64), (2, 4, 8, 16, NO_CAP))
    yield usual
    for threads, chunk, cap in itertools.product((256, 128) if quick else (256, 128, 512), chunks, blocks):
        if (threads, chunk * 1024, cap) != usual:
            yield threads, chunk * 1024, cap


def prove(gpu: Any, folder: Path, quick: bool, until: float) -> Result:
    """All geometries for which there is time before `until` (of `time.time`), in `geometry.json`."""
    notes: list[str] = []
    figures: list[Figure] = []
    with gpu.here():
        for size in (16,) if quick else (128, 16):
            figures += sweep(gpu, size, quick, until, notes)
            write(folder / "geometry.json", [each.record() for each in figures])
    return {"passed": bool(figures), "notes": notes}


def sweep(gpu: Any, size: int, quick: bool, until: float, notes: list[str]) -> Iterator[Figure]:
    """The time of a step on `size` Mi elements."""
    optimizer = adam(gpu, size * MI)
    for each in geometries(quick):
        threads, chunk, cap = each
        blocks = "any" if cap == NO_CAP else cap
        name = f"{size} Mi: {threads} threads, {chunk // 1024} Ki a chunk, {blocks} blocks"
        if time.time() > until:
            notes.append(f"{name} and what follows is left out, there is no time left")
            return
        try:
            with launched_in(each, gpu.surface, optimizer):
                timer = gpu.timer(optimizer.step)
                timer()
                samples = [1e6 * timer() for _ in range(SAMPLES)]
        except Exception as error:
            notes.append(f"{name}: {type(error).__name__}: {error}")
            continue
        yield figure(name, "us", samples)


def adam(gpu: Any, elements: int) -> Any:
    """fusedopt's, with gradients, one step done."""
    parameter = fusedopt.Parameter(gpu.noise(elements))
    optimizer = fusedopt.Adam([parameter])
    parameter.grad = parameter.data  # copied
    optimizer.step()
    return optimizer


class launched_in:
    """In its `with`, an optimizer's steps are launched in another geometry; the kernel is compiled for it."""

    def __init__(self, geometry: Geometry, surface: Any, optimizer: Any) -> None:
        threads, chunk, blocks = geometry
        source, headers = device.kernel_texts()
        bounds = f"__launch_bounds__({device.THREADS}, {device.BLOCKS})"
        if bounds not in source:
            raise LookupError(f"the kernel has no {bounds}: the sweep and the kernel have parted")
        other = source.replace(bounds, f"__launch_bounds__({threads}, {1024 // threads})")
        backends = {id(b): b for b in optimizer._backends.values()}.values()
        self._optimizer = optimizer
        self._patches = [
            mock.patch.object(device, "CHUNK", chunk),
            mock.patch.object(device, "BLOCKS", blocks),
            mock.patch.object(device, "kernel_texts", return_value=(other, headers)),
            mock.patch.object(surface, "threads", threads),
            *(mock.patch.object(backend, "_kernels", {}) for backend in backends),
        ]

    def __enter__(self) -> None:
        for patch in self._patches:
            patch.start()
        self._optimizer._forget_plans()

    def __exit__(self, *_: object) -> None:
        for patch in reversed(self._patches):
            patch.stop()
        self._optimizer._forget_plans()
