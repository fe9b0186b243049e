"""A step beside its peers, on the CPU or the GPU: `pytest benchmarks --benchmark-only`; a table for each model.

FUSEDOPT_BENCH_MODELS names the models (resnet-50 gpt2), FUSEDOPT_BENCH_LAYERS says how many of their first layers (2),
FUSEDOPT_BENCH_OPTIMIZERS names the optimizers (sgd adamw). Here one way is timed after the other, with caches as they
are; `python -m fusedopt bench` times them in turn.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedopt
from fusedopt.cli.bench.gpu import Gpu
from fusedopt.cli.bench.machine import Cpu, Machine
from fusedopt.cli.bench.measure import WEIGHT
from fusedopt.cli.bench.models import MODELS
from fusedopt.cli.bench.peers import WAYS, Way
from fusedopt.cli.bench.work import Work, slice_of

MODEL_NAMES = os.environ.get("FUSEDOPT_BENCH_MODELS", "resnet-50 gpt2").split()
OPTIMIZERS = os.environ.get("FUSEDOPT_BENCH_OPTIMIZERS", "sgd adamw").split()
LAYERS = int(os.environ.get("FUSEDOPT_BENCH_LAYERS", 2))
ROUNDS, WARM_UP = 7, 3
STEPS = {"cpu": 1, "cuda": 20}  # of one timing


pytestmark = pytest.mark.filterwarnings("default")  # those of other libraries are not ours


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Cpu() if fusedopt.array_module() is np else Gpu()


def work_of(machine: Machine, name: str) -> Work:
    return slice_of(MODELS[name], min(LAYERS, MODELS[name].layers), machine.free_bytes())


def idle_clock(machine: Machine) -> Callable[[], float]:
    """The time once all that was started is done."""

    def clock() -> float:
        machine.wait()
        return time.perf_counter()

    return clock


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.title)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODEL_NAMES)
def test_step(benchmark: Any, machine: Machine, model: str, optimizer: str, way: Way) -> None:
    if why := way.missing(optimizer, machine.kind):
        pytest.skip(f"{way.title}: {why}")  # a peer is measured where it is installed, and told where it is not
    work = work_of(machine, model)
    with machine.here():
        peer = way.build(optimizer, work.arrays(0, WEIGHT), work.arrays(1, 1.0), machine.kind)

        def step() -> None:
            peer.step()
            peer.finish()

        benchmark.group = f"{optimizer}, {work.title}, {work.parameters:,} parameters in {len(work.shapes):,} tensors"
        benchmark.name = way.title
        benchmark._timer = idle_clock(machine)
        benchmark.pedantic(step, rounds=ROUNDS, iterations=STEPS[machine.kind], warmup_rounds=WARM_UP)
        assert math.isfinite(peer.parameters()[0].sum())
    machine.release()
