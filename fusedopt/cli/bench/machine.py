"""The machine that steps are timed on: what measuring needs of it, and the CPU. What is timed is known elsewhere.

A *timing* is the mean time of a step over as many steps as last 5 ms on a CPU and 20 ms on a GPU, so that neither the
clock nor one interrupt decides it. On a CPU it is wall time, after a pause of 20 ms: the threads of an OpenMP library
spin on for milliseconds after their work, on cores that the next one needs. `gpu.py` says what it is on a GPU.

*Cold*: before each step other memory is written, twice the caches' size and 64 MiB at least, as in a training other
memory passes through the caches between two steps. Then each step is timed alone.
"""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from fusedopt.backends.threads import on_all_threads, thread_count
from fusedopt.cli.bench import condition

Step = Callable[[], object]
Timer = Callable[[], float]  # one timing: seconds of a step

PAUSE = 0.02  # seconds
CPU_TIMING = 0.005  # seconds
MOST_STEPS = 10_000  # of one timing
MIB = 2**20


def nothing() -> None:
    """Finishes the steps of a library whose device the machine waits for."""


class Machine(Protocol):
    """What measuring needs of a machine.

    Attributes:
        kind: `cpu` or `cuda`.
        name: Of the processor or the GPU.
        cache_bytes: Of all its caches from the second level on.
    """

    kind: str
    name: str
    cache_bytes: int

    def facts(self) -> dict[str, Any]:
        """What stays as it is while it is measured: device, driver, threads."""

    def condition(self) -> str:
        """What does not: load, clocks, throttling. To be asked before and after."""

    def here(self) -> AbstractContextManager[Any]:
        """In its `with` everything is built and timed."""

    def timer(self, step: Step, finish: Step = nothing, *, own_stream: bool = False, cold: bool = False) -> Timer:
        """A function that makes one timing; how many steps it takes is found out now.

        Args:
            step: Starts a step.
            finish: Waits for what a library of its own queue has started.
            own_stream: Whether that library has a stream of its own, which events do not see.
            cold: Whether the caches are cleared before each step.
        """

    def replay_timer(self, step: Step, library: str, *, cold: bool = False) -> Timer | None:
        """The same for a graph of the steps; None where there are no graphs, or the step cannot be captured."""

    def host_seconds(self, step: Step, finish: Step = nothing) -> float | None:
        """Median time until a call returns, the device being idle; None on a CPU, where the step is the host's."""

    def launches(self, step: Step) -> int | None:
        """Kernels that a call starts; None where there are none, or nothing here can count them."""

    def wait(self) -> None:
        """Until all that was started on the device is done."""

    def free_bytes(self) -> int | None:
        """Memory that can still be had; None where the system does not tell."""

    def release(self) -> None:
        """Give back what libraries keep for later."""


def repeats_of(step: Step, finish: Step, goal: float) -> int:
    """How many steps last `goal` seconds together."""
    return max(1, min(MOST_STEPS, math.ceil(goal / max(1e-9, wall_seconds(step, finish, 1)))))


def wall_seconds(step: Step, finish: Step, repeats: int) -> float:
    """Time of a step, over so many."""
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    finish()
    return (time.perf_counter() - start) / repeats


def clearing_bytes(cache_bytes: int) -> int:
    """Memory to be written until caches hold nothing else."""
    return max(64 * MIB, 2 * cache_bytes)


class Cpu:
    """The processors of this process, as many as fusedopt has threads."""

    kind = "cpu"

    def __init__(self) -> None:
        self.name = condition.cpu_name()
        self.cache_bytes = condition.cpu_cache_bytes()
        self._other: np.ndarray[Any, Any] | None = None

    def facts(self) -> dict[str, Any]:
        return {"device": self.name, "driver": platform.platform(), "threads": thread_count()}

    def condition(self) -> str:
        return condition.of_cpu()

    def here(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def timer(self, step: Step, finish: Step = nothing, *, own_stream: bool = False, cold: bool = False) -> Timer:
        repeats = 1 if cold else repeats_of(step, finish, CPU_TIMING)

        def timing() -> float:
            if cold:
                self._clear_caches()
            time.sleep(PAUSE)
            return wall_seconds(step, finish, repeats)

        return timing

    def _clear_caches(self) -> None:
        """Write other memory on all threads: each core has a cache of its own beside the common one."""
        if self._other is None:
            self._other = np.zeros(clearing_bytes(self.cache_bytes) // 8, np.int64)
        pieces = iter(np.array_split(self._other, thread_count()))

        def write() -> None:
            for piece in pieces:
                np.add(piece, 1, out=piece)

        on_all_threads(write, thread_count())

    def replay_timer(self, step: Step, library: str, *, cold: bool = False) -> Timer | None:
        return None

    def host_seconds(self, step: Step, finish: Step = nothing) -> float | None:
        return None

    def launches(self, step: Step) -> int | None:
        return None

    def wait(self) -> None:
        pass

    def free_bytes(self) -> int | None:
        self.release()
        return condition.free_host_bytes()

    def release(self) -> None:
        self._other = None
