"""What a step is compared with on the CPU: the same update by NumPy and by torch, each as its users write it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import fusedopt
from fusedopt.cli.demo import NaiveAdam

LR, BETA1, BETA2, EPS, MOMENTUM = 1e-3, 0.9, 0.999, 1e-8, 0.9
OPTIONS: Mapping[str, dict[str, float]] = {"Adam": {"lr": LR}, "SGD": {"lr": LR, "momentum": MOMENTUM}}

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Something that updates parameters; `values` is a look at them, to see that all do the same."""

    step: Callable[[], object]
    values: Callable[[], Any]


Entry = Callable[[Array, Array], Contestant]  # of a parameter's values, which it copies, and a gradient, which it shares


def fused(optimizer: str) -> Entry:
    def enter(p: Array, g: Array) -> Contestant:
        parameter = fusedopt.Parameter(p)
        step = getattr(fusedopt, optimizer)([parameter], **OPTIONS[optimizer]).step
        parameter.grad = g
        return Contestant(step, lambda: parameter.data)

    return enter


def torch_optimizer(optimizer: str, **implementation: bool) -> Entry:
    def enter(p: Array, g: Array) -> Contestant:
        import torch

        parameter = torch.nn.Parameter(torch.tensor(p))
        parameter.grad = torch.from_numpy(g)
        step = getattr(torch.optim, optimizer)([parameter], **OPTIONS[optimizer], **implementation).step
        return Contestant(step, lambda: parameter.detach().numpy())

    return enter


def whole_array_adam(p: Array, g: Array) -> Contestant:
    naive = NaiveAdam(p, g)
    return Contestant(naive.step, lambda: naive.p)


def whole_array_sgd(p: Array, g: Array) -> Contestant:
    buffer = np.zeros_like(p)

    def step() -> None:
        nonlocal p, buffer
        buffer = MOMENTUM * buffer + g
        p = p - LR * buffer

    return Contestant(step, lambda: p)


def preallocated_adam(p: Array, g: Array) -> Contestant:
    """Twelve passes, one scratch array: both bias corrections are folded into the step size and eps."""
    p, m, v, scratch, t = p.copy(), np.zeros_like(p), np.zeros_like(p), np.empty_like(p), 0

    def step() -> None:
        nonlocal t
        t += 1
        root = (1 - BETA2**t) ** 0.5
        np.multiply(m, BETA1, out=m)
        np.multiply(g, 1 - BETA1, out=scratch)
        np.add(m, scratch, out=m)
        np.multiply(v, BETA2, out=v)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, 1 - BETA2, out=scratch)
        np.add(v, scratch, out=v)
        np.sqrt(v, out=scratch)
        np.add(scratch, EPS * root, out=scratch)
        np.divide(m, scratch, out=scratch)
        np.multiply(scratch, LR * root / (1 - BETA1**t), out=scratch)
        np.subtract(p, scratch, out=p)

    return Contestant(step, lambda: p)


def preallocated_sgd(p: Array, g: Array) -> Contestant:
    p, buffer, scratch = p.copy(), np.zeros_like(p), np.empty_like(p)

    def step() -> None:
        np.multiply(buffer, MOMENTUM, out=buffer)
        np.add(buffer, g, out=buffer)
        np.multiply(buffer, LR, out=scratch)
        np.subtract(p, scratch, out=p)

    return Contestant(step, lambda: p)


def _entries(optimizer: str, whole_array: Entry, preallocated: Entry) -> dict[str, Entry]:
    return {
        "fusedopt": fused(optimizer),
        "NumPy, whole arrays": whole_array,
        "NumPy, out=": preallocated,
        "torch, for-loop": torch_optimizer(optimizer, foreach=False, fused=False),
        "torch, foreach": torch_optimizer(optimizer, foreach=True),
        "torch, fused": torch_optimizer(optimizer, fused=True),
    }


ENTRIES: Mapping[str, Mapping[str, Entry]] = {
    "Adam": _entries("Adam", whole_array_adam, preallocated_adam),
    "SGD": _entries("SGD", whole_array_sgd, preallocated_sgd),
}


def work(size: int) -> tuple[Array, Array]:
    """Values and a gradient, float32."""
    random = np.random.default_rng(0)
    return 0.02 * random.standard_normal(size, np.float32), random.standard_normal(size, np.float32)


def use_threads(count: int) -> None:
    """The same number of threads for fusedopt and torch."""
    os.environ["FUSEDOPT_NUM_THREADS"] = str(count)
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(count)
