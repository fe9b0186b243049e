"""The Python time of a step: all that is not arithmetic on elements, for groups of many small tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from timing import seconds

import fusedopt
from fusedopt.backends.device import DeviceBackend


class IdleSurface:
    """A device that keeps its tables in host memory, and whose launches do nothing: what is left is our own Python."""

    device, multiprocessors, threads = "idle", 132, 256

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Any:
        return np.zeros(count, dtype).view(IdleArray)

    def asarray(self, array: Any) -> Any:
        return np.asarray(array).view(IdleArray)

    def host(self, array: Any) -> Any:
        return np.array(array)

    def pointer(self, array: Any) -> int:
        return int(array.ctypes.data)

    def pinned(self, nbytes: int) -> Any:
        return np.zeros(nbytes, np.uint8)

    def copy(self, to: Any, source: Any) -> None:
        np.asarray(to)[: source.nbytes] = source

    def wait(self, event: Any) -> None: ...

    def kernel(self, source: str, headers: Any) -> None: ...

    def launch(self, kernel: Any, blocks: int, arguments: Any) -> None: ...


class IdleArray(np.ndarray):
    """An array of the idle device; fusedopt finds the backend through its type."""

    __fusedopt_backend__ = DeviceBackend(IdleSurface())

    @property
    def device(self) -> str:
        return IdleSurface.device


class Steps:
    """An Adam over `tensors` tensors of 3 elements whose steps do no arithmetic.

    Args:
        idle_device: Take the CUDA path, up to the launch, instead of the CPU's.
    """

    def __init__(self, tensors: int, idle_device: bool) -> None:
        kind = IdleArray if idle_device else np.ndarray
        self.parameters = [fusedopt.Parameter(np.ones(3, np.float32).view(kind)) for _ in range(tensors)]
        self.gradients = [np.ones(3, np.float32).view(kind) for _ in range(tensors)]
        self.optimizer = fusedopt.Adam(self.parameters)
        self._set_gradients()
        self.optimizer.step()
        self.plans = list(self.optimizer._plans)
        for plan in self.plans:
            if hasattr(plan, "pieces"):  # the CPU's: the blocks of elements that it executes
                plan.pieces = []

    def _set_gradients(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient

    def unchanged(self) -> float:
        """Seconds of a step with gradients and hyperparameters as they were."""
        return self._seconds()

    def in_training(self) -> float:
        """Seconds of a step after all gradients were dropped and set again and the learning rate changed."""
        self.optimizer.zero_grad()
        self._set_gradients()
        self.optimizer.param_groups[0]["lr"] *= 0.999
        return self._seconds()

    def _seconds(self) -> float:
        took = seconds(self.optimizer.step)
        if any(new is not old for new, old in zip(self.optimizer._plans, self.plans, strict=True)):
            raise RuntimeError("the step made a new plan, with its arithmetic: this is not its Python time alone.")
        return took
