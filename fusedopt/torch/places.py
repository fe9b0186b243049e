"""Where tensors are updated: NumPy or numba on the CPU's, the fused kernel on a CUDA device's; all in place."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  # makes "bfloat16" a name that NumPy knows
import numpy as np
import torch

from fusedopt.backends import Backend, chosen_backend, cpu_backend, cuda
from fusedopt.backends.device import DeviceBackend
from fusedopt.backends.scratch import array_at
from fusedopt.backends.threads import thread_count


class Place(Protocol):
    """One device, with the backend that updates its tensors."""

    backend: Backend

    def memories(self, pointers: list[int], sizes: Sequence[int], dtypes: Sequence[str]) -> list[Any]:
        """So many elements at each address, as the backend takes them."""

    def scalar(self, value: Any) -> Any:
        """`grad_scale` or `found_inf`, a number or a tensor on any device, as the backend takes it."""

    def capturing(self) -> bool:
        """Whether a graph is being captured."""


def _threads() -> int:
    """`FUSEDOPT_NUM_THREADS`, or as many as torch may take, which launchers of several processes limit."""
    return thread_count() if "FUSEDOPT_NUM_THREADS" in os.environ else torch.get_num_threads()


class Host:
    """The CPU. Its arrays do not own their memory: that keeps no gradient alive which its owner has dropped."""

    def __init__(self) -> None:
        self.backend: Backend = cpu_backend(_threads)

    def memories(self, pointers: list[int], sizes: Sequence[int], dtypes: Sequence[str]) -> list[Any]:
        return list(map(array_at, pointers, sizes, map(np.dtype, dtypes)))

    def scalar(self, value: Any) -> Any:
        return None if value is None else torch.tensor(float(value), dtype=torch.float32).item()  # as the kernel has it

    def capturing(self) -> bool:
        return False


class Surface(cuda.CudaSurface):
    """A GPU whose memory and current stream are torch's, not CuPy's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._torch_device = torch.device("cuda", number)

    def _stream(self) -> Any:
        return self._cupy.cuda.Stream.from_external(torch.cuda.current_stream(self._torch_device))

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Any:
        return torch.zeros(count, dtype=getattr(torch, dtype.name), device=self._torch_device)

    def capturing(self) -> bool:
        with self._device:  # which torch, too, takes for the current one
            return bool(torch.cuda.is_current_stream_capturing())

    def pointer(self, array: Any) -> int:
        return array if isinstance(array, int) else int(array.data_ptr())


class Gpu:
    """A CUDA device: what a kernel needs of memory is its address."""

    def __init__(self, surface: Any, device: torch.device) -> None:
        self.backend: Backend = DeviceBackend(surface)
        self._surface, self._device = surface, device

    def memories(self, pointers: list[int], sizes: Sequence[int], dtypes: Sequence[str]) -> list[Any]:
        return pointers

    def scalar(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None if value is None else float(value)
        return value.to(self._device, torch.float32, non_blocking=True)

    def capturing(self) -> bool:
        return bool(self._surface.capturing())


def place_of(device: torch.device) -> Place:
    """The place of a device, made once for each choice of backend.

    Raises:
        RuntimeError: There is no kernel for the device, or CUDA cannot work here.
    """
    return _place(device, chosen_backend())


@functools.cache
def _place(device: torch.device, choice: str) -> Place:
    if device.type == "cpu":
        return Host()
    if device.type != "cuda":
        raise RuntimeError(f"fusedopt.torch updates tensors on cpu and cuda devices, got {device}; move them there.")
    problem = cuda.problem()
    if problem is not None:
        raise RuntimeError(f"a parameter is on {device}, and CUDA cannot work here: {problem}")
    return Gpu(Surface(device.index), device)
