"""How fast a step is on a GPU: against plain copies of as many streams, against torch, and over launch geometries."""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

import fusedopt
from fusedopt.backends import device
from timing import Figure, figure

OPTIONS: dict[str, dict[str, Any]] = {"Adam": {"lr": 1e-3}, "SGD": {"lr": 1e-3, "momentum": 0.9}}
STATES = {"Adam": 2, "SGD": 1}
MI = 2**20
LARGE = 64 * MI  # elements from which the bars hold
SHARE_BAR = 0.95  # of the plain stream kernel's speed
HOST_BAR = 30  # microseconds
NO_CAP = 1_000_000  # blocks a multiprocessor: as many as there are chunks

Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Work:
    """What is stepped: so many float32 elements, in tensors of one size."""

    optimizer: str
    elements: int
    tensors: int

    @property
    def title(self) -> str:
        many = "one tensor" if self.tensors == 1 else f"{self.tensors:,} tensors"
        return f"{self.optimizer}, {self.elements / MI:g} Mi in {many}"

    @property
    def bytes(self) -> int:
        """The least that a step moves: parameter and states read and written, the gradient read."""
        return self.elements * 4 * (2 * (1 + STATES[self.optimizer]) + 1)

    @property
    def repeats(self) -> int:
        """Steps between two events: about 20 ms at 4 TB/s, so that an event's half microsecond is nothing."""
        return int(min(400, max(10, 0.02 * 4e12 / self.bytes)))

    @property
    def resident(self) -> int:
        """Bytes that all contestants need together: fusedopt's, the stream's and torch's arrays, and temporaries."""
        return self.elements * 4 * 24


def stream_text(written: int) -> str:
    """A kernel that reads and writes `written` arrays and reads one more, by 128 bits; 0: copies one to another."""
    if written == 0:
        arguments, body = "const float4* from, float4* to", "    to[i] = from[i];"
    else:
        numbers = range(written)
        arguments = ", ".join([*(f"float4* a{n}" for n in numbers), "const float4* b"])
        lines = ["const float4 y = b[i];", *(f"float4 x{n} = a{n}[i];" for n in numbers)]
        lines += [f"x{n}.{lane} += y.{lane};" for n in numbers for lane in "xyzw"]
        lines += [f"a{n}[i] = x{n};" for n in numbers]
        body = "\n".join(f"    {line}" for line in lines)
    return f"""extern "C" __global__ void __launch_bounds__(256) stream({arguments}, unsigned long long count) {{
  const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {{
{body}
  }}
}}
"""


