"""The surface of a CUDA device, in CuPy. It holds no logic of its own; CuPy is imported when it is first needed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from fusedopt import compiler
from fusedopt.backends.device import THREADS, DeviceBackend


def module() -> ModuleType:
    """CuPy."""
    import cupy

    return cupy  # type: ignore[no-any-return]  # CuPy has no types


@functools.lru_cache(maxsize=1)
def problem() -> str | None:
    """Why CUDA cannot work here, with the line that mends it; None if it can."""
    install = "pip install 'fusedopt[cuda13]' (or fusedopt[cuda12], as nvidia-smi says)"
    try:
        import cupy
    except Exception as error:  # a broken installation raises whatever it likes
        return f"CuPy cannot be imported ({error}); {install}."
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return "there is no CUDA device; set CUDA_VISIBLE_DEVICES or use FUSEDOPT_BACKEND=numpy."
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA finds no usable GPU or driver ({error}); install NVIDIA's driver, or use FUSEDOPT_BACKEND=numpy."
    try:
        compiler.nvrtc_version()
    except compiler.CompilerMissingError as error:
        return str(error)
    return None


@functools.cache
def backend(device: int) -> DeviceBackend:
    """The backend of a device.

    Raises:
        RuntimeError: CUDA cannot work here.
    """
    reason = problem()
    if reason is not None:
        raise RuntimeError(f"a parameter is a CuPy array, and CUDA cannot work here: {reason}")
    return DeviceBackend(CudaSurface(device))


class CudaSurface:
    """One GPU. Everything is ordered by CuPy's current stream; when that changes, the new one waits for the old."""

    threads = THREADS

    def __init__(self, number: int) -> None:
        self._cupy = module()
        self._device = self._cupy.cuda.Device(number)
        self.device = f"cuda:{number}"
        self.multiprocessors = int(self._device.attributes["MultiProcessorCount"])
        capability = self._device.compute_capability  # "90"
        self._architecture = compiler.architecture_of(int(capability[:-1]), int(capability[-1]))
        self._last_stream: Any = None

    @contextlib.contextmanager
    def here(self) -> Iterator[Any]:
        with self._device, self._stream() as stream:
            if not stream.is_capturing():  # a capture may not wait for work outside of it, nor others for a capture
                last, self._last_stream = self._last_stream, stream
                if last is not None and last.ptr != stream.ptr and not last.is_capturing():
                    stream.wait_event(last.record())
            yield stream

    def _stream(self) -> Any:
        """The stream that is current on this device, as a context."""
        return self._cupy.cuda.get_current_stream()

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Any:
        with self.here():
            return self._cupy.zeros(count, dtype)

    def asarray(self, array: Any) -> Any:
        with self.here():
            return self._cupy.asarray(array)

    def host(self, array: Any) -> np.ndarray[Any, Any]:
        with self.here():
            copy: np.ndarray[Any, Any] = self._cupy.asnumpy(array)
            return copy

    def pointer(self, array: Any) -> int:
        return int(array.data.ptr)

    def pinned(self, nbytes: int) -> np.ndarray[Any, Any]:
        with self._device:
            return np.frombuffer(self._cupy.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)

    def copy(self, to: Any, source: np.ndarray[Any, Any]) -> Any:
        with self.here() as stream:
            kind = self._cupy.cuda.runtime.memcpyHostToDevice
            self._cupy.cuda.runtime.memcpyAsync(self.pointer(to), source.ctypes.data, source.nbytes, kind, stream.ptr)
            return stream.record(self._cupy.cuda.Event(disable_timing=True))

    def wait(self, event: Any) -> None:
        event.synchronize()

    def kernel(self, source: str, headers: Mapping[str, str], name: str) -> Any:
        path = compiler.compiled(source, headers, self._architecture)
        with self._device:
            return self._cupy.RawModule(path=str(path)).get_function(name)

    def launch(self, kernel: Any, blocks: int, arguments: np.ndarray[Any, Any]) -> None:
        with self.here():
            kernel((blocks,), (self.threads,), (arguments,))

    def capturing(self) -> bool:
        with self.here() as stream:
            return bool(stream.is_capturing())
