"""The CPU's threads: how many there are, and work done on all of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
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
_helpers: list[int] = []  # the system's numbers of the pool's threads
_kept_off = -1  # the core that they are kept off
_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


def on_all_threads(work: Callable[[], None], pieces: int) -> None:
    """Run `work`, which takes pieces from one iterator until there are none, on this thread and on the pool's."""
    global _pool, _pool_size
    size = thread_count() - 1 if pieces > 1 else 0
    helpers = min(size, pieces - 1)
    if helpers <= 0:
        return work()
    if _pool is None or _pool_size != size:
        _forget_pool()
        _pool, _pool_size = ThreadPoolExecutor(size, "fusedopt", _take_up), size
    _keep_off_this_core()
    futures = [_pool.submit(work) for _ in range(helpers)]
    try:
        work()
    finally:  # an interrupted step does not go on in the background
        wait(futures)
    for future in futures:
        future.result()


def _take_up() -> None:
    """Note a new helper, which is yet to be kept off a core."""
    global _kept_off
    _helpers.append(threading.get_native_id())
    _kept_off = -1


def _keep_off_this_core() -> None:
    """Have the helpers run on other cores than the one that calls, before they are woken.

    Linux often wakes a thread on the core of its waker, where it waits while that works: on a virtual machine of two
    cores, two threads took 530 us for 100,000 parameters, of which one takes 60.
    """
    global _kept_off
    core = int(_getcpu()) if _getcpu is not None else -1
    if core == _kept_off:
        return
    others = os.sched_getaffinity(0) - {core}
    with contextlib.suppress(OSError):  # a hint, which a system may refuse
        for helper in _helpers if others else ():
            os.sched_setaffinity(helper, others)
        _kept_off = core


def _forget_pool() -> None:
    """As in a forked child, which has none of its parent's threads."""
    global _pool, _kept_off
    _pool, _kept_off = None, -1
    _helpers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
