"""Where steps are executed: by NumPy or numba on the CPU, by one fused kernel on CUDA. The arrays say which."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from fusedopt.backends.cpu import CpuBackend
from fusedopt.backends.numpy import NumpyPlan
from fusedopt.backends.threads import thread_count
from fusedopt.layout import Memory, Span

CHOICES = ("auto", "cuda", "numba", "numpy")


class Steps(Protocol):
    """Spans made ready to be updated, again and again."""

    def refresh(self) -> None:
        """Take over the numbers of the groups' rules; their flags are as they were."""

    def step(self, grad_scale: Any, found_inf: Any, write_back: bool = False) -> None:
        """Update every span once; where `write_back`, gradients are left divided by the scale."""


class Plan(Steps, Protocol):
    """Spans whose gradients may be elsewhere at each step."""

    def move(self, addresses: Sequence[int]) -> None:
        """Read the gradients from elsewhere: an address for each span, of memory of its size and dtype."""


class Backend(Memory, Protocol):
    """One place where arrays are and steps are executed."""

    def plan(self, spans: Sequence[Span]) -> Plan:
        """Make spans of this backend ready."""


def chosen_backend() -> str:
    """What `FUSEDOPT_BACKEND` asks for: `auto` (the default), `cuda`, `numba` or `numpy`."""
    choice = os.environ.get("FUSEDOPT_BACKEND", "auto").strip().lower() or "auto"
    if choice not in CHOICES:
        raise ValueError(f"FUSEDOPT_BACKEND must be auto, cuda, numba or numpy, got {choice!r}; unset it for auto.")
    return choice


@functools.cache
def numba_problem() -> str | None:
    """Why numba cannot compile steps here, with the line that mends it; None if it can."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install 'fusedopt[numba]'."
    try:
        import numba

        import fusedopt.backends.numba
    except Exception as error:  # such as a NumPy that is newer than it knows
        return f"numba cannot be imported ({error}): pip install --upgrade 'fusedopt[numba]'."
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # numba makes its settings' names at run time
        return "numba compiles nothing while NUMBA_DISABLE_JIT is set: unset it."
    return fusedopt.backends.numba.processor_problem()


def cpu_backend(threads: Callable[[], int] = thread_count) -> CpuBackend:
    """numba where it is installed, else NumPy; `FUSEDOPT_BACKEND` decides otherwise.

    Args:
        threads: How many a step may take.

    Raises:
        RuntimeError: `FUSEDOPT_BACKEND=numba`, and numba cannot work here; the message says what is missing.
    """
    return _cpu_backend(chosen_backend(), threads)


@functools.cache
def _cpu_backend(choice: str, threads: Callable[[], int]) -> CpuBackend:
    if choice != "numpy":
        problem = numba_problem()
        if problem is None:
            from fusedopt.backends.numba import NumbaPlan

            return CpuBackend(NumbaPlan, threads)
        if choice == "numba":
            raise RuntimeError(f"FUSEDOPT_BACKEND=numba cannot work here: {problem}")
        if importlib.util.find_spec("numba") is not None:
            warnings.warn(f"Steps on the CPU are NumPy's, which are slower: {problem}", RuntimeWarning, stacklevel=2)
    return CpuBackend(NumpyPlan, threads)


def array_module() -> ModuleType:
    """cupy where a GPU works, else numpy, so that one script runs on both; `FUSEDOPT_BACKEND` decides otherwise.

    `numpy` and `numba` both ask for NumPy's arrays.

    Raises:
        RuntimeError: `FUSEDOPT_BACKEND=cuda`, and CUDA cannot work here; the message says what is missing.
    """
    from fusedopt.backends import cuda

    choice = chosen_backend()
    if choice in ("numpy", "numba"):
        return np
    problem = cuda.problem()
    if problem is None:
        return cuda.module()
    if choice == "cuda":
        raise RuntimeError(f"FUSEDOPT_BACKEND=cuda cannot work here: {problem}")
    return np


def module_of(array: Any) -> ModuleType:
    """The array module that an array belongs to: cupy, or numpy."""
    from fusedopt.backends import cuda

    return cuda.module() if type(array).__module__.partition(".")[0] == "cupy" else np


def backend_of(array: Any) -> Backend:
    """The backend that an array's type belongs to.

    Raises:
        TypeError: No backend knows the type.
        RuntimeError: `FUSEDOPT_BACKEND` asks for another backend, or for one that cannot work here.
    """
    from fusedopt.backends import cuda

    brought: Backend | None = getattr(type(array), "__fusedopt_backend__", None)
    if brought is not None:  # an array type with a backend of its own
        return brought
    choice = chosen_backend()
    if type(array).__module__.partition(".")[0] == "cupy":
        if choice in ("numpy", "numba"):
            raise RuntimeError(f"FUSEDOPT_BACKEND={choice}, but a parameter is a CuPy array; use array_module().")
        return cuda.backend(array.device.id)
    if isinstance(array, np.ndarray):
        if choice == "cuda":
            problem = cuda.problem()
            cure = f"unset it, since CUDA cannot work here: {problem}" if problem else "use fusedopt.array_module()."
            raise RuntimeError(f"FUSEDOPT_BACKEND=cuda, but a parameter is a NumPy array; {cure}")
        return cpu_backend()
    raise TypeError(f"fusedopt works on NumPy and CuPy arrays, got {type(array).__module__}.{type(array).__name__}.")
