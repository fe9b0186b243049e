"""A step on the CPU beside its peers: `pytest benchmarks --benchmark-only`, a group an optimizer.

FUSEDOPT_BENCH_SIZE is the number of float32 parameters (32 Mi), FUSEDOPT_BENCH_THREADS the number of threads (2).
"""

from __future__ import annotations

import functools
import os
from typing import Any

import peers
import pytest

SIZE = int(os.environ.get("FUSEDOPT_BENCH_SIZE", 32 * 2**20))
THREADS = int(os.environ.get("FUSEDOPT_BENCH_THREADS", 2))

work = functools.cache(peers.work)


@pytest.mark.parametrize(("optimizer", "peer"), [(o, peer) for o, entries in peers.ENTRIES.items() for peer in entries])
def test_step(benchmark: Any, optimizer: str, peer: str) -> None:
    if peer.startswith("torch"):
        pytest.importorskip("torch")
    peers.use_threads(THREADS)
    contestant = peers.ENTRIES[optimizer][peer](*work(SIZE))
    benchmark.group = f"{optimizer}, {SIZE:,} float32 parameters, {THREADS} threads"
    benchmark.pedantic(contestant.step, rounds=5, warmup_rounds=2)
