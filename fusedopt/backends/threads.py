"""The CPU's threads: how many there are, and work done on all of them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


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


def on_all_threads(work: Callable[[], None], alone: bool) -> None:
    """Run `work` on this thread and on the pool's; it takes pieces from one iterator until there are none."""
    global _pool, _pool_size
    helpers = 0 if alone else thread_count() - 1
    if helpers == 0:
        return work()
    if _pool is None or _pool_size != helpers:
        _pool, _pool_size = ThreadPoolExecutor(helpers, "fusedopt"), helpers
    core = _current_core()
    futures = [_pool.submit(_elsewhere, core, work) for _ in range(helpers)]
    work()
    for future in futures:
        future.result()


def _elsewhere(core: int, work: Callable[[], None]) -> None:
    """Run `work` on another core than the caller's.

    Linux often wakes a thread on the core of its waker, and leaves it there for longer than a step takes: on a virtual
    machine of two cores, 32 M parameters took 88 ms so, and half of it with this.
    """
    if core >= 0 and _current_core() == core:
        others = _allowed_cores - {core}
        if others:
            os.sched_setaffinity(0, others)
    work()


def _current_core() -> int:
    return int(_getcpu()) if _getcpu is not None else -1


_allowed_cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


def _forget_pool() -> None:
    global _pool
    _pool = None  # a forked child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
