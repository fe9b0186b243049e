"""Some steps of parameters that are kept in many ways, as functions that fail where a device has other bits than NumPy.

As `step_checks`, without torch and without pytest's fixtures, for what runs under a sanitizer.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import ml_dtypes  # noqa: F401  # makes "bfloat16" a name that NumPy knows
import numpy as np

import fusedopt
from fusedopt.backends import device
from fusedopt.backends.cpu import CpuPlan
from fusedopt.backends.device import DevicePlan
from fusedopt.rules import Rule, Values, hyperparameter
from fusedopt.storage import BLOCK
from step_checks import ordinary, same_results, values
from storages import Way, each_value, every_way

SIZES = (1, 3, 127, 128, 129, 4096, 4097)
ADAM = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
LARGEST = {"float16": 6e4}  # of numbers that are no infinity in the dtype


def blocks(size: int, dtype: str, seed: int) -> np.ndarray:
    """Blocks of numbers of one kind each: infinities or NaN in every block would hide what 8-bit states hold."""
    random = np.random.default_rng([seed, size])
    count = -(-size // BLOCK)
    normal = random.standard_normal((count, BLOCK))
    one = np.where(np.arange(BLOCK) == random.integers(BLOCK), 1.0, 0.0)
    with np.errstate(all="ignore"):
        kinds = [
            *[normal] * 5,
            normal * 10 ** random.uniform(-30, 30, (count, BLOCK)),
            normal * np.clip(10 ** random.uniform(-45, 38, (count, 1)), 0, LARGEST.get(dtype, np.inf)),
            normal * random.choice([1e-40, 1e-25, 1e-12], (count, 1)),  # m and v of the last two: the smallest scale
            np.where(normal > 0, 0.0, -0.0),
            one * random.choice([1.0, 1e-45, 3.4e38, 6e4]),
            normal + one * random.choice([np.inf, -np.inf, np.nan]),
            values(count * BLOCK, "float64", seed).reshape(count, BLOCK),
        ]
        found = np.choose(random.integers(len(kinds), size=(count, 1)), kinds).astype(dtype).ravel()[:size]
    if dtype == "float32":  # the bits of a NaN go through all arithmetic, into what is kept beside half precision too
        found.view(np.uint32)[np.isnan(found)] = 0xFFC12345
    return found


@dataclass(frozen=True)
class Steps:
    """Some steps of one optimizer, a param group for each way that parameters are kept.

    Attributes:
        ways: A parameter of each of `sizes`, which may be shapes, is kept in each.
        options: Hyperparameters of all groups.
        scalars: `grad_scale` and `found_inf` of each step, as keywords.
        write_back: Whether gradients are left divided by the scale.
        values: Makes parameters and gradients, of a size, a dtype and a seed.
    """

    optimizer: type[fusedopt.Optimizer]
    ways: Sequence[Way]
    options: Mapping[str, Any]
    sizes: Sequence[int | tuple[int, ...]] = SIZES
    scalars: Sequence[Mapping[str, Any]] = ({}, {"grad_scale": 3.0}, {"found_inf": 1.0}, {})
    write_back: bool = False
    values: Callable[[int, str, int], np.ndarray] = blocks

    def optimizer_on(self, array: Callable[[np.ndarray], Any]) -> tuple[Any, list[fusedopt.Parameter]]:
        """The optimizer, and its parameters on a device."""
        entries, parameters = [], []
        for way in self.ways:
            shapes = [np.atleast_1d(size).tolist() for size in self.sizes]
            starts = [self.values(math.prod(shape), way.dtype, seed) for seed, shape in enumerate(shapes)]
            some = [
                fusedopt.Parameter(array(start.reshape(shape)), grad_dtype=np.dtype(way.gradient))
                for start, shape in zip(starts, shapes, strict=True)
            ]
            entries.append({"params": some, **way.options(self.optimizer.rule, **self.options)})
            parameters += some
        return self.optimizer(entries), parameters

    def give_gradients(self, parameters: Sequence[Any], step: int, array: Callable[[np.ndarray], Any]) -> None:
        """Those of a step, the first of which is 0."""
        for i, parameter in enumerate(parameters):
            gradient = self.values(parameter.size, parameter.grad_dtype.name, 1000 * (step + 1) + i)
            parameter.grad = array(gradient.reshape(parameter.shape))

    def after(self, array: Callable[[np.ndarray], Any]) -> dict[str, np.ndarray]:
        """Every array and counter after the steps, by name, on the host."""
        optimizer, parameters = self.optimizer_on(array)
        plans = [mock.patch.object(kind, "step", _writing_back(kind.step)) for kind in (CpuPlan, DevicePlan)]
        for plan in plans if self.write_back else ():
            plan.start()
        try:
            for step, scalars in enumerate(self.scalars):
                self.give_gradients(parameters, step, array)
                optimizer.step(**scalars)
        finally:
            for plan in plans if self.write_back else ():
                plan.stop()
        return arrays_of(optimizer, parameters)

    def expected(self) -> dict[str, np.ndarray]:
        """The same, on NumPy."""
        with mock.patch.dict(os.environ, FUSEDOPT_BACKEND="numpy"):
            return self.after(np.array)

    def check(self, array: Callable[[np.ndarray], Any]) -> None:
        """It is the same on a device as on NumPy, to the bit."""
        same_results(self.after(array), self.expected())


def _writing_back(step: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(step)
    def wrapped(plan: Any, grad_scale: Any, found_inf: Any) -> None:
        step(plan, grad_scale, found_inf, write_back=True)

    return wrapped


def arrays_of(optimizer: Any, parameters: Sequence[Any]) -> dict[str, np.ndarray]:
    """Every array and counter of an optimizer, by name, on the host."""
    host = next(optimizer.arenas()).memory.host
    found = {f"parameter {i}": host(parameter.data) for i, parameter in enumerate(parameters)}
    found |= {f"gradient {i}": host(parameter.grad) for i, parameter in enumerate(parameters)}
    for number, arena in enumerate(optimizer.arenas()):
        for key in arena.keys:
            for i in range(len(arena.parameters)):
                what = f"{key} {i} of {arena.storage.title} ({number})"
                found[what] = host(arena.part(key, i))
        found[f"counters {number}"] = host(arena.counters)
    return found


INT8 = Way("bfloat16", "float32", "split", "int8", stochastic=False)
FEW = [*each_value(every_way(fusedopt.Adam.rule)), Way("float16", "float16", None, None, stochastic=True), INT8]


@dataclass(frozen=True)
class Rest(Rule):
    """A rule whose state is largest where there is nothing, as in the lanes beyond a tensor's end."""

    lr: float = hyperparameter(0.01, "[0, inf)")

    state = ("rest",)

    def scalars(self, step: Any, a: Any) -> Values:
        return Values(lr=self.lr)

    def update(self, p: Any, g: Any, s: Any, c: Any) -> tuple[Any, Values]:
        rest = 1.0 / (1.0 + np.absolute(g))
        return p - c.lr * s.rest, Values(rest=rest)


class RestOptimizer(fusedopt.Optimizer, rule=Rest): ...


def check_kept(array: Any) -> None:
    """A few ways, in chunks so small that a block walks over many spans; `array` is a type of emulated arrays."""
    with mock.patch.object(device, "CHUNK", 512):
        for steps in (
            Steps(fusedopt.Adam, FEW, ADAM, sizes=(1, 129, 300, 4225)),
            Steps(fusedopt.Adam, [INT8], {"weight_decay": 0.0}, sizes=(40_000,), scalars=({},)),  # small ones alone
            Steps(RestOptimizer, [INT8], {}, sizes=(4097,), values=ordinary),
        ):
            steps.check(lambda values: values.view(array))
    with mock.patch.object(device, "CHUNK", 1024):  # where a lane has several tiles under way
        Steps(fusedopt.Adam, [INT8], ADAM, sizes=(4225,), scalars=({}, {})).check(lambda values: values.view(array))
