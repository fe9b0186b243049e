"""Memory of one step in this process, as JSON: `python memory.py SIZE TENSORS DTYPE`; `compare.py` starts it.

The first step is looked at, in which scratch is made, less the states that it makes and that stay. Where numba steps,
it has compiled the loop before, for one element, and what that took is a figure of its own.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np

import fusedopt
from fusedopt.backends import cpu_backend

MIB = 2**20


def main(size: int, tensors: int, dtype: str) -> dict[str, float]:
    """Mebibytes by what they are for."""
    found = compilers(dtype) if cpu_backend().name == "numba" else {}
    optimizer, originals = ready(size // tensors, tensors, dtype)
    states = 2 * optimizer._arenas[0][0].data.nbytes
    tracemalloc.start()
    resident = lowered_peak()
    optimizer.step()
    found |= {
        "resident set": (_status("VmHWM") - resident - states) / MIB,
        "tracemalloc": (tracemalloc.get_traced_memory()[1] - states) / MIB,
    }
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    optimizer.step()
    found["tracemalloc, second step"] = (tracemalloc.get_traced_memory()[1] - before) / MIB
    del originals  # until now: what is freed could be used again, unseen
    return found


def ready(each: int, tensors: int, dtype: str) -> tuple[fusedopt.Adam, list[np.ndarray]]:
    """An Adam with gradients before its first step, and the arrays that it was made of."""
    originals = [np.ones(each, dtype) for _ in range(tensors)]
    parameters = [fusedopt.Parameter(original) for original in originals]
    optimizer = fusedopt.Adam(parameters)
    for parameter, original in zip(parameters, originals):
        parameter.grad = original
    return optimizer, originals


def compilers(dtype: str) -> dict[str, float]:
    """What loading numba and compiling one loop takes, and keeps."""
    optimizer, _ = ready(1, 1, dtype)
    resident = lowered_peak()
    optimizer.step()
    return {"the compiler": (_status("VmHWM") - resident) / MIB}


def lowered_peak() -> int:
    """Let the high-water mark fall to what is resident now, which is returned."""
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    return resident


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
