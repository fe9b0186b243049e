"""A step on the CPU beside its peers: `pytest benchmarks --benchmark-only`, a group an optimizer.

FUSEDOPT_BENCH_SIZE is the number of float32 parameters (32 Mi), FUSEDOPT_BENCH_THREADS the number of threads (2).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import compare
from fusedopt.cli.contestants import OPTIMIZERS
from fusedopt.cli.side_by_side import Contestant

SIZE = int(os.environ.get("FUSEDOPT_BENCH_SIZE", 32 * 2**20))
THREADS = int(os.environ.get("FUSEDOPT_BENCH_THREADS", 2))


@functools.lru_cache(maxsize=1)  # the arrays of one optimizer at a time
def contestants(optimizer: str) -> Mapping[str, Contestant]:
    return compare.contestants_of(optimizer, SIZE)


@pytest.mark.parametrize("peer", ["fusedopt", *compare.SPEED_BARS])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_step(benchmark: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str, peer: str) -> None:
    if peer.startswith("torch"):
        pytest.importorskip("torch")
    monkeypatch.setenv("FUSEDOPT_NUM_THREADS", str(THREADS))
    contestant = contestants(optimizer)[peer]
    benchmark.group = f"{optimizer}, {SIZE:,} float32 parameters, {THREADS} threads"
    benchmark.pedantic(contestant.step, rounds=5, warmup_rounds=2)
    assert np.isfinite(contestant.parameters()[0][:1000]).all()
