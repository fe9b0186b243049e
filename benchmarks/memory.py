"""Memory of one step in this process, as JSON: `python memory.py SIZE TENSORS DTYPE`; `compare.py` starts it.

The first step is looked at, in which scratch is made, less the states that it makes and that stay.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np

import fusedopt

MIB = 2**20


def main(size: int, tensors: int, dtype: str) -> dict[str, float]:
    shares = [size // tensors] * tensors
    originals = [np.ones(share, dtype) for share in shares]  # kept: what is freed could be used again, unseen
    parameters = [fusedopt.Parameter(original) for original in originals]
    optimizer = fusedopt.Adam(parameters)
    for parameter, original in zip(parameters, originals):
        parameter.grad = original
    states = 2 * optimizer._arenas[0][0].data.nbytes
    tracemalloc.start()
    resident = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    optimizer.step()
    found = {
        "resident set": (_status("VmHWM") - resident - states) / MIB,
        "tracemalloc": (tracemalloc.get_traced_memory()[1] - states) / MIB,
    }
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    optimizer.step()
    return {**found, "tracemalloc, second step": (tracemalloc.get_traced_memory()[1] - before) / MIB}


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
