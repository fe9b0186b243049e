"""A CUDA device as `machine.Machine` has it. This is all that `bench` asks of CuPy beside fusedopt's own surface.

A timing is the time between two CUDA events on the stream that is current for CuPy and for torch: the device's time,
or the host's where that is the slower one. The replay of a CUDA graph of the same steps leaves the host out. A library
with a stream of its own (jax) is timed by wall time, from idle device to idle device, around as many steps.

Cold timings: the events are queued behind the writing that clears the cache, so the host has the time of that to start
the step; wall time begins once it is done. A timing is the median of up to 20 steps.

torch's profiler leaves NVIDIA's CUPTI in the process, and each launch after that takes the host longer: by a tenth to a
fifth of a training step, says pytorch/pytorch#144455. `Gpu(profiler=False)` never starts it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fusedopt import compiler
from fusedopt.backends import cuda
from fusedopt.backends.threads import thread_count
from fusedopt.cli.bench import condition
from fusedopt.cli.bench.machine import Step, Timer, clearing_bytes, nothing, repeats_of, wall_seconds

TIMING = 0.02  # seconds: beside it, an event's half microsecond is nothing
COLD_STEPS = 20  # of one timing, each after the cache is cleared
HOST_STEPS = 20
CONDITION = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_event_reasons.active"


@dataclasses.dataclass(frozen=True)
class Replay:
    """A captured graph, and the memory that it works in: nobody else may have that as long as it is replayed."""

    start: Step
    memory: object

    def __call__(self) -> None:
        self.start()


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One that ran on the device, and how long: seconds, as the profiler saw it."""

    name: str
    seconds: float


