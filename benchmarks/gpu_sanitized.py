"""A few small steps on a GPU, for compute-sanitizer to watch; `prove_on_gpu.py` starts it."""

from __future__ import annotations

from typing import Any

import gpu_bits
from fusedopt.backends import cuda

DONE = "the steps are done"


def main() -> None:
    cupy: Any = cuda.module()
    # Each array is an allocation of its own, so that an access beyond it is seen.
    cupy.cuda.set_allocator(None)
    cupy.cuda.set_pinned_memory_allocator(None)
    for name, options in (gpu_bits.CASES[1], gpu_bits.CASES[4]):
        for dtype in gpu_bits.DTYPES[:3]:
            gpu_bits.outcome(cupy.array, cupy.asnumpy, name, options, dtype)
    cupy.cuda.runtime.deviceSynchronize()
    print(DONE)


if __name__ == "__main__":
    main()
