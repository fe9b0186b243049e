"""How fast a step is on a GPU: what the proof measures, by the method of `fusedopt.cli.bench`, and the host's time."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterator
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import fusedopt
from fusedopt.cli.bench import row, version
from fusedopt.cli.bench.measure import Measured, Task, measure
from fusedopt.cli.bench.models import MODELS
from fusedopt.cli.bench.peers import OPTIMIZERS, WAYS, Peer, Way, stored_ways
from fusedopt.cli.bench.work import NOISE, Work, equal_pieces, need_bytes, slice_of
from gpu_bars import HOST_MICROSECONDS, figures_of
from record import Result, circumstances, write
from timing import Figure, figure

MI = 2**20
# Above this, arrays are made on the device, and results are not compared: copies through the host would take the time.
COMPARED = 128 * MI  # parameters
MEMORY = 0.9  # of what is free: what a model is cut to
ARRAYS, TENSORS = "fusedopt", "fusedopt.torch"
FILES = {ARRAYS: "bench-arrays.json", TENSORS: "bench-tensors.json"}
HOST_TENSORS = (1, 300, 10_000)
FUSED = ("torch fused",)
TORCH = (*FUSED, "torch foreach")
ALL = (*TORCH, "optax jit", "CuPy whole arrays")
STORED = tuple(way.title for way in stored_ways())
BY_TITLE = {way.title: way for way in (*WAYS, *stored_ways())}


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to be measured: of a model, or of so many Mi parameters in equal tensors.

    Attributes:
        ours, peers: Titles of ways; `ours` is what the peers are paired with.
        layers: Of the model, at most.
    """

    optimizer: str
    ours: str
    peers: tuple[str, ...]
    model: str = ""
    layers: int | None = None
    mi: int = 0
    tensors: int = 1

    @property
    def large(self) -> bool:
        """Whether it is one of those that the shares of bandwidth are asked of."""
        return self.mi >= 64


# By importance: should time run out, the last are missing.
CASES = (
    Case("adam", ARRAYS, ALL, mi=64),
    Case("adam", TENSORS, TORCH, mi=64),
    *(Case("adamw", ours, FUSED, model) for model in ("moe", "resnet-50") for ours in FILES),
    Case("adam", ARRAYS, STORED, mi=64),
    Case("sgd", ARRAYS, ALL, mi=64),
    Case("sgd", TENSORS, TORCH, mi=64),
    *(Case(optimizer, ours, FUSED, mi=256) for optimizer in ("adam", "sgd") for ours in FILES),
    *(Case("adam", ours, TORCH, mi=64, tensors=1_000) for ours in FILES),
    *(Case("adamw", ours, TORCH, model) for model in ("gpt2", "vit-b") for ours in FILES),
    *(Case("sgd", ours, FUSED, "resnet-50") for ours in FILES),
    *(Case("adamw", ours, FUSED, "gpt2-xl") for ours in FILES),
    *(Case("adamw", ours, FUSED, "llama-3-8b", layers=8) for ours in FILES),
    *(Case("adam", ours, FUSED, mi=1024) for ours in FILES),
)
QUICK = tuple(dataclasses.replace(case, mi=min(4, case.mi)) for case in CASES[:8])


@dataclasses.dataclass(frozen=True)
class DeviceWork(Work):
    """Tensors whose values are made on the device; the memory is that of the largest."""

    gpu: Any = dataclasses.field(repr=False)

    def arrays(self, seed: int, scale: float) -> list[Any]:
        numbers = self.gpu.noise(max(map(prod, self.shapes)) + NOISE)
        numbers *= np.float32(scale)
        starts = (7_919 * (index + seed) % NOISE for index in range(len(self.shapes)))
        return [numbers[start : start + prod(shape)].reshape(shape) for start, shape in zip(starts, self.shapes)]


def work_of(gpu: Any, case: Case) -> Work:
    """The tensors of a case; a model is cut to what fits.

    Raises:
        MemoryError: They do not fit on the device.
    """
    free = int(MEMORY * gpu.free_bytes())
    work = slice_of(MODELS[case.model], case.layers, free) if case.model else equal_pieces(case.mi * MI, case.tensors)
    if work.parameters <= COMPARED:
        return work
    need = need_bytes(work.shapes) + 8 * (max(map(prod, work.shapes)) + NOISE)
    if need > free:
        raise MemoryError(f"needs {need / 1e9:.0f} GB of device memory, {free / 1e9:.0f} GB are free")
    return DeviceWork(work.title, work.model, work.layers, work.shapes, gpu)


def seconds_needed(work: Work) -> float:
    """About how long a case takes: streams, builds and rounds; and arrays to be made and filled."""
    return 8 + 10 * work.parameters / 2**30


def states_of(case: Case) -> int:
    """How many arrays the optimizer keeps for each parameter."""
    cls, options = OPTIMIZERS[case.optimizer]
    return len(cls.rule(**options).kept_states)


def ways_of(case: Case) -> list[Way]:
    """fusedopt's own, then the peers."""
    return [BY_TITLE[title] for title in (case.ours, *case.peers)]


