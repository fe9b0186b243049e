"""The most memory that a call has beyond what there was before it, as each library can tell."""

from __future__ import annotations

import ctypes
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

Call = Callable[[], object]


def peak_of_step(library: str, on_gpu: bool, step: Call) -> int | None:
    """Bytes that a step of `numpy`, `cupy`, `torch` or `jax` takes; None where that library cannot tell.

    On the CPU what NumPy does not tell is how far resident memory rises. jax's allocator on a GPU knows the peak of the
    whole process alone.
    """
    if library == "jax" and on_gpu:
        return None
    if library in ("torch", "jax"):
        return peak_of_torch(on_gpu, step)
    if library == "cupy":
        from fusedopt.backends import cuda

        return peak_of_arrays(cuda.module(), step)
    return peak_of_arrays(np, step)


def peak_of_arrays(xp: ModuleType, call: Call) -> int:
    """Bytes: NumPy tells each of its allocations to tracemalloc; CuPy's pool keeps all that it ever needed at once."""
    if xp is not np:
        pool = xp.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        call()
        return int(pool.total_bytes()) - int(before)
    tracemalloc.start()
    try:
        call()  # so that what the next call frees was seen to be allocated
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def peak_of_torch(cuda: bool, call: Call) -> int | None:
    """Bytes: of torch's allocator on CUDA; on the CPU how far resident memory rose. None: only Linux tells that."""
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return int(torch.cuda.max_memory_allocated() - before)
    if sys.platform != "linux":
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that the C library kept would be used without a rise
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    except (OSError, AttributeError):
        return None
    before = _peak_resident()
    call()
    return _peak_resident() - before


def _peak_resident() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024
