"""The Python time of a step: all that is not arithmetic on elements, for groups of many small tensors."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

import fusedopt
from fusedopt.backends.device import DeviceBackend
from fusedopt.cli.bench.machine import nothing, wall_seconds
from fusedopt.cli.bench.peers_arrays import chosen


class IdleSurface:
    """A device that keeps its tables in host memory, and whose launches do nothing: what is left is our own Python."""

    device, multiprocessors, threads = "idle", 132, 256

    def zeros(self, count: int, dtype: np.dtype[Any]) -> Any:
        return np.zeros(count, dtype).view(IdleArray)

    def asarray(self, array: Any) -> Any:
        return np.asarray(array).view(IdleArray)

    def host(self, array: Any) -> Any:
        return np.array(array)

    def here(self) -> Any:
        return contextlib.nullcontext()

    def pointer(self, array: Any) -> int:
        return int(array.ctypes.data)

    def pinned(self, nbytes: int) -> Any:
        return np.zeros(nbytes, np.uint8)

    def copy(self, to: Any, source: Any) -> None:
        np.asarray(to)[: source.nbytes] = source

    def wait(self, event: Any) -> None: ...

    def kernel(self, source: str, headers: Any, name: str) -> None: ...

    def launch(self, kernel: Any, blocks: int, arguments: Any) -> None: ...

    def capturing(self) -> bool:
        return False


class IdleArray(np.ndarray):
    """An array of the idle device; fusedopt finds the backend through its type."""

    __fusedopt_backend__ = DeviceBackend(IdleSurface())

    @property
    def device(self) -> str:
        return IdleSurface.device


@dataclasses.dataclass(frozen=True)
class Path:
    """One way through the code.

    Attributes:
        title: For people.
        backend: As `FUSEDOPT_BACKEND` has it; "cuda" is the idle device, up to the launch.
        shared: Whether two tasks without work are handed out, so that another thread takes one.
    """

    title: str
    backend: str
    shared: bool = False


NUMPY, NUMPY_SHARED = Path("NumPy", "numpy"), Path("NumPy, two threads", "numpy", True)
NUMBA, NUMBA_SHARED = Path("numba", "numba"), Path("numba, two threads", "numba", True)
CUDA = Path("CUDA but for the launch", "cuda")
PATHS = (NUMPY, NUMPY_SHARED, NUMBA, NUMBA_SHARED, CUDA)


def leave_nothing_to_compute(plan: Any, shared: bool) -> None:
    """Empty the tasks of a CPU's plan; `shared` says whether there is one for a second thread, whatever there was."""
    if plan.name == "numpy":
        plan.pieces, plan.threaded = [(0, 0, 0)] * (2 * shared), shared
        return
    plan._table[:, 0] = 0  # the elements of each row
    if shared:
        from fusedopt.backends.numba import ALONE

        tasks = plan._tasks
        plan._tasks = lambda *begun: (ALONE + 1) * tasks(*begun)
    else:
        plan._threads = lambda: 1


class Steps:
    """An Adam over `tensors` tensors of 3 elements, in so many groups of equal size, whose steps do no arithmetic."""

    def __init__(self, tensors: int, path: Path, groups: int = 1) -> None:
        kind = IdleArray if path is CUDA else np.ndarray
        self.parameters = [fusedopt.Parameter(np.ones(3, np.float32).view(kind)) for _ in range(tensors)]
        self.gradients = [np.ones(3, np.float32).view(kind) for _ in range(tensors)]
        with chosen("auto" if path is CUDA else path.backend):
            self.optimizer = fusedopt.Adam([{"params": self.parameters[i::groups]} for i in range(groups)])
        self._set_gradients()
        self.optimizer.step()
        self.plans = list(self.optimizer._plans)
        if path is not CUDA:
            for plan in self.plans:
                leave_nothing_to_compute(plan, path.shared)

    def _set_gradients(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient

    def unchanged(self) -> float:
        """Seconds of a step with gradients and hyperparameters as they were."""
        took = wall_seconds(self.optimizer.step, nothing, 1)
        if any(new is not old for new, old in zip(self.optimizer._plans, self.plans, strict=True)):
            raise RuntimeError("the step made a new plan, with its arithmetic: this is not its Python time alone.")
        return took

    def change(self) -> None:
        """What a training loop does between steps: drop and set all gradients, change the learning rate."""
        self.optimizer.zero_grad()
        self._set_gradients()
        self.optimizer.param_groups[0]["lr"] *= 0.999


def unchanged(tensors: int, path: Path, samples: int, groups: int = 1) -> list[float]:
    """Seconds of steps between which nothing changes."""
    steps = Steps(tensors, path, groups)
    return [steps.unchanged() for _ in range(10 + samples)][10:]


def changed(tensors: int, path: Path, samples: int) -> list[float]:
    """Seconds of steps after `Steps.change`. Before each, another optimizer of 10 tensors is changed and steps.

    So the processor's caches have the code again, which the thousands of parameters that were just set have put out:
    what is compared is the work of few and of many tensors, not how much `change` itself went through.
    """
    steps, small = Steps(tensors, path), Steps(10, path)
    found = []
    for _ in range(10 + samples):
        steps.change()
        small.change()
        small.unchanged()
        found.append(steps.unchanged())
    return found[10:]


def changed_cold(tensors: int, path: Path, samples: int) -> list[float]:
    """Seconds of steps after `Steps.change` and after 64 MiB of other work, with no code and no data in near caches."""
    steps, other = Steps(tensors, path), np.zeros(2**24, np.float32)
    found = []
    for _ in range(10 + samples):
        steps.change()
        other += 1
        found.append(steps.unchanged())
    return found[10:]