def uncompared(way: Way) -> Way:
    """The same without a copy of its parameters to the host."""

    def build(*arguments: Any) -> Peer:
        return dataclasses.replace(way.build(*arguments), parameters=lambda: [np.ones(1, np.float32)])

    return dataclasses.replace(way, build=build, exact=False)


def measured(gpu: Any, case: Case, work: Work, repeats: int) -> tuple[Task, Measured, list[row.Row]]:
    """Fusedopt against each of the peers."""
    task = Task(work, case.optimizer, states_of(case), repeats)
    ways = ways_of(case)
    if work.parameters > COMPARED:
        ways = [uncompared(way) for way in ways]
    found = measure(gpu, task, ways, lambda what: None)
    about = {"date": circumstances()["date"], "version": version()}
    return task, found, list(row.rows(gpu, task, ways, found, about))


class Results:
    """Rows and figures so far, kept in files as they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rows: dict[str, list[row.Row]] = {title: [] for title in FILES}
        self.figures: list[Figure] = []
        self.absent: dict[str, str] = {}
        self.failed: list[str] = []
        self.left_out: list[str] = []

    def keep(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for title, name in FILES.items():
            row.save(self._folder / name, self.rows[title])
        write(self._folder / "bars.json", [figure.record() for figure in self.figures])

    def result(self) -> Result:
        notes = [*self.left_out, *(f"{title}: {why}" for title, why in self.absent.items())]
        return {"passed": not self.failed, "failed": self.failed, "notes": notes}


def prove(gpu: Any, folder: Path, quick: bool, until: float) -> Result:
    """Host times, then all cases for which there is time before `until` (of `time.time`); files as they come."""
    results = Results(folder)
    try:
        with gpu.here():
            results.figures += host_times(gpu, 3 if quick else 7)
    except Exception as error:
        results.failed.append(f"host time: {type(error).__name__}: {error}")
    results.keep()
    for case in QUICK if quick else CASES:
        title = f"{case.optimizer}, {case.model or f'{case.mi} Mi in {case.tensors:,}'}, {case.ours}"
        try:
            take_up(results, gpu, case, title, 2 if quick else 7, until)
        except Exception as error:
            results.failed.append(f"{title}: {type(error).__name__}: {error}")
        gc.collect()
        gpu.release()
        results.keep()
    results.left_out += pictures(results, folder)
    return results.result()


def take_up(results: Results, gpu: Any, case: Case, title: str, repeats: int, until: float) -> None:
    """Measure a case, or say why not."""
    lacking = ways_of(case)[0].missing(case.optimizer, gpu.kind)
    if lacking is not None:
        results.absent[case.ours] = lacking
        return
    try:
        work = work_of(gpu, case)
    except MemoryError as error:
        results.left_out.append(f"{title}: left out: {error}")
        return
    if time.time() + seconds_needed(work) > until:
        results.left_out.append(f"{title}: left out, there is no time left")
        return
    print(f"    {title}", flush=True)
    task, found, rows = measured(gpu, case, work, repeats)
    results.rows[case.ours] += rows
    results.figures += figures_of(case, task, found, BY_TITLE)
    results.absent |= found.absent
    for each in rows:
        if not each.agrees:
            limit = each.allowed_difference
            results.failed.append(f"{title}: {each.peer} differs by {each.difference}, allowed is {limit}")


def host_times(gpu: Any, samples: int) -> Iterator[Figure]:
    """Microseconds until a step returns, launch included, the device being idle."""
    for count in HOST_TENSORS:
        block = gpu.noise(256 * count)
        parameters = [fusedopt.Parameter(part) for part in block.reshape(count, 256)]
        optimizer = fusedopt.Adam(parameters)
        for parameter in parameters:
            parameter.grad = parameter.data  # copied
        optimizer.step()

        def change(optimizer: Any = optimizer) -> None:
            optimizer.param_groups[0]["lr"] *= 0.999

        for title, between in (("unchanged", lambda: None), ("learning rate changed", change)):
            yield host_time(gpu, f"adam, {count:,} tensors, arrays: {title}", optimizer.step, between, samples, True)
        ours = BY_TITLE[TENSORS]
        if ours.missing("adam", gpu.kind) is None:
            arrays = [np.ones(256, np.float32)] * count
            step = ours.build("adam", arrays, arrays, gpu.kind).step
            step()
            yield host_time(gpu, f"adam, {count:,} tensors, torch tensors: unchanged", step, lambda: None, samples)


def host_time(gpu: Any, title: str, step: Any, between: Any, samples: int, bar: bool = False) -> Figure:
    """`between` is called between two steps, outside of the time."""
    between()
    times = [1e6 * gpu.host_seconds(step, between) for _ in range(samples)]
    return figure(f"{title}: host time", "us", times, at_most=HOST_MICROSECONDS if bar else None)


def pictures(results: Results, folder: Path) -> list[str]:
    """Draw the rows; in one line what was not drawn."""
    missing = [name for name in ("matplotlib", "rich") if find_spec(name) is None]
    if missing:
        return [f"no pictures: {' and '.join(missing)} not installed"]
    from fusedopt.cli.bench.picture import draw

    for title, name in FILES.items():
        shown = [each for each in results.rows[title] if each.model or each.tensors == 1]
        if shown:
            draw(folder / Path(name).with_suffix(".png"), shown)
    return []
