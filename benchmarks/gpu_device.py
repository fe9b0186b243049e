"""Everything that the GPU measurements ask of CuPy, and nothing else: tests put an emulated device in its place."""

from __future__ import annotations

import functools
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fusedopt import compiler
from fusedopt.backends import cuda

Step = Callable[[], object]


class Gpu:
    """The current CUDA device."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        self.name = properties["name"].decode()
        self.multiprocessors = int(properties["multiProcessorCount"])
        self.l2_bytes = int(properties["l2CacheSize"])
        self.capability = (int(properties["major"]), int(properties["minor"]))

    @property
    def surface(self) -> Any:
        """fusedopt's own surface of the device."""
        return cuda.backend(self._cupy.cuda.Device().id).surface

    @functools.cached_property
    def _some_noise(self) -> Any:
        return self._cupy.array(np.random.default_rng(0).standard_normal(2**22, np.float32))

    def facts(self) -> dict[str, Any]:
        """What the device, its driver and its libraries are."""
        runtime = self._cupy.cuda.runtime
        return {
            "device": self.name,
            "compute_capability": ".".join(map(str, self.capability)),
            "multiprocessors": self.multiprocessors,
            "l2_bytes": self.l2_bytes,
            "memory_bytes": runtime.memGetInfo()[1],
            "driver_cuda": runtime.driverGetVersion(),
            "runtime_cuda": runtime.runtimeGetVersion(),
            "cupy": self._cupy.__version__,
            "nvrtc": ".".join(map(str, compiler.nvrtc_version())),
        }

    def stream(self) -> Any:
        """A stream to be current in a `with`: the default one cannot be captured."""
        return self._cupy.cuda.Stream(non_blocking=True)

    def array(self, values: np.ndarray[Any, Any]) -> Any:
        """A copy on the device."""
        return self._cupy.array(values)

    def host(self, array: Any) -> np.ndarray[Any, Any]:
        """A copy on the host."""
        return self._cupy.asnumpy(array)

    def noise(self, count: int) -> Any:
        """Random float32, by repeating 4 Mi numbers: zeros can be faster than what people train with."""
        array = self._cupy.empty(count, np.float32)
        for start in range(0, count, len(self._some_noise)):
            part = array[start : start + len(self._some_noise)]
            part[...] = self._some_noise[: len(part)]
        return array

    def copy(self, to: Any, source: Any) -> None:
        """CuPy's own copy."""
        self._cupy.copyto(to, source)

    def kernel(self, source: str, name: str) -> Callable[..., None]:
        """A kernel of a CUDA text; called with the number of blocks, of threads, and its arguments."""
        path = compiler.compiled(source, {}, compiler.architecture_of(*self.capability))
        function = self._cupy.RawModule(path=str(path)).get_function(name)
        return lambda blocks, threads, *arguments: function((blocks,), (threads,), arguments)

    def synchronize(self) -> None:
        """Wait for all that was started."""
        self._cupy.cuda.runtime.deviceSynchronize()

    def device_seconds(self, step: Step, repeats: int) -> float:
        """Time between two events around many calls, a call. The host's where that is slower than the device."""
        start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        self.synchronize()
        start.record()
        for _ in range(repeats):
            step()
        end.record()
        end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(start, end)) / 1e3 / repeats

    def host_seconds(self, step: Step, repeats: int) -> float:
        """The median time until a call returns; the device is idle before each, so that no full queue is waited for."""
        times = []
        for _ in range(repeats):
            self.synchronize()
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        self.synchronize()
        return statistics.median(times)

    def captured(self, step: Step, repeats: int) -> Step:
        """A CUDA graph of many calls, which one launch replays: without the host's part."""
        step()  # what a first call prepares does not belong in the graph
        self.synchronize()
        stream = self._cupy.cuda.get_current_stream()
        stream.begin_capture()
        try:
            for _ in range(repeats):
                step()
        finally:
            graph = stream.end_capture()
        return graph.launch

    def free_bytes(self) -> int:
        """Device memory that can still be had."""
        self._cupy.get_default_memory_pool().free_all_blocks()
        return int(self._cupy.cuda.runtime.memGetInfo()[0])


def nvidia_smi(fields: str) -> dict[str, str] | str:
    """What nvidia-smi says of the first GPU, by field; or why it says nothing. It only reads."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "nvidia-smi is not here"
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        return f"nvidia-smi ended with {done.returncode}: {(done.stdout + done.stderr).strip()}"
    return dict(zip(fields.split(","), (value.strip() for value in done.stdout.strip().split(","))))
