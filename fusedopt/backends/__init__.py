"""Where steps are executed: NumPy on the CPU, one fused kernel on a CUDA device. The arrays say which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from fusedopt.layout import Memory, Span


class Plan(Protocol):
    """Spans made ready to be updated, again and again."""

    def refresh(self) -> None:
        """Take over the numbers of the groups' rules; their flags are as they were."""

    def move(self, gradients: Sequence[Any]) -> None:
        """Read the gradients from elsewhere: one for each span, of its size and dtype; on a device, its address."""

    def step(self, grad_scale: Any, found_inf: Any, write_back: bool = False) -> None:
        """Update every span once; where `write_back`, gradients are left divided by the scale."""


class Backend(Memory, Protocol):
    """One place where arrays are and steps are executed."""

    def plan(self, spans: Sequence[Span]) -> Plan:
        """Make spans of this backend ready."""


def chosen_backend() -> str:
    """What `FUSEDOPT_BACKEND` asks for: `auto` (the default), `cuda` or `numpy`."""
    choice = os.environ.get("FUSEDOPT_BACKEND", "auto").strip().lower() or "auto"
    if choice not in ("auto", "cuda", "numpy"):
        raise ValueError(f"FUSEDOPT_BACKEND must be auto, cuda or numpy, got {choice!r}; unset it for auto.")
    return choice


def array_module() -> ModuleType:
    """cupy where a GPU works, else numpy, so that one script runs on both; `FUSEDOPT_BACKEND` decides otherwise.

    Raises:
        RuntimeError: `FUSEDOPT_BACKEND=cuda`, and CUDA cannot work here; the message says what is missing.
    """
    from fusedopt.backends import cuda

    choice = chosen_backend()
    if choice == "numpy":
        return np
    problem = cuda.problem()
    if problem is None:
        return cuda.module()
    if choice == "cuda":
        raise RuntimeError(f"FUSEDOPT_BACKEND=cuda cannot work here: {problem}")
    return np


def backend_of(array: Any) -> Backend:
    """The backend that an array's type belongs to.

    Raises:
        TypeError: No backend knows the type.
        RuntimeError: `FUSEDOPT_BACKEND` asks for another backend, or for one that cannot work here.
    """
    from fusedopt.backends import cuda, numpy

    brought: Backend | None = getattr(type(array), "__fusedopt_backend__", None)
    if brought is not None:  # an array type with a backend of its own
        return brought
    choice = chosen_backend()
    if type(array).__module__.partition(".")[0] == "cupy":
        if choice == "numpy":
            raise RuntimeError("FUSEDOPT_BACKEND=numpy, but a parameter is a CuPy array; use fusedopt.array_module().")
        return cuda.backend(array.device.id)
    if isinstance(array, np.ndarray):
        if choice == "cuda":
            problem = cuda.problem()
            cure = f"unset it, since CUDA cannot work here: {problem}" if problem else "use fusedopt.array_module()."
            raise RuntimeError(f"FUSEDOPT_BACKEND=cuda, but a parameter is a NumPy array; {cure}")
        return numpy.BACKEND
    raise TypeError(f"fusedopt works on NumPy and CuPy arrays, got {type(array).__module__}.{type(array).__name__}.")
