"""The CPU's threads: how many there are, and work done on all of them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait


def thread_count() -> int:
    """`FUSEDOPT_NUM_THREADS`, or as many as there are cores for this process."""
    text = os.environ.get("FUSEDOPT_NUM_THREADS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"FUSEDOPT_NUM_THREADS must be a whole number from 1, got {text!r}; unset it for all cores.")
    return int(text)


_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


def on_all_threads(work: Callable[[], None], pieces: int) -> None:
    """Run `work`, which takes pieces from one iterator until there are none, on this thread and on the pool's."""
    global _pool, _pool_size
    size = thread_count() - 1 if pieces > 1 else 0
    helpers = min(size, pieces - 1)
    if helpers <= 0:
        return work()
    if _pool is None or _pool_size != size:
        _pool, _pool_size = ThreadPoolExecutor(size, "fusedopt"), size
    core = int(_getcpu()) if _getcpu is not None else -1
    others = os.sched_getaffinity(0) - {core} if core >= 0 else set()
    futures = [_pool.submit(_elsewhere, core, others, work) for _ in range(helpers)]
    try:
        work()
    finally:  # an interrupted step does not go on in the background
        wait(futures)
    for future in futures:
        future.result()


def _elsewhere(core: int, others: set[int], work: Callable[[], None]) -> None:
    """Run `work` on another core than the caller's.

    Linux often wakes a thread on the core of its waker, and leaves it there for longer than a step takes: on a virtual
    machine of two cores, bursts of 7 ms were no faster on two threads than on one, and took 5 ms with this.
    """
    if others and _getcpu is not None and int(_getcpu()) == core:
        os.sched_setaffinity(0, others)
    work()


def _forget_pool() -> None:
    global _pool
    _pool = None  # a forked child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