class Gpu:
    """The current CUDA device, and a stream of it: the default one cannot be captured.

    Args:
        profiler: Whether launches are counted by torch's profiler, where torch is; without it only fusedopt's are.
    """

    kind = "cuda"

    def __init__(self, profiler: bool = True) -> None:
        self._profiler = profiler
        self._cupy: Any = cuda.module()
        self._number = int(self._cupy.cuda.Device().id)
        properties = self._cupy.cuda.runtime.getDeviceProperties(self._number)
        self.name = properties["name"].decode()
        self.cache_bytes = int(properties["l2CacheSize"])
        self.multiprocessors = int(properties["multiProcessorCount"])
        self._capability = int(properties["major"]), int(properties["minor"])
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._other: Any = None

    @property
    def surface(self) -> Any:
        """fusedopt's own surface of the device."""
        return cuda.backend(self._number).surface

    def facts(self) -> dict[str, Any]:
        return {"device": self.name, "driver": self._driver, "threads": thread_count()}

    @functools.cached_property
    def _driver(self) -> str:
        return f"{self._smi('driver_version')}, CUDA {self._cupy.cuda.runtime.driverGetVersion()}"

    def condition(self) -> str:
        return self._smi(CONDITION)

    def _smi(self, fields: str) -> str:
        return condition.nvidia_smi(fields, self._cupy.cuda.runtime.deviceGetPCIBusId(self._number))

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        with self._stream:
            torch = _torch_with_cuda()
            if torch is None:
                yield
            else:
                with torch.cuda.stream(torch.cuda.ExternalStream(self._stream.ptr)):
                    yield

    def noise(self, count: int) -> Any:
        """Random float32, by repeating 4 Mi numbers: zeros can be faster than what people train with."""
        some = self._cupy.array(_numbers())
        array = self._cupy.empty(count, np.float32)
        for start in range(0, count, len(some)):
            part = array[start : start + len(some)]
            part[...] = some[: len(part)]
        return array

    def copy(self, to: Any, source: Any) -> None:
        """CuPy's own copy."""
        self._cupy.copyto(to, source)

    def kernel(self, source: str, name: str) -> Callable[..., None]:
        """A kernel of a CUDA text; called with the number of blocks, of threads, and its arguments."""
        path = compiler.compiled(source, {}, compiler.architecture_of(*self._capability))
        function = self._cupy.RawModule(path=str(path)).get_function(name)
        return lambda blocks, threads, *arguments: function((blocks,), (threads,), arguments)

    def timer(self, step: Step, finish: Step = nothing, *, own_stream: bool = False, cold: bool = False) -> Timer:
        def finished() -> None:
            finish()
            self.wait()

        self.wait()
        repeats = repeats_of(step, finished, TIMING)

        def timing(count: int = repeats) -> float:
            return wall_seconds(step, finished, count) if own_stream else self._between_events(step, count)

        def after_clearing() -> float:
            self._clear_cache()
            if own_stream:
                self.wait()
            return timing(1)

        if cold:
            return lambda: statistics.median(after_clearing() for _ in range(min(repeats, COLD_STEPS)))
        return timing

    def _between_events(self, step: Step, repeats: int) -> float:
        start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        start.record()
        for _ in range(repeats):
            step()
        end.record()
        end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(start, end)) / 1e3 / repeats

    def _clear_cache(self) -> None:
        """Start to write other memory."""
        if self._other is None:
            self._other = self._cupy.empty(clearing_bytes(self.cache_bytes) // 4, np.float32)
        self._other.fill(1)

    def replay_timer(self, step: Step, library: str, *, cold: bool = False) -> Timer | None:
        """None for what refuses: torch's optimizers that are not `capturable`, or a step that waits for the device."""
        self.wait()
        repeats = 1 if cold else repeats_of(step, self.wait, TIMING)
        try:
            replay = (self._captured_by_torch if library == "torch" else self._captured)(step, repeats)
            replay()
            self.wait()
        except Exception:  # each library refuses in its own way
            return None
        seconds = self.timer(replay, cold=cold)
        return lambda: seconds() / repeats

    def _captured(self, step: Step, repeats: int) -> Replay:
        pool = self._cupy.cuda.MemoryPool()
        with self._cupy.cuda.using_allocator(pool.malloc):
            step()  # what a first call prepares does not belong in the graph; its memory is there for the others
            self.wait()
            self._stream.begin_capture()
            try:
                for _ in range(repeats):
                    step()
            finally:
                graph = self._stream.end_capture()
        return Replay(graph.launch, pool)

    def _captured_by_torch(self, step: Step, repeats: int) -> Replay:
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                step()
        return Replay(graph.replay, graph)

    def host_seconds(self, step: Step, finish: Step = nothing) -> float | None:
        times = []
        for _ in range(HOST_STEPS):
            self.wait()
            times.append(wall_seconds(step, nothing, 1))
            finish()
        self.wait()
        return statistics.median(times)

    def launches(self, step: Step) -> int | None:
        """By torch's profiler, which sees every library's kernels; without it those of fusedopt alone."""
        try:
            found = len(self.kernels(step)) if self._profiler and _torch_with_cuda() else self._counted(step)
        except RuntimeError:  # such as a profiler that another one keeps from the device
            return None
        return found or None

    def kernels(self, step: Step) -> list[Kernel]:
        """All that a call has started, by torch's profiler; empty where it sees none.

        Raises:
            RuntimeError: The profiler refuses.
        """
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step()
            self.wait()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            seen.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        return [
            Kernel(event.get("name", ""), event.get("dur", 0) / 1e6) for event in events if event.get("cat") == "kernel"
        ]

    def _counted(self, step: Step) -> int:
        surface = self.surface
        launch, found = surface.launch, []

        def counting(*arguments: Any) -> None:
            found.append(len(arguments))
            launch(*arguments)

        surface.launch = counting
        try:
            step()
        finally:
            del surface.launch  # the class still has it
        self.wait()
        return len(found)

    def wait(self) -> None:
        self._cupy.cuda.runtime.deviceSynchronize()

    def free_bytes(self) -> int | None:
        self.release()
        return int(self._cupy.cuda.runtime.memGetInfo()[0])

    def release(self) -> None:
        self._other = None
        self._cupy.get_default_memory_pool().free_all_blocks()
        if torch := _torch_with_cuda():
            torch.cuda.empty_cache()


@functools.cache
def _numbers() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(2**22, np.float32)


def _torch_with_cuda() -> Any:
    """torch where it is installed and sees a GPU, else None."""
    if not find_spec("torch"):
        return None
    import torch

    return torch if torch.cuda.is_available() else None
