"""Kernels that a step launches, by torch's profiler; and, run as a script, a few steps for Nsight Compute to watch.

The profiler has a process of its own: it slows all launches that come after it.
"""

from __future__ import annotations

import collections
import dataclasses
import gc
import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fusedopt.cli.bench.gpu import Gpu
from fusedopt.cli.bench.measure import WEIGHT, Task
from fusedopt.cli.bench.peers import Way
from gpu_geometry import adam
from gpu_speed import BY_TITLE, CASES, COMPARED, FILES, QUICK, Case, states_of, work_of
from record import Result, write

LEFT_OUT = "optax jit"  # a compilation for each set of tensors
NCU_ELEMENTS = 64 * 2**20


def prove(gpu: Any, folder: Path, quick: bool, until: float) -> Result:
    """A profile of each way to take each of the speed's cases, in `profiles.json`; the rows get its launch counts."""
    if find_spec("torch") is None:
        return {"passed": True, "notes": ["torch is not installed, whose profiler it would be"]}
    notes: list[str] = []
    failed: list[str] = []
    profiles: list[Result] = []
    with gpu.here():
        for case, ways in works(QUICK if quick else CASES):
            try:
                profiles += profiled(gpu, case, ways, until, notes)
            except Exception as error:
                failed.append(f"{case.optimizer}, {case.model or case.mi}: {type(error).__name__}: {error}")
            write(folder / "profiles.json", profiles)
            gc.collect()
            gpu.release()
    fill_in(folder, profiles)
    seen = [each for each in profiles if each["launches"]]
    if not seen:
        notes.append("torch's profiler saw no kernel")
    ours = [each["launches"] for each in seen if each["peer"].startswith("fusedopt")]
    failed += [f"a step of fusedopt launched {launches} kernels" for launches in ours if launches != 1]
    return {"passed": not failed, "failed": failed, "notes": notes, "profiles": len(seen)}


def works(cases: tuple[Case, ...]) -> Iterator[tuple[Case, list[Way]]]:
    """Each set of tensors and optimizer once, with all ways to take that step."""
    titles: dict[Case, dict[str, None]] = {}
    for case in cases:
        key = dataclasses.replace(case, ours="", peers=())
        titles.setdefault(key, {}).update(dict.fromkeys((case.ours, *case.peers)))
    for case, wanted in titles.items():
        yield case, [way for title, way in BY_TITLE.items() if title in wanted and title != LEFT_OUT]


def profiled(gpu: Any, case: Case, ways: list[Way], until: float, notes: list[str]) -> Iterator[Result]:
    """Launches, kernels and bandwidth of a step of each way."""
    work = work_of(gpu, case)
    if work.parameters > COMPARED:
        return
    weights, gradients = work.arrays(0, WEIGHT), work.arrays(1, 1.0)
    for way in ways:
        lacking = way.missing(case.optimizer, gpu.kind)
        if lacking is not None or time.time() > until:
            notes.append(f"{case.optimizer}, {work.title}, {way.title}: {lacking or 'there is no time left'}")
            continue
        peer = way.build(case.optimizer, weights, gradients, gpu.kind)
        for _ in range(2):  # what the first steps prepare is not a step's
            peer.step()
        gpu.wait()
        try:
            kernels = gpu.kernels(peer.step) or gpu.kernels(peer.step)  # the first session may start too late
        except RuntimeError as error:
            notes.append(f"{case.optimizer}, {work.title}, {way.title}: the profiler refuses: {error}")
            continue
        seconds = sum(kernel.seconds for kernel in kernels)
        moved = way.bytes_moved(Task(work, case.optimizer, states_of(case), repeats=1))
        yield {
            "optimizer": case.optimizer,
            "title": work.title,
            "tensors": len(work.shapes),
            "peer": way.title,
            "launches": len(kernels),
            "kernels": dict(collections.Counter(kernel.name[:100] for kernel in kernels)),
            "device_seconds": seconds,
            "bytes_per_second": moved / seconds if seconds else None,
        }


def fill_in(folder: Path, profiles: list[Result]) -> None:
    """Put launch counts into the rows that speed has written."""
    found = {(each["optimizer"], each["title"], each["peer"]): each["launches"] or None for each in profiles}
    for name in FILES.values():
        path = folder / name
        if path.exists():
            rows = json.loads(path.read_text())
            for row in rows:
                key = row["optimizer"], row["title"], row["peer"]
                row["launches"] = found.get(key) or row["launches"]
            write(path, rows)


def few_steps(gpu: Any, elements: int) -> None:
    """Some of Adam's on one tensor."""
    optimizer = adam(gpu, elements)
    for _ in range(3):
        optimizer.step()
    gpu.wait()


if __name__ == "__main__":
    few_steps(Gpu(profiler=False), NCU_ELEMENTS)
