"""Plain streams over as much memory as a step moves: the floor that a step's time is held against.

- *copy* reads one array and writes another, *triad* reads two and writes their sum to a third.
- *the mix* reads and writes as many arrays as the step does, in place and with one addition: Adam's four loads and
  three stores, the three and two of SGD with momentum. A step that moves these bytes cannot be expected to be faster.

On a GPU they are kernels with accesses of 128 bits, one thread an access or 8 blocks a multiprocessor that loop, beside
CuPy's own copy. On a CPU they are `np.copyto`, `np.add` with `out=`, and for the mix a loop compiled by numba, on as
many threads as fusedopt has, each with one large piece or by turns with small ones. The fastest of each kind is taken.
NumPy cannot express the mix without temporary arrays, so that without numba triad stands in for it. GB/s count what is
loaded and stored; a CPU reads memory before it stores to it, also where nothing asked for that, which is not counted.

Arrays have at most 64 Mi elements, far more than caches hold: the time for more is in proportion.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fusedopt.backends import numba_problem
from fusedopt.backends.threads import on_all_threads, thread_count
from fusedopt.cli.bench.gpu import Gpu
from fusedopt.cli.bench.machine import Machine, Step

MOST_ELEMENTS = 64 * 2**20
PIECE = 64 * 1024  # elements: as numba's step has them
COPY, TRIAD, MIX = "copy", "triad", "mix"

Array = Any  # numpy.ndarray or cupy.ndarray


@dataclasses.dataclass(frozen=True)
class Stream:
    """One way to stream.

    Attributes:
        kind: COPY, TRIAD or MIX.
        title: What it does, and with what.
        step: Goes through the arrays once.
        bytes: That it loads and stores.
    """

    kind: str
    title: str
    step: Step
    bytes: int


def streams(machine: Machine, parameters: int, states: int) -> list[Stream]:
    """Copy, triad and, where it can be had, the mix of a step that updates so many parameters with so many states each.

    There are several of each kind.
    """
    elements = max(4, min(parameters, MOST_ELEMENTS))
    loads, stores = 2 + states, 1 + states  # parameter, gradient and states; parameter and states
    made = _on_gpu(machine, elements, loads) if isinstance(machine, Gpu) else _on_cpu(elements, loads)
    size = {COPY: 2, TRIAD: 3, MIX: loads + stores}
    count = {COPY: "1 load, 1 store", TRIAD: "2 loads, 1 store", MIX: f"{loads} loads, {stores} stores"}
    return [Stream(kind, f"{kind} ({count[kind]}, {how})", step, 4 * elements * size[kind]) for kind, how, step in made]


def resident_bytes(parameters: int, states: int) -> int:
    """Memory that the streams need."""
    return 4 * min(parameters, MOST_ELEMENTS) * max(3, 2 + states)


def _on_cpu(elements: int, loads: int) -> list[tuple[str, str, Step]]:
    some = np.random.default_rng(0).standard_normal(min(elements, 2**22), np.float32)
    arrays = [np.resize(some, elements) for _ in range(max(3, loads))]  # triad has three
    functions: list[tuple[str, str, Callable[..., object], int]] = [
        (COPY, "NumPy", np.copyto, 2),
        (TRIAD, "NumPy", _add, 3),
    ]
    if numba_problem() is None:
        functions.append((MIX, "numba", _compiled(loads), loads))
    # Large copies go past the caches; small pieces are done together even where a core has other work.
    pieces = {min(thread_count(), elements), -(-elements // PIECE)}
    return [
        (kind, how, _in_pieces(function, arrays[:count], number))
        for kind, how, function, count in functions
        for number in pieces
    ]


def _add(to: Array, a: Array, b: Array) -> None:
    np.add(a, b, out=to)


def _in_pieces(function: Callable[..., object], arrays: Sequence[Array], count: int) -> Step:
    """A step that calls the function on pieces of the arrays, on all threads."""
    pieces = list(zip(*(np.array_split(array, count) for array in arrays), strict=True))

    def step() -> None:
        pending = iter(pieces)

        def work() -> None:
            for piece in pending:
                function(*piece)

        on_all_threads(work, count)

    return step


@functools.cache
def _compiled(loads: int) -> Callable[..., object]:
    """The mix as a loop of machine code that lets go of the interpreter: the last array is added to the others."""
    numba: Any = importlib.import_module("numba")
    others = [f"a{number}" for number in range(loads - 1)]
    lines = [
        f"def mix({', '.join(others)}, y):",
        "    for i in range(len(y)):",
        *(f"        {a}[i] += y[i]" for a in others),
    ]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    compiled: Callable[..., object] = numba.njit(nogil=True)(names["mix"])
    compiled(*(np.ones(8, np.float32) for _ in range(loads)))
    return compiled


def _on_gpu(gpu: Gpu, elements: int, loads: int) -> list[tuple[str, str, Step]]:
    arrays = [gpu.noise(elements) for _ in range(max(3, loads))]  # triad has three
    accesses = elements // 4
    made: list[tuple[str, str, Step]] = [(COPY, "CuPy", lambda: gpu.copy(arrays[1], arrays[0]))]
    for kind, count in ((COPY, 2), (TRIAD, 3), (MIX, loads)):
        kernel = gpu.kernel(cuda_text(kind, count), "stream")
        for how, blocks in (("CUDA", -(-accesses // 256)), ("CUDA, looping", 8 * gpu.multiprocessors)):
            step = functools.partial(kernel, blocks, 256, *arrays[:count], np.uint64(accesses))
            made.append((kind, how, step))
    return made


def cuda_text(kind: str, arrays: int) -> str:
    """A kernel by 128 bits: a0 = a1, a0 = a1 + a2, or the last array added to each of the others."""
    last = arrays - 1
    written = range(last) if kind == MIX else range(1)
    read = range(arrays) if kind == MIX else range(1, arrays)
    body = [f"float4 x{n} = a{n}[i];" for n in read]
    if kind == MIX:
        body += [f"x{n}.{lane} += x{last}.{lane};" for n in written for lane in "xyzw"]
    elif kind == TRIAD:
        body += [f"x1.{lane} += x2.{lane};" for lane in "xyzw"]
    body += [f"a{n}[i] = x{n if kind == MIX else 1};" for n in written]
    arguments = ", ".join(f"{'' if n in written else 'const '}float4* a{n}" for n in range(arrays))
    lines = "\n".join(f"    {line}" for line in body)
    return f"""extern "C" __global__ void __launch_bounds__(256) stream({arguments}, unsigned long long count) {{
  const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {{
{lines}
  }}
}}
"""