def streams(gpu: Any, elements: int, written: int) -> dict[str, Step]:
    """The stream kernel, with a thread an access and with 8 blocks a multiprocessor that loop."""
    kernel = gpu.kernel(stream_text(written), "stream")
    arrays = [gpu.noise(elements) for _ in range(max(1, written) + 1)]
    count = elements // 4

    def launcher(blocks: int) -> Step:
        return lambda: kernel(blocks, 256, *arrays, np.uint64(count))

    what = f"stream of {written + 1} loads, {written} stores" if written else "copy kernel"
    return {what: launcher(-(-count // 256)), f"{what}, looping": launcher(8 * gpu.multiprocessors)}


def optimizer_of(gpu: Any, work: Work) -> Any:
    """A fusedopt optimizer with gradients, one step done."""
    share = work.elements // work.tensors
    parameters = [fusedopt.Parameter(gpu.noise(share)) for _ in range(work.tensors)]
    optimizer = getattr(fusedopt, work.optimizer)(parameters, **OPTIONS[work.optimizer])
    for parameter in parameters:
        parameter.grad = parameter.data  # copied
    optimizer.step()
    return optimizer


def torch_steps(work: Work) -> dict[str, Callable[[], float]]:
    """torch's fused and foreach steps as functions that give their seconds; none where torch sees no GPU."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}

    def entry(**implementation: bool) -> Callable[[], float]:
        share = work.elements // work.tensors
        parameters = [torch.nn.Parameter(torch.randn(share, device="cuda")) for _ in range(work.tensors)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = getattr(torch.optim, work.optimizer)(parameters, **OPTIONS[work.optimizer], **implementation)
        optimizer.step()

        def timed() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(work.repeats):
                optimizer.step()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / work.repeats

        return timed

    return {"torch fused": entry(fused=True), "torch foreach": entry(foreach=True)}


@dataclasses.dataclass
class Contestant:
    """One thing that is timed.

    Attributes:
        timed: Gives the seconds of one step.
        bytes: What a step moves at least.
        ceiling: `stream` or `copy` where this is one of the plain kernels that a step is held against.
    """

    timed: Callable[[], float]
    bytes: int
    ceiling: str = ""


def contestants(gpu: Any, work: Work, step: Step, notes: list[str]) -> dict[str, Contestant]:
    """fusedopt's step, the plain kernels, each also as a graph, and torch. What cannot be done goes to `notes`."""
    stream = streams(gpu, work.elements, 1 + STATES[work.optimizer])
    copy = streams(gpu, work.elements, 0)
    source, to = gpu.noise(work.elements), gpu.noise(work.elements)
    copy["copyto"] = lambda: gpu.copy(to, source)
    found: dict[str, Contestant] = {}
    for ceiling, steps in (("", {"fusedopt": step}), ("stream", stream), ("copy", copy)):
        moved = 8 * work.elements if ceiling == "copy" else work.bytes
        for name, each in steps.items():
            found[name] = Contestant(functools.partial(gpu.device_seconds, each, work.repeats), moved, ceiling)
            try:
                replay = gpu.captured(each, work.repeats)
            except Exception as error:
                notes.append(f"{work.title}: {name} cannot be captured: {type(error).__name__}: {error}")
                continue
            timed = functools.partial(_of_each, gpu, replay, work.repeats)
            found[f"{name}, graph"] = Contestant(timed, moved, ceiling)
    try:
        found |= {name: Contestant(timed, work.bytes) for name, timed in torch_steps(work).items()}
    except Exception as error:  # such as no memory left
        notes.append(f"{work.title}: torch: {type(error).__name__}: {error}")
    return found


def _of_each(gpu: Any, replay: Step, steps: int) -> float:
    return float(gpu.device_seconds(replay, 1)) / steps


def speed(gpu: Any, work: Work, rounds: int, notes: list[str]) -> Iterator[Figure]:
    """Times, GB/s and shares of one kind of work; all contestants take turns."""
    if gpu.free_bytes() < work.resident:
        notes.append(f"{work.title}: left out, it needs {work.resident / 1e9:.0f} GB of device memory")
        return
    optimizer = optimizer_of(gpu, work)
    all_of_them = contestants(gpu, work, optimizer.step, notes)
    times: dict[str, list[float]] = {name: [] for name in all_of_them}
    for number in range(rounds + 1):
        for name, contestant in all_of_them.items():
            took = contestant.timed()
            if number:  # the first round warms up
                times[name].append(took)
    rates = {name: [all_of_them[name].bytes / t / 1e9 for t in samples] for name, samples in times.items()}
    for name in times:
        yield figure(f"{work.title}: {name}", "us", [1e6 * t for t in times[name]])
        yield figure(f"{work.title}: {name}", "GB/s", rates[name])

    large = work.elements >= LARGE
    best = "fusedopt, graph" if "fusedopt, graph" in times else "fusedopt"
    for ceiling, bar in (("stream", SHARE_BAR if large else None), ("copy", None)):
        tops = map(max, zip(*(rates[name] for name, each in all_of_them.items() if each.ceiling == ceiling)))
        shares = [ours / top for ours, top in zip(rates[best], tops)]
        yield figure(f"{work.title}: {best}, share of the best {ceiling}", "", shares, at_least=bar)
    for name in ("torch fused", "torch foreach"):
        if name in times:
            ratios = [theirs / ours for theirs, ours in zip(times[name], times["fusedopt"])]
            bar = 1 if large and name == "torch fused" else None
            yield figure(f"{work.title}: fusedopt against {name}", "times as fast", ratios, at_least=bar)
    yield from host_times(gpu, optimizer, work)


def host_times(gpu: Any, optimizer: Any, work: Work) -> Iterator[Figure]:
    """The host's time of a step, launch included: nothing changed, and another learning rate at each step."""

    def changing() -> None:
        optimizer.param_groups[0]["lr"] *= 0.999
        optimizer.step()

    for title, step in (("unchanged", optimizer.step), ("learning rate changed", changing)):
        samples = [1e6 * gpu.host_seconds(step, 40) for _ in range(5)]
        yield figure(f"{work.title}: host time of a step, {title}", "us", samples, at_most=HOST_BAR)


def all_speeds(gpu: Any, quick: bool, until: float, notes: list[str]) -> Iterator[Figure]:
    """Every kind of work for which there is time before `until` (of `time.monotonic`)."""
    sizes = (1, 16) if quick else (1, 16, 128, 512)
    with gpu.stream():
        # The largest first of each optimizer: should time run out, the small ones are missing.
        for size, tensors, optimizer in itertools.product(sorted(sizes, reverse=True), (1, 1_000), OPTIONS):
            work = Work(optimizer, size * MI, tensors)
            if time.monotonic() > until:
                notes.append(f"{work.title}: left out, there is no time left")
                continue
            yield from speed(gpu, work, 3 if quick else 7, notes)
            gc.collect()
            if "torch" in sys.modules:
                sys.modules["torch"].cuda.empty_cache()


def sweep(gpu: Any, quick: bool, until: float, notes: list[str]) -> Iterator[Figure]:
    """Adam's device time over chunk sizes, blocks a multiprocessor and threads a block; it decides nothing."""
    chunks = (4, 16, 64) if quick else (4, 8, 16, 32, 64)
    blocks = (4, NO_CAP) if quick else (2, 4, 8, 16, NO_CAP)
    with gpu.stream():
        for size in (16,) if quick else (16, 128):
            work = Work("Adam", size * MI, 1)
            if gpu.free_bytes() < work.resident:
                notes.append(f"sweep of {work.title}: left out, too little device memory")
                continue
            optimizer = optimizer_of(gpu, work)
            for threads, chunk, cap in itertools.product((256, 128, 512), chunks, blocks):
                name = f"{work.title}: {threads} threads, {chunk} Ki a chunk, {'any' if cap == NO_CAP else cap} blocks"
                if time.monotonic() > until:
                    notes.append(f"sweep: {name} and what follows is left out, there is no time left")
                    return
                try:
                    with geometry(gpu.surface, optimizer, threads, chunk * 1024, cap):
                        samples = [gpu.device_seconds(optimizer.step, work.repeats) for _ in range(4)][1:]
                except Exception as error:
                    notes.append(f"sweep: {name}: {type(error).__name__}: {error}")
                    continue
                yield figure(name, "us", [1e6 * t for t in samples])


class geometry:
    """In its `with`, an optimizer's steps are launched in another geometry; the kernel is compiled for it."""

    def __init__(self, surface: Any, optimizer: Any, threads: int, chunk: int, blocks: int) -> None:
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
