"""Checks of what becomes of a rule: the same bits on every backend that is here, and what a step costs."""

from __future__ import annotations

import numpy as np

from fusedopt.backends import Backend, cuda, numba_problem
from fusedopt.backends.cpu import CpuBackend
from fusedopt.backends.numpy import NumpyPlan
from fusedopt.backends.threads import thread_count
from fusedopt.rules.rule import Rule
from fusedopt.testing.report import Failure, Skip
from fusedopt.testing.runs import Plain, on_backend
from fusedopt.testing.subject import Subject, extreme, first_difference, shown
from fusedopt.traffic import traffic

DTYPES = ("float32", "float64", "float16", "bfloat16")
SIZE = 4099  # elements: more than a tile, and no multiple of four
BLOCKS = 70_001  # more than a block or a chunk of any backend
STEPS = 3


def numpy_bits(subject: Subject) -> str:
    """NumPy's blocks, with every combination of flags."""
    backend = CpuBackend(NumpyPlan, thread_count)
    for rule in subject.combinations:
        _compare("NumPy", backend, rule, "float32", SIZE)
    return _on("NumPy", backend, subject)


def numba_bits(subject: Subject) -> str:
    """numba's loops, with each flag once."""
    problem = numba_problem()
    if problem is not None:
        raise Skip(problem)
    from fusedopt.backends.numba import NumbaPlan

    return _on("numba", CpuBackend(NumbaPlan, thread_count), subject)


def cuda_bits(subject: Subject) -> str:
    """The kernel, with each flag once."""
    problem = cuda.problem()
    if problem is not None:
        why, _, _ = problem.partition(";")
        raise Skip(f"{why}. Without a GPU nothing has to be done; with one, `python -m fusedopt doctor` has the cure")
    return _on("CUDA", _current_gpu(), subject)


def _current_gpu() -> Backend:
    return cuda.backend(int(cuda.module().cuda.Device().id))


def _on(name: str, backend: Backend, subject: Subject) -> str:
    for rule in subject.variants:
        _compare(name, backend, rule, "float32", SIZE)
    for dtype in DTYPES[1:]:
        _compare(name, backend, subject.telling, dtype, SIZE)
    _compare(name, backend, subject.telling, "float32", BLOCKS)
    return f"equal to the plain function: {len(subject.variants)} variants, {len(DTYPES)} dtypes, extreme values"


def _compare(name: str, backend: Backend, rule: Rule, dtype: str, size: int) -> None:
    start, gradients = extreme(size, dtype, 1), [extreme(size, dtype, 2 + step) for step in range(STEPS)]
    expected = Plain(rule, start).after(gradients).values
    with np.errstate(all="ignore"):
        difference = first_difference(on_backend(backend, rule, start, gradients), expected)
    if difference:
        raise Failure(
            f"{shown(rule)} in {dtype} has other bits by {name} than as a plain function after {STEPS} steps: "
            f"{difference}. Both functions run once, on symbols: they may ask neither for types nor for values."
        )


def cost(subject: Subject) -> str:
    """What a step moves, and how many launches it is."""
    moved = traffic(subject.traced)
    if "p" not in moved.written:
        raise Failure(f"{shown(subject.telling)} never changes the parameter; update returns (new p, Values(...)).")
    if "g" not in moved.read:
        raise Failure(f"{shown(subject.telling)} never reads the gradient; use g in update.")
    kept, launches = 4 * len(subject.traced.states), 1 + len(subject.traced.stages)
    return (
        f"{moved.bytes()} bytes a float32 parameter: reads {', '.join(moved.read)}; writes {', '.join(moved.written)}; "
        f"keeps {kept} beside p and g; {launches} launch{'es' if launches > 1 else ''}"
    )
